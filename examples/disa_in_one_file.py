"""DISA in one file: plain torch and transformers, a small model, one minute on a CPU.

    python examples/disa_in_one_file.py

The method (arXiv 2605.17295) in its order: warm up a weak reference and a stronger proposal, draw trajectories from
both, score them, estimate log Z(x) = log E_ref[exp(beta r)] of every prompt, freeze it, and train the policy by
relative trajectory balance, (log Z + log pi - log pi_ref - beta r)^2. The task: write two digits with a given sum. Most
prompts have several solutions; the target keeps them all, each in proportion to the reference.
"""

import copy
import math

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BETA = 3.0
LENGTH = 4  # "a+b" and the end
PROMPTS = [f"{n}=" for n in range(19)]
ALPHABET = ["<pad>", "<eos>", *"0123456789+="]


def small_tokenizer():
    """One token per character; prompts are padded on the left to equal length."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(ALPHABET)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    ends = {"pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **ends)


def small_model():
    """A Llama of two layers."""
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(ALPHABET), max_position_embeddings=16, **shape, **ends))


def reward(prompt, completion):
    """1 for two digits whose sum is the prompt's number, else 0; the text is parsed, never evaluated."""
    a, plus, b = completion.partition("+")
    digits = len(a) == len(b) == 1 and a.isdigit() and b.isdigit()
    return float(digits and plus == "+" and int(a) + int(b) == int(prompt[:-1]))


def log_probs(model, prompt_ids, prompt_mask, completion_ids, completion_mask):
    """Log-probability of every completion: the sum over its tokens, end included, shape (rows,), float64, in nats."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    start = prompt_ids.shape[1]
    per_token = logits[:, start - 1 : -1].double().log_softmax(dim=-1).gather(2, completion_ids[..., None]).squeeze(2)
    return (per_token * completion_mask).sum(dim=1)


@torch.no_grad()
def draw(model, prompt_ids, prompt_mask):
    """One completion per row at temperature 1 and its mask, which covers the end token; no top-p, no top-k."""
    ids, mask = prompt_ids, prompt_mask
    going = torch.ones(len(ids), dtype=torch.bool)
    for _ in range(LENGTH):
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        token = torch.multinomial(logits.double().softmax(dim=-1), 1).squeeze(1)
        ids = torch.cat([ids, torch.where(going, token, 0)[:, None]], dim=1)
        mask = torch.cat([mask, going.long()[:, None]], dim=1)
        going = going & (token != 1)
    start = prompt_ids.shape[1]
    return ids[:, start:], mask[:, start:]


def encode(tokenizer, prompts):
    """Token ids and mask of prompts, both of shape (rows, length)."""
    return tuple(tokenizer(prompts, return_tensors="pt", padding=True)[k] for k in ("input_ids", "attention_mask"))


def warm_up(model, tokenizer, share_correct, steps):
    """Supervised training on sums of which a share is correct and the others are of random digits."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        a, b, other = torch.randint(0, 10, (3, 128))
        written = torch.where(torch.rand(128) < share_correct, b, other)
        prompts = [f"{n}=" for n in (a + b).tolist()]
        answers = [f"{x}+{y}<eos>" for x, y in zip(a.tolist(), written.tolist(), strict=True)]
        loss = -log_probs(model, *encode(tokenizer, prompts), *encode(tokenizer, answers)).mean() / LENGTH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def texts(tokenizer, completion_ids):
    """Completions as the reward reads them."""
    return tokenizer.batch_decode(completion_ids, skip_special_tokens=True)


@torch.no_grad()
def trajectories(reference, proposal, tokenizer, per_prompt, reference_share):
    """Draws of a prompt from both models, scored under both: what log Z is estimated from."""
    found = []
    for prompt in PROMPTS:
        own = round(per_prompt * reference_share)
        prompt_ids = encode(tokenizer, [prompt] * per_prompt)
        drawn = [draw(m, *(x[:n] for x in prompt_ids)) for m, n in ((reference, own), (proposal, per_prompt - own))]
        completions = [torch.cat(pair) for pair in zip(*drawn, strict=True)]
        scores = [log_probs(model, *prompt_ids, *completions) for model in (reference, proposal)]
        rewards = torch.tensor([reward(prompt, text) for text in texts(tokenizer, completions[0])])
        found.append((*scores, rewards.double(), own / per_prompt))
    return found


