"""Peak memory and time of passes over shared prompts against the plain padded forward, by the length of a row.

Eight completions of two unequal prompts, three quarters of a row being completion; two small Llama layers. Every figure
is of a process of its own, in pairs: memory is its largest resident size above that at the start of the pass, seconds
are the processor's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from page import fill, table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

LENGTHS = (1024, 2048, 4096, 8192)
WAYS = ("plain", "shared")
KINDS = ("scoring", "training", "training, checkpointed")
COMPLETIONS, VOCABULARY = 8, 512
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
}


def rows(length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, a quarter of the length and an eighth shorter, and completions that fill the longer row up."""
    generator = np.random.default_rng(0)
    prompts = [generator.integers(2, VOCABULARY, n).tolist() for n in (length // 4, length // 4 - length // 32)]
    completions = [generator.integers(2, VOCABULARY, length - length // 4).tolist() for _ in range(COMPLETIONS)]
    return [prompts[i % 2] for i in range(COMPLETIONS)], completions


def measure(way: str, kind: str, length: int) -> dict[str, float]:
    """One pass in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from disa.lm.log_probs import PackedCompletions, PaddedCompletions, token_log_probs
    from disa.lm.shared_prefix import shared_attention

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    trained = kind != "scoring"
    if kind.endswith("checkpointed"):
        model.train()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    make = PackedCompletions if way == "shared" else PaddedCompletions

    def one_pass(length: int) -> None:
        batch = make(*rows(length), torch.device("cpu"))
        with torch.set_grad_enabled(trained), shared_attention(model):
            log_p, _ = token_log_probs(model, batch)
            if trained:
                log_p.sum().backward()

    one_pass(64)  # what is made once
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    one_pass(length)
    seconds = time.process_time() - start
    return {"mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "seconds": seconds}


def paired(kind: str, length: int) -> dict[str, dict[str, float]]:
    """Both ways, one process after the other."""
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--one", way, kind, str(length)]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def compared(kind: str, lengths: tuple[int, ...]) -> list[str]:
    """One kind's lines."""
    memory: dict[str, list[float]] = {way: [] for way in WAYS}
    rows = []
    for length in lengths:
        found = paired(kind, length)
        cells = []
        for unit, digits in (("mib", 0), ("seconds", 2)):
            plain, shared = (found[way][unit] for way in WAYS)
            cells += [f"{plain:.{digits}f}", f"{shared:.{digits}f}", f"{shared / plain:.2f}"]
        for way in WAYS:
            memory[way].append(found[way]["mib"])
        rows.append([length, *cells])
        print(kind, *rows[-1], flush=True)
    header = ["tokens of a row", "plain, MiB", "shared, MiB", "shared / plain"]
    header += ["plain, CPU s", "shared, CPU s", "shared / plain"]
    slopes = {way: np.polyfit(np.log(lengths), np.log(found), 1)[0] for way, found in memory.items()}
    exponents = ", ".join(f"{way} {slope:.2f}" for way, slope in slopes.items())
    return [f"{kind.capitalize()}:", "", *table(header, rows), "", f"Exponent of memory in length: {exponents}.", ""]


def main() -> None:
    """Measure, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "KIND", "LENGTH"), help=argparse.SUPPRESS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], given.one[1], int(given.one[2]))))
        return
    lines = [line for kind in KINDS for line in compared(kind, tuple(given.lengths))]
    fill("attention-memory", "\n".join(lines), given.page)


if __name__ == "__main__":
    main()
