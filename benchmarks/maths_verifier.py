r"""Measure the maths verifier: gold answers, generated near-misses, hostile answers, throughput.

Fills the marked blocks of ``docs/verifiers-maths.md``. The data are local JSON Lines files with ``id``, ``answer`` and,
where present, ``answers``, ``unit``, ``error``, ``multiple``::

    OMP_NUM_THREADS=1 python benchmarks/maths_verifier.py --data data/maths --before 2b8b374

The near-misses of each kind are wrong by construction. Beside the verifier stands math-verify as its documentation has
it, ``verify(parse(gold), parse(answer))``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from disa.errors import DisaError
from disa.rewards.maths import Gold, MathsVerifier, Verdict
from maths_hostile import HOSTILE
from maths_near_misses import NEAR_MISSES, respell
from page import fill, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "rewards"))
from maths_kinds import KINDS

FILES = ("aime2024", "amc2023", "math500", "olympiadbench", "gsm8k_test", "gsm8k_train", "math_train")
PER_KIND = 150


def rows(folder: Path, name: str) -> Iterator[tuple[str, Gold | None]]:
    """Id and gold answer of every row, None where it has none."""
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            try:
                yield row["id"], Gold.from_row(row)
            except DisaError:
                yield row["id"], None


def boxed(answer: str) -> str:
    """A completion with an answer."""
    return f"Some reasoning first.\n\nThe final answer is $\\boxed{{{answer}}}$."


def gold_against_gold(folder: Path) -> list[str]:
    """Every gold answer against itself, and against itself in another spelling."""
    lines = ["| file | rows | itself | distinct answers | in another spelling |", "| --- | --- | --- | --- | --- |"]
    exceptions = []
    for name in FILES:
        found = list(rows(folder, name))
        exceptions += [f"`{identifier}` has no gold answer" for identifier, gold in found if gold is None]
        golds = [(identifier, gold) for identifier, gold in found if gold is not None]
        distinct = list({gold: (identifier, gold) for identifier, gold in golds}.values())
        verifier = MathsVerifier()
        itself = verifier.check([gold for _, gold in golds], [boxed(gold.answer) for _, gold in golds])
        spelled = [respell(gold) for _, gold in distinct]
        again = verifier.check([gold for _, gold in distinct], [boxed(text) for text in spelled])
        exceptions += [
            f"`{i}` itself: {v}, `{g.answer}`" for (i, g), v in zip(golds, itself, strict=True) if v != "correct"
        ]
        exceptions += [
            f"`{identifier}` respelled as `{text}`: {verdict}, `{gold.answer}`"
            for (identifier, gold), text, verdict in zip(distinct, spelled, again, strict=True)
            if verdict != Verdict.CORRECT
        ]
        accepted = [sum(v == Verdict.CORRECT for v in verdicts) for verdicts in (itself, again)]
        lines.append(f"| {name} | {len(found)} | {accepted[0]} | {len(distinct)} | {accepted[1]} |")
    return [*lines, "", f"Exceptions ({len(exceptions)}):", "", *(f"- {text}" for text in exceptions)]


def near_misses(folder: Path, seed: int) -> list[str]:
    """False accepts per kind of near-miss, with those of plain math-verify beside them."""
    golds = sorted({gold for name in FILES for _, gold in rows(folder, name) if gold}, key=lambda gold: gold.answer)
    lines = [
        "| kind | near-misses | false accepts | rate, 95% upper bound | undecided | math-verify accepts |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    accepted, total = [], Counter()
    verifier = MathsVerifier()
    for kind, make in NEAR_MISSES.items():
        rng = random.Random(f"{seed} {kind}")
        pairs = [(gold, wrong) for gold in golds if (wrong := make(gold, rng)) is not None]
        pairs = rng.sample(pairs, min(PER_KIND, len(pairs)))
        verdicts = verifier.check([gold for gold, _ in pairs], [boxed(wrong) for _, wrong in pairs])
        false = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict == Verdict.CORRECT]
        undecided, raw = verdicts.count(Verdict.UNDECIDED), sum(plain_math_verify(*pair) for pair in pairs)
        accepted += [f"{kind}: gold `{gold.answer}`, answer `{wrong}`" for gold, wrong in false]
        total.update(near=len(pairs), false=len(false), undecided=undecided, raw=raw)
        bound = upper_bound(len(false), len(pairs))
        lines.append(f"| {kind} | {len(pairs)} | {len(false)} | {bound:.3f} | {undecided} | {raw} |")
    bound = upper_bound(total["false"], total["near"])
    lines.append(f"| all | {total['near']} | {total['false']} | {bound:.4f} | {total['undecided']} | {total['raw']} |")
    return [*lines, "", f"False accepts ({len(accepted)}):", "", *(f"- {text}" for text in accepted)]


def kinds(before: str | None) -> list[str]:
    """Verdicts on hand-written answers of every kind, by this code and by that of an earlier commit."""
    now = _verdicts(Path(__file__).parents[1] / "src")
    with tempfile.TemporaryDirectory() as folder:
        if before is None:
            then = None
        else:
            archive = subprocess.run(["git", "archive", before, "src"], capture_output=True, check=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            then = _verdicts(Path(folder, "src"))
    names = ("before", "after") if then else ("after",)
    columns = [f"{what}, {when}" for what in ("false accepts", "false rejects", "undecided") for when in names]
    both = [found for found in (then, now) if found]
    rows = [[kind, *_counted(answers, [found[kind] for found in both])] for kind, answers in KINDS.items()]
    sums = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    return table(["kind", "right", "not right", *columns], [*rows, ["all", *sums]])


def _verdicts(source: Path) -> dict[str, list[str]]:
    """Verdicts by kind of the package in a folder, in a process of its own."""
    script = """
