"""A language model that calls a tool, so small that every trajectory can be written down.

A completion of one letter is a call: the tool answers with a digit, the model goes on behind it, and its table of that
digit says how. Five tokens at most, the digit included.
"""

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from disa.lm.hf_trainer import trainer_arguments
from disa.testing import EnumerableModel, Space, random_model
from disa.testing.hf import OracleConfig, OracleForCausalLM, oracle_tokenizer

SPACE, LIMIT, BETA = Space(3, 5), 5, 3.0
PROMPTS, ANSWERS = "01234", "56789"
SMALL = trainer_arguments(False, 1) | {
    "max_steps": 2,
    "num_generations": 4,
    "per_device_train_batch_size": 20,
    "gradient_accumulation_steps": 1,
    "save_strategy": "no",
}
"""Settings of a trainer for two steps."""
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}{{ c['function']['name'] }}{{ c['function']['arguments'] }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
)


def tokenizer():
    """The oracle's, with a chat template and the rule of what is a call."""
    made = oracle_tokenizer(SPACE)
    made.chat_template = TEMPLATE
    made.response_template = {}

    def parse_response(ids, prefix=None, tools=None):
        text = made.decode(ids, skip_special_tokens=True)
        if len(text) == 1 and ids[-1] == made.eos_token_id:
            call = {"type": "function", "function": {"name": "ask", "arguments": {"letter": text}}}
            return {"role": "assistant", "content": "", "tool_calls": [call]}
        return {"role": "assistant", "content": text}

    made.parse_response = parse_response
    return made


def ask(letter: str) -> str:
    """Ask for a digit.

    Args:
        letter: What is asked.
    """
    return ANSWERS["ab".index(letter)]


class Oracle:
    """An environment whose answer depends on the prompt."""

    def reset(self, prompt, **row):
        self.digit = int(prompt[0]["content"])

    def ask(self, letter: str) -> str:
        """Ask for a digit.

        Args:
            letter: What is asked.
        """
        return ANSWERS[(self.digit + "ab".index(letter)) % 5]


class Dice:
    """An environment that answers at random: two digits, as likely each."""

    def reset(self, **row):
        pass

    def ask(self, letter: str) -> str:
        """Ask for a digit.

        Args:
            letter: What is asked.
        """
        return ANSWERS[2 * "ab".index(letter) + np.random.randint(2)]


def answers(environment, prompt, letter):
    """Probability of each answer."""
    if environment == "dice":
        first = 2 * "ab".index(letter)
        return {ANSWERS[first]: 0.5, ANSWERS[first + 1]: 0.5}
    shift = int(prompt) if environment == "oracle" else 0
    return {ANSWERS[(shift + "ab".index(letter)) % 5]: 1.0}


def reward(completions, prompts, **_):
    """Graded, by the digit before the last words and by those words: whoever said it, the tool or the user."""
    last = [c[-2]["content"] if len(c) > 1 else p[-1]["content"] for p, c in zip(prompts, completions, strict=True)]
    return [value(digit, _text(c[-1])) for digit, c in zip(last, completions, strict=True)]


def _text(message):
    """What a message says; a call behind the answer, for which there is no room any more, is a letter."""
    calls = message.get("tool_calls")
    return calls[0]["function"]["arguments"]["letter"] if calls else message["content"]


def value(digit, text):
    """A fixed number in [0, 1]; some answers of the tool are worth more than others."""
    seed = [ord(c) for c in digit + text]
    power = 3 if digit in PROMPTS else (0.3, 4)[int(digit) % 2]
    return float(np.float32(np.random.default_rng(seed).random() ** power))


class ToyConfig(OracleConfig):
    """An oracle whose head knows all tokens: what a tool says has a probability, too."""

    model_type = "disa_tool_toy"
    tokens: int = 14
    max_position_embeddings: int = 64  # TRL's loop over tools asks for it


class Head(nn.Linear):
    """The table's logits, and next to nothing for digits and padding: e^-30."""

    def __init__(self, known, tokens):
        super().__init__(known, tokens)
        weight, bias = torch.eye(tokens, known), torch.full((tokens,), -30.0)
        bias[:known] = 0.0
        del self.weight, self.bias
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)


