"""Parser and error handling of the ``disa`` command; torch is imported only once a stage works."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from disa import __version__
from disa.cli.evaluation_arguments import add_evaluate, add_judge
from disa.errors import DisaError
from disa.stages import STAGES

_SUMMARIES = {
    "tasks": "write the prompts of every split",
    "warmup": "make reference and proposal by supervised training",
    "proposals": "draw trajectories offline",
    "scoring": "log-probabilities under both models, and rewards",
    "partition": "estimate log Z with intervals and flags",
    "anchor": "freeze the estimates with their fingerprint",
    "training": "train the policies",
    "evaluation": "sample and judge reference and policies",
    "report": "tables, figures and one HTML page",
}

_GROUPS = {
    "run a recipe": ["init", "check", "plan", "run", "watch"],
    "look at what came out": ["inspect", "evaluate", "judge"],
    "compare and study": ["compare", "study"],
    "one stage alone, its inputs being finished": list(STAGES),
    "elsewhere": ["verl", "import-gguf", "schema"],
}
"""Commands as ``disa --help`` shows them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 the user can fix it, 1 a bug, 130 interrupted."""
    options = _parser().parse_args(arguments)
    module, _, function = options.command.partition(":")
    try:
        return getattr(importlib.import_module(f"disa.cli.{module}"), function)(options)
    except KeyboardInterrupt as interrupt:
        kept = f"{interrupt}; " if str(interrupt) else ""
        print(f"disa: interrupted; {kept}run the same command to continue", file=sys.stderr)
        return 130
    except Exception as error:
        if fixable := _fixable(error):
            if options.debug:
                traceback.print_exc()
            print(f"disa: {' '.join(str(fixable).split())}", file=sys.stderr)
            return 2
        if options.debug:
            raise
        print(f"disa: internal error, {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        print("disa: run again with --debug for the traceback", file=sys.stderr)
        return 1


def _fixable(error: Exception) -> DisaError | None:
    """The error as its user should read it, None where it is a bug."""
    if isinstance(error, DisaError):
        return error
    if isinstance(error, OSError) and error.strerror:
        # A file that the system refuses to read or write, or a full disk, whichever stage met it.
        place = str(error.filename or "")
        return DisaError(error.strerror, where=place, fix="check the path, its permissions, and the free space")
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="disa",
        usage="disa [-h] COMMAND ...",
        description="Post-train language models to match a reward-shaped distribution over solutions.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"disa {__version__}")
    commands = parser.add_subparsers(prog="disa", required=True, metavar="COMMAND", help=argparse.SUPPRESS)

    def command(name: str, does: str, summary: str, *, recipe: bool = True, **defaults: Any) -> Any:
        """Add a command that calls the function ``does``; most read a recipe."""
        own = commands.add_parser(name, help=summary)
        own.set_defaults(command=does, **defaults)
        own.add_argument("--debug", action="store_true", help="show tracebacks")
        if recipe:
            own.add_argument("recipe", metavar="RECIPE.yaml", help="recipe file; recipes/ has examples")
            own.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="STAGE.KEY=VALUE",
                dest="overrides",
                help="override one setting, for example training.inverse_temperature=8; may be repeated",
            )
        return own.add_argument

    add = command("run", "run:run_stages", "run a recipe from tasks to report, continuing where it stopped", only=None)
    add("--until", choices=STAGES, default=STAGES[-1], metavar="STAGE", help="last stage to run")
    add("--on", metavar="ray[:ADDRESS]", help="draw and score on a Ray cluster")

    for name in STAGES:
        command(name, "run:run_stages", f"one stage: {_SUMMARIES[name]}", until=name, only=name, on=None)

    command("check", "check:check", "what a run would refuse, in seconds: reward, models, prompts, sizes")

    add = command("init", "init:init", "write a commented recipe for a model and a data set", recipe=False)
    add("--model", required=True, metavar="FOLDER|HUB_ID", help="the reference")
    add("--proposal", metavar="FOLDER|HUB_ID", help="a stronger model of the same family")
    add("--dataset", required=True, metavar="FILE|HUB_ID|NAME", help=".jsonl or .parquet, hub id, benchmark or puzzle")
    add("--verifier", metavar="NAME", help="maths (default), code, exact, or FILE.py:FUNCTION")
    add("--output", default="recipe.yaml", metavar="FILE.yaml", help="where to (recipe.yaml)")

    command("schema", "init:schema", "print the JSON schema of a recipe, for editors", recipe=False)

    add = command("study", "study:study", "error of log Z by proposal strength, inverse temperature and size")
    add("--page", metavar="FILE.md", help="put tables and figures between this page's study markers")

    add = command("inspect", "inspect:inspect", "verdict on a run directory or an anchor", recipe=False)
    add("path", metavar="RUN|ANCHOR", help="run directory, or anchor folder")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--figures", metavar="DIR", help="draw the anchor's figures into this folder")
    betas = "log Z, mean reward and KL of the target at these too; no new trajectories are needed"
    add("--inverse-temperature", type=_numbers, metavar="B,B", help=betas)

    add = command("compare", "compare:compare", "methods x seeds from one recipe, side by side, continuing")
    add("--methods", metavar="NAME,...", help="work on these methods of the recipe only")
    add("--seeds", metavar="N,...", help="work on these seeds of the recipe only")
    add("--table", action="store_true", help="do no work: the table of what is finished")

    evaluate = commands.add_parser("evaluate", help="Mean@k and pass@k of any models on tasks, side by side")
    add_evaluate(evaluate)
    evaluate.set_defaults(command="evaluate:evaluate")

    judge = commands.add_parser("judge", help="diversity of correct solutions, with a language model as judge")
    add_judge(judge)
    judge.set_defaults(command="judge:judge")

    add = command("plan", "plan:plan", "tokens, operations, memory and time of every stage, here and on a cluster")
    add("--gpus", type=int, metavar="N", help="also plan for a cluster of N GPUs")
    add("--gpu", choices=("a100", "h100", "h200"), default="h100", help="their kind (h100)")
    shares = "shares of the GPUs' peak that are reached (0.35 0.05)"
    add("--utilisation", type=_share, nargs=2, metavar=("PASSES", "DECODING"), help=shares)
    add("--against", metavar="RUN", help="compare with the times of a finished run")
    add("--json", action="store_true", help="print one JSON object instead")

    add = command("verl", "verl:train", "train a recipe's policy with verl on a Ray cluster")
    add("--anchor", metavar="DIR", help="anchor folder; by default the run's 5_anchor")
    add("--check", action="store_true", help="check and write the configuration, but start nothing")
    add("--export", metavar="DIR", help="start nothing: write the last checkpoint, in float32")

    add = command("import-gguf", "import_gguf:import_gguf", "a GGUF file as a Hugging Face folder", recipe=False)
    add("file", metavar="FILE.gguf", help="quantised weights with their tokenizer")
    add("folder", metavar="FOLDER", help="where to; must not exist")
    add("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of the weights (bfloat16)")
    add("--stop", action="append", default=[], metavar="TOKEN", help="ends a completion too; may be repeated")

    add = command("watch", "watch:watch", "a run's stages in the terminal, live", recipe=False)
    add("run", metavar="RUN", help="run directory")
    add("--once", action="store_true", help="print the state once")
    add("--every", type=float, default=2.0, metavar="S", help="seconds between looks (2)")
    parser.epilog = _grouped(commands)
    return parser


def _grouped(commands: argparse._SubParsersAction) -> str:
    """The commands by what they are for, each with its line of help."""
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    named = [name for names in _GROUPS.values() for name in names]
    groups = _GROUPS | {"more": [name for name in helps if name not in named]}
    lines = {title: [f"  {name:<12}{helps[name]}" for name in names] for title, names in groups.items() if names}
    blocks = ["\n".join([f"{title}:", *found]) for title, found in lines.items()]
    return "\n\n".join(blocks)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and up to 1")
    return value


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


_numbers.__name__ = "list of numbers"  # argparse puts it into its message