import json, sys
from disa.rewards.maths import MathsVerifier
def verdict(gold, answer):
    try: return str(verifier.check([gold], ["\\\\boxed{" + answer + "}"])[0])
    except Exception: return "exception"
if __name__ == "__main__":
    verifier = MathsVerifier()
    kinds = json.load(sys.stdin)
    print(json.dumps({kind: [verdict(*pair) for pair in pairs] for kind, pairs in kinds.items()}))
"""
    asked = json.dumps({kind: [row[:2] for row in rows] for kind, rows in KINDS.items()})
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", script], input=asked, capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout)


def _counted(answers: list[tuple[str, str, str]], found: list[list[str]]) -> list[int]:
    """How many are right and not, then false accepts, false rejects and undecided ones, by each verifier."""
    right = [verdict == "correct" for *_, verdict in answers]
    accepts = [sum(v == "correct" and not r for v, r in zip(verdicts, right, strict=True)) for verdicts in found]
    rejects = [sum(v == "wrong" and r for v, r in zip(verdicts, right, strict=True)) for verdicts in found]
    undecided = [sum(v not in ("correct", "wrong") for v in verdicts) for verdicts in found]
    return [sum(right), len(right) - sum(right), *accepts, *rejects, *undecided]


def upper_bound(hits: int, trials: int) -> float:
    """Clopper-Pearson 95% upper bound of a rate."""
    from scipy.stats import beta

    return float(beta.ppf(0.95, hits + 1, trials - hits)) if hits < trials else 1.0


def plain_math_verify(gold: Gold, answer: str) -> bool:
    """What math-verify says by itself, in this process, with its own time limits."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    with contextlib.suppress(Exception):
        return bool(verify(parse(f"${gold.answer.replace('$', '')}$"), parse(boxed(answer))))
    return False


def hostile() -> list[str]:
    """Hostile answers between honest ones."""
    lines = [
        "| kind | answers | correct | wrong | undecided | slowest (s) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    golds = ["42", r"\sqrt{2}", "x+1", "(1,2)"]
    honest = ["42", r"\frac{2}{\sqrt{2}}", "1+x", "(1,2)"]
    kept = 0
    verifier = MathsVerifier()
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder, "ran")
        verifier.check(golds, [boxed(text) for text in honest])
        for kind, answers in HOSTILE.items():
            verdicts, slowest = [], 0.0
            for number, text in enumerate(answer.replace("MARKER", str(marker)) for answer in answers):
                start = time.perf_counter()
                verdicts += verifier.check([golds[number % 4]], [boxed(text)])
                slowest = max(slowest, time.perf_counter() - start)
                # An honest answer each side of it, in one call.
                around = verifier.check(golds[1:2] * 3, [boxed(honest[1]), boxed(text), boxed(honest[1])])
                kept += around[0] == around[2] == Verdict.CORRECT
            counts = Counter(verdicts)
            lines.append(
                f"| {kind} | {len(answers)} | {counts['correct']} | {counts['wrong']} | {counts['undecided']} "
                f"| {slowest:.2f} |"
            )
        counts = dict(sorted((str(how), count) for how, count in verifier.counts.items()))
        code_ran = "yes" if marker.exists() else "no"
    total = sum(map(len, HOSTILE.values()))
    return [
        *lines,
        "",
        f"{total} answers, each alone and once between two honest ones: honest ones judged correct {kept} of {total} "
        f"times; the parent survived; injected code ran: {code_ran}. Counts: {counts}.",
    ]


def throughput(folder: Path, seed: int) -> list[str]:
    """Checks a second and processor time a check: MATH-500's problems, four different completions each."""
    rng = random.Random(seed)
    golds = [gold for _, gold in rows(folder, "math500") if gold]
    asked, answers = [], []
    for gold in golds:
        wrong = [text for make in NEAR_MISSES.values() if (text := make(gold, rng)) is not None]
        asked += [gold] * 4
        answers += [gold.answer, respell(gold), rng.choice(wrong or ["0"]), rng.choice(golds).answer]
    completions = [boxed(text) for text in answers]
    order = rng.sample(range(len(asked)), len(asked))
    asked, completions = [asked[i] for i in order], [completions[i] for i in order]
    verifier = MathsVerifier()
    used = time.process_time()
    verifier.check(asked, completions)
    used = time.process_time() - used
    return [
        f"{len(asked)} checks of MATH-500's {len(golds)} problems (the gold answer, a respelling of it, a near-miss, "
        f"another problem's answer), one thread, load average {os.getloadavg()[0]:.1f}: "
        f"**{len(asked) / used:.0f} checks per second of processor time**; undecided: {verifier.counts['undecided']}.",
    ]


def main() -> None:
    """Measure, print, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("DISA_DATA", "data")) / "maths"
    parser.add_argument("--data", type=Path, default=default, help="folder of the JSON Lines files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--before", metavar="COMMIT", help="judge the answers of every kind by an earlier commit too")
    parser.add_argument(
        "--only", choices=("gold", "kinds", "near", "hostile", "speed"), help="measure and rewrite one part"
    )
    parser.add_argument("--page", type=Path, default=Path("docs/verifiers-maths.md"), help="page with the markers")
    options = parser.parse_args()
    parts = {
        "gold": lambda: gold_against_gold(options.data),
        "kinds": lambda: kinds(options.before),
        "near": lambda: near_misses(options.data, options.seed),
        "hostile": lambda: hostile(),
        "speed": lambda: throughput(options.data, options.seed),
    }
    for name, measure in parts.items():
        if options.only in (None, name):
            text = "\n".join(measure())
            print(text, flush=True)
            fill(f"maths_verifier {name}", text, options.page)


if __name__ == "__main__":
    main()