def log_partition(log_ref, log_proposal, reward, reference_share):
    """``log Z = log(1 + expm1(beta) q)`` with ``q = mean(w s)``, in nats.

    ``w = pi_ref / (alpha pi_ref + (1 - alpha) mu)`` is the balance heuristic (Veach and Guibas 1995): at most 1/alpha.
    ``s = expm1(beta r) / expm1(beta)`` is the reward on an exponential scale from 0 to 1. Completions without reward
    carry no weight, so that a proposal that always succeeds loses nothing.
    """
    alpha = torch.tensor(reference_share).double()
    log_mixture = torch.logaddexp(alpha.log() + log_ref, (1 - alpha).log() + log_proposal)
    s = torch.expm1(BETA * reward) / math.expm1(BETA)
    q = ((log_ref - log_mixture).exp() * s).mean().clamp(0, 1)
    return torch.log1p(math.expm1(BETA) * q)


def balance_loss(log_pi, log_ref, reward, log_z, group_size, prior_strength=1.0):
    """Mean of ``(delta - b)^2`` with ``delta = log Z + log pi - log pi_ref - beta r``: relative trajectory balance.

    delta is 0 for every completion exactly where pi is the target. The baseline of a completion is the mean of the
    other residuals of its group, shrunk towards the frozen log Z's own, which is 0; it leaves the expected gradient as
    it is. On the policy's own completions that gradient is twice the gradient of KL(pi || target).
    """
    delta = log_z + log_pi - log_ref - BETA * reward
    others = delta.detach().view(-1, group_size)
    others = others.sum(dim=1, keepdim=True) - others
    baseline = others.flatten() / (group_size - 1 + prior_strength)
    return (delta - baseline).square().mean()


def train(policy, reference, tokenizer, log_z, steps, group_size=16):
    """Trajectory balance on the policy's own completions; log Z is frozen and has no gradient."""
    assert not log_z.requires_grad
    policy.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    prompts = [prompt for prompt in PROMPTS for _ in range(group_size)]
    prompt_ids = encode(tokenizer, prompts)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        completions = draw(policy, *prompt_ids)
        rewards = torch.tensor([reward(*pair) for pair in zip(prompts, texts(tokenizer, completions[0]), strict=True)])
        with torch.no_grad():
            log_ref = log_probs(reference, *prompt_ids, *completions)
        log_pi = log_probs(policy, *prompt_ids, *completions)
        loss = balance_loss(log_pi, log_ref, rewards.double(), log_z.repeat_interleave(group_size), group_size)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3d}  loss {loss.item():6.3f}  reward {rewards.mean().item():.3f}", flush=True)
    return policy


@torch.no_grad()
def summary(model, tokenizer):
    """Success rate and effective number of solutions, exp(entropy) over the correct ones, mean over prompts."""
    sums = [f"{a}+{b}" for a in range(10) for b in range(10)]
    ids = encode(tokenizer, [f"{text}<eos>" for text in sums])
    log_p = torch.stack([log_probs(model, *encode(tokenizer, [prompt] * 100), *ids) for prompt in PROMPTS])
    rewards = torch.tensor([[reward(prompt, text) for text in sums] for prompt in PROMPTS])
    correct = log_p.exp() * rewards
    share = correct / correct.sum(dim=1, keepdim=True)
    modes = torch.special.entr(share).sum(dim=1).exp()
    every = rewards.sum(dim=1).mean()
    return f"success {correct.sum(dim=1).mean():.3f}, effective solutions {modes.mean():.2f} of {every:.2f}"


def main(seed=0, warm_up_steps=(500, 150), per_prompt=64, steps=150):
    """The whole method; returns the estimates of log Z and the three models."""
    torch.manual_seed(seed)
    tokenizer = small_tokenizer()
    proposal = warm_up(small_model(), tokenizer, share_correct=1.0, steps=warm_up_steps[0])
    reference = copy.deepcopy(proposal).requires_grad_(True)
    reference = warm_up(reference, tokenizer, share_correct=0.2, steps=warm_up_steps[1])
    drawn = trajectories(reference, proposal, tokenizer, per_prompt, reference_share=0.25)
    log_z = torch.stack([log_partition(*rows) for rows in drawn])
    print("log Z, nats:", " ".join(f"{p}{z:.2f}" for p, z in zip(PROMPTS, log_z.tolist(), strict=True)))
    policy = train(copy.deepcopy(reference), reference, tokenizer, log_z, steps)
    for name, model in (("reference", reference), ("proposal", proposal), ("policy", policy)):
        print(f"{name:9s} {summary(model, tokenizer)}")
    return log_z, reference, proposal, policy


if __name__ == "__main__":
    main()
