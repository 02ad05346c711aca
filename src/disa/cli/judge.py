"""``disa judge``: how many strategies a model's correct solutions use, and how far the judge can be trusted."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from disa.cli.evaluate import checked_server
from disa.errors import DisaError
from disa.evaluation.judge import Judge, JudgeCost, StrategyVerdict
from disa.evaluation.judge_agreement import judge_agreement
from disa.evaluation.metrics import summarise_metrics, summary_to_json
from disa.evaluation.paired_tests import compare_evaluations
from disa.evaluation.solutions import SolutionGroup, correct_solutions, diversity_values, labelled_pairs, verdict_rows
from disa.evaluation.strategies import PairVerdict
from disa.evaluation.tables import summary_text
from disa.lm.openai_client import Endpoint, OpenAIClient, check_request
from disa.runs.folders import write_json
from disa.runs.locks import exclusive
from disa.runs.parquet_rows import write_rows

_METRICS = ("simpson", "effective_strategies", "self_bleu", "vendi")


def judge(options: argparse.Namespace) -> int:
    """Estimate the cost, ask, judge; print the table (or with ``--json`` the results) and write the files."""
    if options.evaluation is None and options.calibration is None:
        raise DisaError("nothing to judge", where="command line", fix="give DIR, --calibration, or both")
    if options.calibration is not None and options.judge is None:
        raise DisaError("--calibration measures a judge", where="command line", fix="give --judge openai:URL#MODEL")
    groups: list[SolutionGroup] = []
    baseline = ""
    if options.evaluation is not None:
        groups, baseline = correct_solutions(
            Path(options.evaluation), most=options.solutions, limit=options.limit, seed=options.seed
        )
    labelled = labelled_pairs(Path(options.calibration)) if options.calibration is not None else []
    output = Path(options.output)
    with exclusive(output), contextlib.redirect_stdout(sys.stderr):  # progress must not mix with --json
        server = checked_server(options)
        judge = _judge(options, output, server) if options.judge is not None else None
        verdicts: list[dict[tuple[int, int], StrategyVerdict]] = []
        results: dict[str, Any] = {"evaluation": options.evaluation, "solutions": options.solutions}
        if judge is not None:
            results["judge"] = {"endpoint": options.judge, "mode": options.mode, "temperature": options.temperature}
            if not _agreed(judge, groups, labelled, options):
                return 0
            if groups:
                verdicts = _ask(judge, [(g.prompt.prompt, g.texts) for g in groups], options.mode, "strategies")
            rows = [row for group, found in zip(groups, verdicts, strict=True) for row in verdict_rows(group, found)]
            write_rows(output / "verdicts.parquet", rows, PairVerdict)
        if labelled and judge is not None:
            found = _ask(judge, [(p, [a, b]) for p, a, b, _ in labelled], "pairs", "calibration")
            results["calibration"] = dataclasses.asdict(
                judge_agreement([label for *_, label in labelled], [v[0, 1] for v in found])
            )
        table = ""
        if groups:
            values = diversity_values(groups, verdicts)
            summary = summarise_metrics(values, average=True)
            comparisons = compare_evaluations(values, baseline, _METRICS)
            results |= {"summary": summary_to_json(summary), "comparisons": [c.as_json() for c in comparisons]}
            table = summary_text(summary, comparisons, detail=True)
        table = "\n\n".join(part for part in (table, _calibration_text(results.get("calibration"))) if part)
        write_json(output / "judge.json", results)
        (output / "judge.txt").write_text(table + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1) if options.json else f"{table}\n\nresults: {output / 'judge.json'}")
    return 0


def _judge(options: argparse.Namespace, output: Path, server: dict[str, Any]) -> Judge:
    client = OpenAIClient(Endpoint.parse(options.judge), **server)
    return Judge(
        client,
        output / "cache",
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        request=check_request(options.request),
    )


def _agreed(judge: Judge, groups: list[SolutionGroup], labelled: list[Any], options: argparse.Namespace) -> bool:
    """Print what it will cost, and whether to start."""
    costs = [
        judge.cost([(g.prompt.prompt, g.texts) for g in groups], options.mode),
        judge.cost([(p, [a, b]) for p, a, b, _ in labelled], "pairs"),
    ]
    total = JudgeCost(*(sum(getattr(c, f.name) for c in costs) for f in dataclasses.fields(JudgeCost)))
    print(
        f"{total.requests} requests ({total.cached} more are in the cache): about {total.prompt_tokens} prompt tokens, "
        f"at most {total.completion_tokens} completion tokens; answers that cannot be read are asked for again"
    )
    if options.price is not None:
        print(f"at these prices at most {_price(options.price, total):.2f}")
    if options.dry_run:
        return False
    if total.requests == 0 or options.yes:
        return True
    if not sys.stdin.isatty():
        raise DisaError("not started", where="disa judge", fix="add --yes to start, --dry-run for the estimate alone")
    return input("start? [y/N] ").strip().lower() in ("y", "yes")


def _price(text: str, cost: JudgeCost) -> float:
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError as error:
        raise DisaError(f"found '{text}'", where="--price", fix="write --price 0.15,0.60") from error
    return (cost.prompt_tokens * prompt + cost.completion_tokens * completion) / 1e6


def _ask(judge: Judge, questions: list[Any], mode: str, title: str) -> list[dict[tuple[int, int], StrategyVerdict]]:
    from disa.runs.progress import progress_bar

    cost = judge.cost(questions, mode)
    with progress_bar() as bar:
        row = bar.add_task(title, total=cost.requests + cost.cached)
        return judge.judge(questions, mode, lambda: bar.advance(row))


def _calibration_text(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return ""
    decided = calibration["pairs"] - sum(calibration["abstained"].values())
    lines = [f"judge against labels: {calibration['pairs']} pairs, {decided} with a verdict"]
    for name in ("accuracy", "kappa"):
        if calibration[name] is not None:
            low, high = calibration[f"{name}_interval"]
            lines.append(f"{name} {calibration[name]:.3f} [{low:.3f}, {high:.3f}]")
    lines += [f"abstained, {reason}: {count}" for reason, count in calibration["abstained"].items()]
    return "\n".join(lines)
