"""Options of ``disa evaluate`` and ``disa judge``; apart from the commands so that ``--help`` loads nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Options of ``disa evaluate``."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="model folder, hub id, PEFT adapter folder, or openai:http://HOST:PORT/v1#MODEL (key from OPENAI_API_KEY)",
    )
    what = parser.add_argument_group("what is asked (--task may be repeated)")
    what.add_argument("--task", action=_NewTask, metavar="NAME", help="task, for example countdown or math500")
    what.add_argument("--data", action=_TaskOption, metavar="PATH", help="file or hub id of the task before it")
    what.add_argument(
        "--option", action=_TaskOption, metavar="KEY=VALUE", help="setting of the task before it; may be repeated"
    )
    what.add_argument("--recipe", metavar="RECIPE.yaml", help="task and sampling of a recipe")
    what.add_argument(
        "--set", action="append", default=[], metavar="STAGE.KEY=VALUE", dest="overrides", help="override in the recipe"
    )
    what.add_argument("--split", default="heldout", help="split that is evaluated (default: heldout)")
    what.add_argument("--limit", type=_positive, metavar="N", help="only N problems, chosen by the seed")
    how = parser.add_argument_group("how completions are drawn (defaults: the recipe's, else those shown)")
    how.add_argument("--samples", type=_positive, metavar="N", help="completions of each problem (8)")
    how.add_argument("--ks", metavar="K,K", help="the k of Mean@k and pass@k (1 and the number of samples)")
    how.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (1.0)")
    how.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling (1.0)")
    how.add_argument("--max-tokens", type=_positive, metavar="N", help="length limit (1024)")
    how.add_argument("--seed", type=int, metavar="N", help="seed of draws and --limit (0)")
    how.add_argument("--prompt-format", choices=("auto", "chat", "text"), help="auto: chat where there is a template")
    how.add_argument("--system-prompt", metavar="TEXT", help="system message in front")
    how.add_argument("--request", metavar="JSON", help="further fields of requests to endpoints")
    precisions = ("checkpoint", "float32", "bfloat16")
    how.add_argument("--compute", choices=precisions, help="precision of local models (checkpoint)")
    speed = parser.add_argument_group("speed; changes no result")
    speed.add_argument("--batch-size", type=_positive, metavar="N", help="completions at once, local models (64)")
    speed.add_argument(
        "--problems-per-part",
        type=_positive,
        metavar="N",
        help="problems written together (16, or what a batch needs)",
    )
    add_server(speed)
    results = parser.add_argument_group("results")
    results.add_argument("--output", required=True, metavar="DIR", help="samples, tables and JSON; continues there")
    results.add_argument("--baseline", metavar="NAME", help="model the others are compared with (the first)")
    results.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Options of ``disa judge``."""
    parser.add_argument(
        "evaluation", nargs="?", metavar="DIR", help="output of disa evaluate; left out: calibrate only"
    )
    parser.add_argument("--judge", metavar="openai:URL#MODEL", help="judging model; left out: lexical measures only")
    parser.add_argument("--output", required=True, metavar="DIR", help="verdicts, cache and results; continues there")
    parser.add_argument("--mode", choices=("pairs", "labels"), default="pairs", help="ask for each pair, or for labels")
    parser.add_argument("--solutions", type=_positive, default=6, metavar="N", help="correct solutions per problem (6)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only N problems of each task, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice (0)")
    parser.add_argument("--calibration", metavar="FILE.jsonl", help="labelled pairs to measure the judge on")
    parser.add_argument("--max-tokens", type=_positive, default=1024, metavar="N", help="limit of an answer (1024)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="temperature of the judge (0)")
    parser.add_argument("--request", metavar="JSON", help="further fields of every request, such as response_format")
    parser.add_argument("--price", metavar="IN,OUT", help="prices of a million tokens, for the estimate")
    parser.add_argument("--dry-run", action="store_true", help="print the cost estimate and stop")
    parser.add_argument("--yes", action="store_true", help="start without asking")
    add_server(parser.add_argument_group("server"))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def add_server(group: Any) -> None:
    """How a served model is reached."""
    group.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds of one try (600)")
    group.add_argument("--attempts", type=_positive, default=6, metavar="N", help="tries of one request (6)")
    group.add_argument("--concurrency", type=_positive, default=8, metavar="N", help="requests at once (8)")
    group.add_argument("--stream", action="store_true", help="receive completions piece by piece")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "whole number from 1 on"  # argparse puts it into its message


class _NewTask(argparse.Action):
    """``--task NAME`` opens a task: ``options.tasks`` is a list of (name, its options)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        tasks = getattr(namespace, "tasks", None) or []
        namespace.tasks = [*tasks, (values, {})]


class _TaskOption(argparse.Action):
    """``--data`` and ``--option`` belong to the task before them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not getattr(namespace, "tasks", None):
            parser.error(f"{option_string} needs a --task before it")
        key, separator, value = ("data", "=", values) if option_string == "--data" else values.partition("=")
        if not key or not separator:
            parser.error(f"{option_string} {values}: write KEY=VALUE")
        namespace.tasks[-1][1][key] = value
