"""From an evaluation's correct solutions to measures of their diversity."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

from disa.errors import DisaError
from disa.evaluation.judge import StrategyVerdict
from disa.evaluation.judge_protocol import DIFFERENT, SAME
from disa.evaluation.lexical import self_bleu, vendi_score
from disa.evaluation.metrics import Values, without_idle_bounds
from disa.evaluation.strategies import PairVerdict, strategy_metrics
from disa.runs.folders import read_json
from disa.runs.parquet_rows import read_rows
from disa.runs.records import EvaluationRecord, Prompt
from disa.tasks.task import chosen_prompts


@dataclasses.dataclass(frozen=True)
class SolutionGroup:
    """Correct solutions of one model to one problem."""

    model: str
    task: str
    prompt: Prompt
    samples: list[EvaluationRecord]

    @property
    def texts(self) -> list[str]:
        """The solutions, whole."""
        return [s.completion for s in self.samples]


def correct_solutions(folder: Path, *, most: int, limit: int | None, seed: int) -> tuple[list[SolutionGroup], str]:
    """Correct solutions of every problem and model of an evaluation, and the model the others are compared with.

    ``folder`` is what ``disa evaluate`` wrote. There are at most ``most`` solutions of a problem and model, and at most
    ``limit`` problems of a task, chosen by ``seed``.
    """
    results = read_json(folder / "results.json", missing="no evaluation has finished here")
    groups = []
    for task in results["tasks"]:
        prompts = chosen_prompts(read_rows(folder / "samples" / task / "problems.parquet", Prompt), limit, seed)
        for model in results["order"]:
            correct = defaultdict(list)
            for sample in read_rows(folder / "samples" / task / model, EvaluationRecord):
                if sample.correct:
                    correct[sample.prompt_id].append(sample)
            for prompt in prompts:
                # Draws are exchangeable: the first ones are as good a choice as any.
                samples = sorted(correct[prompt.prompt_id], key=lambda s: s.draw)[:most]
                groups.append(SolutionGroup(model, task, prompt, samples))
    return groups, results["baseline"]


def labelled_pairs(path: Path) -> list[tuple[str, str, str, str]]:
    """Read (problem, first, second, label) from a JSONL file of objects with these fields."""
    if not path.is_file():
        raise DisaError("file not found", where=str(path), fix="check the path")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts = [row[name] for name in ("problem", "first", "second", "label")]
            usable = all(isinstance(text, str) for text in texts) and texts[3] in (SAME, DIFFERENT)
        except (ValueError, KeyError, TypeError):
            usable = False
        if not usable:
            problem = f"expected problem, first, second (texts) and label ('{SAME}' or '{DIFFERENT}')"
            raise DisaError(problem, where=f"{path}, line {number}", fix="correct the line")
        rows.append(tuple(texts))
    if not rows:
        raise DisaError("holds no labelled pair", where=str(path), fix="add at least one line")
    return rows


def verdict_rows(group: SolutionGroup, verdicts: dict[tuple[int, int], StrategyVerdict]) -> list[PairVerdict]:
    """Verdicts on a group's pairs, as they are written to disk."""
    draws = [s.draw for s in group.samples]
    return [
        PairVerdict(group.model, group.task, group.prompt.prompt_id, draws[i], draws[j], v.value, v.reason)
        for (i, j), v in verdicts.items()
    ]


def diversity_values(groups: list[SolutionGroup], verdicts: list[dict[tuple[int, int], StrategyVerdict]]) -> Values:
    """Measures of diversity by problem; one with fewer than two correct solutions defines none.

    ``verdicts`` on each group's pairs may be empty: only the lexical measures are then taken.
    """
    values: Values = {}
    for number, group in enumerate(groups):
        found = {"judged_solutions": float(len(group.samples))}
        if len(group.samples) > 1:
            lexical = {"self_bleu": self_bleu(group.texts), "vendi": vendi_score(group.texts)}
            found |= {name: value for name, value in lexical.items() if value is not None}
            if verdicts:
                found |= strategy_metrics(verdicts[number].values(), len(group.samples))
        metrics = values.setdefault(group.model, {}).setdefault(group.task, {})
        for name, value in found.items():
            metrics.setdefault(name, {})[group.prompt.prompt_id] = value
    return without_idle_bounds(values, missing="abstained")
