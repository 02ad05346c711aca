"""Random answers, outputs and completions against the verifiers: what they say, what they raise, how long one takes.

Writes its block into docs/verifiers-maths.md; some minutes on one core::

    OMP_NUM_THREADS=1 python benchmarks/rewards_fuzz.py --cases 100000
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

from page import fill, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "rewards"))
from fuzz_answers import cases


def main() -> None:
    """Run, print, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    number, raised, slowest = Counter(), Counter(), Counter()
    verdicts: dict[str, Counter[str]] = {}
    for kind, call in itertools.islice(cases(options.seed), options.cases):
        start = time.process_time()
        try:
            said = call()
            verdicts.setdefault(kind, Counter())[str(said) if kind.startswith("maths") else ""] += 1
        except BaseException as error:  # whatever it is would have lost a batch
            raised[kind] += 1
            print(f"{kind}: {error!r} at {call}", file=sys.stderr)
        number[kind] += 1
        slowest[kind] = max(slowest[kind], time.process_time() - start)
    rows = []
    for kind in sorted(number):
        counts = [
            verdicts[kind][name] if kind.startswith("maths") else "" for name in ("correct", "wrong", "undecided")
        ]
        rows.append((kind, number[kind], raised[kind], *counts, f"{slowest[kind]:.2f}"))
    header = ("random", "cases", "exceptions", "correct", "wrong", "undecided", "slowest (s of processor time)")
    text = "\n".join([*table(header, rows), "", f"{sum(number.values()):,} cases, {sum(raised.values())} exceptions."])
    print(text)
    fill("rewards_fuzz", text, Path("docs/verifiers-maths.md"))


if __name__ == "__main__":
    main()
