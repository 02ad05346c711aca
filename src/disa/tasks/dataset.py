"""Rows of data sets as a task: splits without overlap, and a verifier chosen by name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.runs.files import file_digest
from disa.runs.provenance import digest
from disa.runs.records import Prompt
from disa.tasks.benchmarks import BENCHMARKS, rows_digest, verify_benchmark
from disa.tasks.dataset_config import DatasetConfig, SourceConfig
from disa.tasks.judges import AnswerJudge, make_judge
from disa.tasks.overlap import normalised_problem, overlap_counts, remove_overlaps
from disa.tasks.rows import RowProblem, read_problem
from disa.tasks.sources import RawSource, label_of, read_source
from disa.tasks.task import SPLITS, DataReport, Task, chosen_prompts, read_payload


class DatasetTask(Task):
    """Fixed problems with gold answers or tests. How many solutions there are is unknown."""

    name = "dataset"
    version = 2
    config: DatasetConfig

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name, version, and a digest of what prompts and gold answers are made of: the sources, however divided.

        Local files enter by content, wherever they lie; a data set on the hub by its name and revision.
        """
        sources = [
            source.model_dump(mode="json", exclude={"use", "path"})
            | {"content": source.path and _digest_of(Path(source.path))}
            for source in self.config.sources
        ]
        return f"{self.name}:{self.version}:{digest(sources)}"

    @functools.cached_property
    def reward_range(self) -> tuple[float, float]:  # type: ignore[override]  # computed where others state it
        """Smallest range that holds those of all verifiers."""
        ranges = [judge.reward_range for judge in self._judges.values()]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    @property
    def reward_fingerprint(self) -> str:
        """Verifiers and range of the reward."""
        judges = sorted(judge.fingerprint for judge in self._judges.values())
        return f"{self.name}:{'+'.join(judges)}{list(self.reward_range)}"

    @functools.cached_property
    def has_modes(self) -> bool:  # type: ignore[override]  # likewise
        """Whether every verifier names the mode of a correct completion."""
        return all(judge.mode is not None for judge in self._judges.values())

    @property
    def alphabet(self) -> str:
        """Every character of the prompts and of the worked solutions."""
        texts = [row.prompt for rows in self._all_prompts.values() for row in rows]
        return "".join(sorted(set().union(*texts, *self._solutions)))

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """Rewards of many completions, each verifier seeing its share at once; None where one is undecided."""
        result: list[float | None] = [None] * len(prompts)
        read = [read_payload(prompt, "verifier", "pattern", "gold") for prompt in prompts]
        for key in dict.fromkeys((verifier, pattern) for verifier, pattern, _ in read):
            at = [i for i, (verifier, pattern, _) in enumerate(read) if (verifier, pattern) == key]
            if key not in self._judges:
                raise DisaError(
                    f"no source of this task has verifier {key[0]} with pattern {key[1]}",
                    where=f"prompt {prompts[at[0]].prompt_id}, field payload",
                    fix="judge the prompts with the recipe they were made by",
                )
            judged = self._judges[key](
                [read[i][2] for i in at], [prompts[i].prompt for i in at], [completions[i] for i in at]
            )
            for i, reward in zip(at, judged, strict=True):
                result[i] = reward
        return result

    def reward(self, prompt: Prompt, completion: str) -> float | None:
        """Reward of one completion."""
        return self.rewards([prompt], [completion])[0]

    def mode(self, prompt: Prompt, completion: str) -> str | None:
        """What the verifier calls this kind of solution, None where it names none."""
        verifier, pattern, gold = read_payload(prompt, "verifier", "pattern", "gold")
        named = self._judges[verifier, pattern].mode if self.has_modes else None
        return None if named is None else named(gold, prompt.prompt, completion)

    def demonstration(self, prompt: Prompt, rng: random.Random, *, noisy: bool) -> str:
        """The row's worked solution; a noisy one is that of a random other row."""
        (solution,) = read_payload(prompt, "solution")
        if solution is None:
            raise DisaError(
                "the row has no worked solution to learn from",
                where=f"prompt {prompt.prompt_id}",
                fix="name its column in columns: {solution: ...}, or give models instead of a warmup section",
            )
        return rng.choice(self._solutions) if noisy else solution

    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of one split.

        Raises DisaError where a source cannot be read, a row lacks something, or rows are not those of the benchmark
        named.
        """
        return self._all_prompts[split]

    def examples(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """One prompt for each verifier."""
        return list({read_payload(prompt, "verifier"): prompt for prompt in prompts}.values())

    def data_report(self) -> DataReport:
        """Sources with what vouches for them, and every row that was left out, with the row it repeats."""
        return self._read[1]

    @functools.cached_property
    def _judges(self) -> dict[tuple[str, str | None], AnswerJudge]:
        arithmetic: dict[tuple[str, str | None], bool] = {}
        for source in self.config.sources:
            key = _verifier(source), source.answer_pattern
            entry = BENCHMARKS.get(source.benchmark or "")
            arithmetic[key] = arithmetic.get(key, True) and entry is not None and entry.arithmetic
        return {
            (verifier, pattern): make_judge(
                verifier,
                pattern,
                arithmetic=steps,
                workers=self.config.verifier_workers,
                reward_range=self.config.reward_range,
                messages=self.config.reward_messages,
            )
            for (verifier, pattern), steps in arithmetic.items()
        }

    @property
    def _all_prompts(self) -> dict[str, list[Prompt]]:
        return self._read[0]

    @functools.cached_property
    def _solutions(self) -> list[str]:
        rows = [row for rows in self._all_prompts.values() for row in rows]
        return [solution for row in rows if (solution := read_payload(row, "solution")[0]) is not None]

    @functools.cached_property
    def _read(self) -> tuple[dict[str, list[Prompt]], DataReport]:
        """Prompts by split, and the report."""
        splits: dict[str, list[RowProblem]] = {split: [] for split in SPLITS}
        sources: list[dict[str, Any]] = []
        unread: list[str] = []
        for source in self.config.sources:
            raw = read_source(source)
            problems, incomplete = _problems(source, raw)
            sources.append(_source_facts(source, raw, problems) | {"incomplete": len(incomplete)})
            unread += incomplete
            for problem in filter(lambda problem: problem.kept, problems):
                splits[self._split_of(source, problem)].append(problem)
        left, found = remove_overlaps(splits, self.config.overlap)
        prompts = {
            split: chosen_prompts([_prompt(split, p) for p in rows], self.config.limit(split), self.config.seed)
            for split, rows in left.items()
        }
        over_limit = {split: len(left[split]) - len(rows) for split, rows in prompts.items()}
        facts = {
            "sources": sources,
            "overlap": {"match": self.config.overlap} | overlap_counts(found),
            "over_limit": {split: count for split, count in over_limit.items() if count},
            "prompts_by_source": _by_source(prompts),
        }
        return prompts, DataReport(facts, {"overlap": [dataclasses.asdict(o) for o in found], "incomplete": unread})

    def _split_of(self, source: SourceConfig, problem: RowProblem) -> str:
        """The source's split; of a hashed source, a function of the problem alone, so that copies stay together."""
        entry = BENCHMARKS.get(source.benchmark or "")
        use = source.use or (entry.use if entry else "hash")
        if use != "hash":
            return use
        key = f"{self.config.seed}\0{normalised_problem(problem.text)}"
        number = int(hashlib.sha256(key.encode()).hexdigest(), 16) / 2**256
        for split in ("heldout", "validation", "warmup"):
            share = getattr(self.config, f"{split}_share")
            if number < share:
                return split
            number -= share
        return "train"


