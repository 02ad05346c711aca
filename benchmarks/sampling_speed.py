"""Time sampling against transformers' ``generate`` on the same rows and number of tokens.

Fills its block of docs/performance.md; wants a quiet machine::

    python benchmarks/sampling_speed.py
"""

from __future__ import annotations

import argparse

import torch
from transformers import GenerationConfig

from disa.lm.sampler import draw_tokens
from page import fill, table
from paired import in_turns, ratio, timed
from scoring_speed import PAGE, random_llama

# Prompts, completions of each, tokens of a prompt, tokens of a completion.
CASES = ((32, 1, 32, 32), (8, 4, 32, 32), (1, 16, 512, 32), (2, 16, 512, 32), (1, 16, 1024, 32))


def main() -> None:
    """Measure and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measured turns")
    options = parser.parse_args()
    model, lines = random_llama(), []
    model.generation_config = GenerationConfig()
    for prompts, group, length, tokens in CASES:
        ids = torch.randint(2, model.config.vocab_size, (prompts, length)).repeat_interleave(group, dim=0)
        numbers = torch.rand(len(ids), tokens, dtype=torch.float64)
        # No stop token on either side: all completions have full length, and the work is equal.
        plain = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=tokens, pad_token_id=0)

        def generate(ids=ids, plain=plain):
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain)

        def sampling(ids=ids, numbers=numbers):
            draw_tokens(model, ids.tolist(), numbers, [])

        works = {"generate": generate, "sampling": sampling}
        found = in_turns({name: lambda work=work: timed(work) for name, work in works.items()}, options.repeats)
        lines.append([prompts, group, length, tokens, *ratio(found["generate"], found["sampling"])])
        print(lines[-1])
    header = ["prompts", "completions of each", "prompt", "completion", "generate / sampling", "by CPU time"]
    text = [
        f"{torch.get_num_threads()} threads, median of {options.repeats} turns with its range; no stop token.",
        "",
        *table(header, lines),
    ]
    fill("sampling-speed", "\n".join(text), PAGE)


if __name__ == "__main__":
    main()