class Toy(OracleForCausalLM):
    """The table with that head."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = Head(config.vocab_size, config.tokens)


def register():
    """Let transformers load it."""
    AutoConfig.register(ToyConfig.model_type, ToyConfig, exist_ok=True)
    AutoModelForCausalLM.register(ToyConfig, Toy, exist_ok=True)


def save(folder, seed=0):
    """Write the reference; returns its table."""
    register()
    table = random_model(SPACE, 10, np.random.default_rng(seed), spread=0.7, eos_logit=0.3)
    model = Toy(ToyConfig(vocab_size=SPACE.vocabulary, length_limit=SPACE.length_limit, prompts=10))
    with torch.no_grad():
        model.model.table.weight.copy_(torch.as_tensor(table.logits).flatten(0, 1))
    model.save_pretrained(folder)
    oracle_tokenizer(SPACE).save_pretrained(folder)
    return table_of(model)


def table_of(model):
    """The table of a model, in float64."""
    weight = model.model.table.weight.detach().double().numpy()
    return EnumerableModel(SPACE, weight.reshape(10, -1, SPACE.vocabulary))


def turns(table, digit, limit):
    """Every text of one turn with its log-probability and whether it ended: ``(text, log p, ended)``."""
    token_log_probs, offsets = table.token_log_probs[int(digit)], SPACE.offsets
    found, open_ = [], [("", 0, 0.0)]
    for length in range(limit):
        longer = []
        for text, number, log_p in open_:
            row = token_log_probs[offsets[length] + number]
            found.append((text, log_p + row[0], True))
            longer += [(text + "ab"[i], 2 * number + i, log_p + row[1 + i]) for i in range(2)]
        open_ = longer
    return found + [(text, log_p, False) for text, _, log_p in open_]


def trajectories(table, environment, prompt):
    """Every trajectory: what was written and answered, log p of the model's own, log p of the answers, reward."""
    rows = {}
    for text, log_p, ended in turns(table, prompt, LIMIT):
        if not (ended and len(text) == 1):
            rows[text, "", ""] = log_p, 0.0, value(prompt, text)
            continue
        for digit, share in answers(environment, prompt, text).items():
            for more, log_more, _ in turns(table, digit, LIMIT - 3):
                rows[text, digit, more] = log_p + log_more, np.log(share), value(digit, more)
    return rows


class Exact:
    """Log Z, target and the least KL that a policy can reach, of every prompt."""

    def __init__(self, table, environment):
        self.environment, self.rows = environment, {p: trajectories(table, environment, p) for p in PROMPTS}
        self.log_z = {p: self._log_mean(rows) for p, rows in self.rows.items()}

    @staticmethod
    def _log_mean(rows):
        return float(np.logaddexp.reduce([own + answer + BETA * r for own, answer, r in rows.values()]))

    def kl(self, table, prompt):
        """KL(policy || target) over trajectories, answers included, nats."""
        total = 0.0
        for key, (own, answer, _) in trajectories(table, self.environment, prompt).items():
            ref, _, reward = self.rows[prompt][key]
            total += np.exp(own + answer) * (own - (ref + BETA * reward - self.log_z[prompt]))
        return total

    def irreducible(self, prompt):
        """``log Z - beta V``: the best policy averages over answers where the target weighs them."""
        calls = {}
        for (text, digit, _), (own, answer, reward) in self.rows[prompt].items():
            calls.setdefault((text, bool(digit)), {}).setdefault(digit, []).append((own, answer, reward))
        best = [  # the log-probability of the call itself is in every term
            sum(
                np.exp(rows[0][1]) * np.logaddexp.reduce([own + BETA * reward for own, _, reward in rows])
                for rows in by_digit.values()
            )
            for by_digit in calls.values()
        ]
        return self.log_z[prompt] - float(np.logaddexp.reduce(best))


def rows():
    return [{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS]


def read(ids):
    """What was written and answered, as a key of :func:`trajectories`."""
    texts = ["<eos>", *"ab", *"0123456789"]
    said = [texts[i] for i in ids]
    if len(ids) > 2 and said[1] == "<eos>":
        return said[0], said[2], "".join(t for t in said[3:] if t != "<eos>")
    return "".join(t for t in said if t != "<eos>"), "", ""
