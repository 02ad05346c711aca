"""Time scoring against the model's raw forward on the same tokens counted once, and against one row per completion.

Fills its block of docs/performance.md; wants a quiet machine::

    python benchmarks/scoring_speed.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from disa.lm.log_probs import PaddedCompletions, sequence_log_probs, token_log_probs
from page import fill, table
from paired import in_turns, ratio, timed

PAGE = Path("docs/performance.md")
PROMPTS, GROUP = 4, 8
# Tokens of a prompt and of each of its completions.
SHAPES = ((64, 64), (256, 64), (64, 256))


def random_llama(vocabulary: int = 8192, hidden_size: int = 256) -> LlamaForCausalLM:
    """8 million weights by default, half of them in the layers: matrix products are what counts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def rows(prompt: int, completion: int, vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Random token ids of all prompts and completions, one row per completion."""
    prompts = torch.randint(2, vocabulary, (PROMPTS, prompt)).tolist()
    completions = torch.randint(2, vocabulary, (PROMPTS * GROUP, completion)).tolist()
    return [p for p in prompts for _ in range(GROUP)], completions


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: D105
        result = function(*args, **kwargs or {})
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.size = max(self.size, value.numel() * value.element_size())
        return result


def largest_tensor(vocabulary: int, length: int) -> str:
    """MiB of the largest tensor that scoring and its backward pass make, and of the whole table of logits."""
    from disa.lm.log_probs import PackedCompletions

    model = random_llama(vocabulary)
    prompts, completions = rows(8, length, vocabulary)
    batch = PackedCompletions(prompts, completions, model.device)
    with Largest() as largest:
        token_log_probs(model, batch)[0].sum().backward()
    whole = len(batch.targets) * vocabulary * 4
    return f"{largest.size / 2**20:.0f} of {whole / 2**20:.0f}"


def main() -> None:
    """Measure and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measured turns")
    options = parser.parse_args()
    model, lines = random_llama(), []
    for prompt, completion in SHAPES:
        prompts, completions = rows(prompt, completion, model.config.vocab_size)
        # The raw forward gets as many tokens, in rows as long as a prompt with one completion, logits of all of them.
        tokens = PROMPTS * (prompt + GROUP * completion)
        raw = torch.randint(2, model.config.vocab_size, (max(1, tokens // (prompt + completion)), prompt + completion))
        padded = PaddedCompletions(prompts, completions, model.device)

        def forward(ids=raw):
            with torch.inference_mode():
                model(ids, use_cache=False)

        def one_row_each(batch=padded):
            with torch.inference_mode():
                token_log_probs(model, batch)

        def scoring(prompts=prompts, completions=completions):
            sequence_log_probs(model, prompts, completions)

        works = {"raw": forward, "rows": one_row_each, "shared": scoring}
        found = in_turns({name: lambda work=work: timed(work) for name, work in works.items()}, options.repeats)
        share = raw.numel() / tokens  # rounding to whole rows
        lines.append(
            [prompt, completion, *ratio(found["raw"], found["shared"]), *ratio(found["rows"], found["shared"])]
        )
        print(lines[-1], f"raw tokens {share:.3f} of scoring's")
    header = ["prompt", "completion", "raw / scoring", "by CPU time", "row per completion / scoring", "by CPU time"]
    sizes = [[v, n, largest_tensor(v, n)] for v in (8192, 32768) for n in (32, 128)]
    text = [
        f"{PROMPTS} prompts of {GROUP} completions, {torch.get_num_threads()} threads, median of {options.repeats} "
        "turns with its range; times of other ways over scoring's.",
        "",
        *table(header, lines),
        "",
        "Largest tensor forward and backward, against the whole table of logits (MiB, float32):",
        "",
        *table(["vocabulary", "completion", "largest of whole"], sizes),
    ]
    fill("scoring-speed", "\n".join(text), PAGE)


if __name__ == "__main__":
    main()