def _verifier(source: SourceConfig) -> str:
    return source.verifier or BENCHMARKS[source.benchmark or ""].verifier


def _digest_of(path: Path) -> str | None:
    """A missing file has none: reading it says so later, where it matters."""
    return file_digest(path) if path.is_file() else None


def _prompt(split: str, problem: RowProblem) -> Prompt:
    payload = {
        "source": problem.source,
        "row": problem.row_id,
        "verifier": problem.verifier,
        "pattern": problem.pattern,
        "gold": problem.gold,
        "solution": problem.solution,
    }
    return Prompt(problem.prompt_id, DatasetTask.name, split, problem.prompt, json.dumps(payload), None)


def _problems(source: SourceConfig, raw: RawSource) -> tuple[list[RowProblem], list[str]]:
    """Rows read under their mapping, and what is wrong with those left out."""
    problems, incomplete = [], []
    for row in raw.rows:
        try:
            problems.append(read_problem(source, row))
        except DisaError as error:
            if not source.drop_incomplete:
                raise
            incomplete.append(f"{error.where}: {error.problem}")
    return problems, incomplete


def _source_facts(source: SourceConfig, raw: RawSource, problems: list[RowProblem]) -> dict[str, Any]:
    """Where a source came from and what vouches for its rows."""
    label = label_of(source)
    if not problems:
        raise DisaError("no complete rows", where=label, fix="name a file or a split that has some, and its columns")
    found = rows_digest(problem.canonical for problem in problems)
    facts: dict[str, Any] = {"source": label, "rows": len(problems), "digest": found, "files": raw.files}
    if source.keep:
        facts["kept"] = sum(problem.kept for problem in problems)
        if not facts["kept"]:
            fix = "name values that the columns hold"
            raise DisaError(f"no row is kept of {len(problems)}", where=f"{label}, field keep", fix=fix)
    if source.path is not None:
        facts["path"] = source.path
    if source.benchmark is None:
        return facts | {"hub": source.hub, "revision": source.revision, "checked": "no benchmark named"}
    entry = BENCHMARKS[source.benchmark]
    checked = verify_benchmark(
        source.benchmark, raw.files, len(problems), found, from_hub=source.path is None, where=f"benchmark {label}"
    )
    return facts | {"hub": entry.hub, "revision": entry.revision, "licence": entry.licence, "checked": checked}


def _by_source(prompts: dict[str, list[Prompt]]) -> dict[str, dict[str, int]]:
    counts = {split: Counter(read_payload(row, "source")[0] for row in rows) for split, rows in prompts.items()}
    return {split: dict(count) for split, count in counts.items() if count}
