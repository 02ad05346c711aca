"""A recipe: one frozen configuration model per stage, read from YAML, with overrides by path."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError, model_validator

from disa.config import StageConfig, speed_only, types_in_annotation
from disa.errors import DisaError
from disa.evaluation.config import EvaluationConfig
from disa.lm.sampling_config import SamplingConfig
from disa.partition.config import PartitionConfig
from disa.proposals.config import ProposalsConfig
from disa.scoring.config import ScoringConfig
from disa.tasks import TASKS, TaskSection
from disa.training.config import TrainingConfig
from disa.warmup.config import WarmupConfig

Section = TypeVar("Section", bound=StageConfig)


class ModelsConfig(StageConfig):
    """The two given models; leave both out to let the warm-up make them."""

    reference: str | None = None
    """Folder or hub id of the frozen reference."""
    proposal: str | None = None
    """Folder or hub id of the proposal; null draws every trajectory from the reference."""
    device_map: str | dict[str, int | str] | None = speed_only(None)
    """How a model that one device cannot hold is spread for proposals, scoring and evaluation, as ``from_pretrained``
    takes it (``auto``); null puts a whole model on one device. Training spreads weights by its launch."""


PRETRAINED_LENGTH = 1024
"""Default of ``sampling.max_completion_length`` where models are given."""


def pretrained_rate(lora: bool) -> float:
    """Default of ``training.learning_rate`` where models are given: TRL's for GRPO, and more with adapters."""
    return 2e-5 if lora else 1e-6


class Recipe(StageConfig):
    """Everything a run depends on. Sections are the stages, in pipeline order."""

    run_dir: str
    """Where the run's stage folders go."""
    tasks: TaskSection
    """The task, its sizes and its seed."""
    models: ModelsConfig = ModelsConfig()
    """Given reference and proposal."""
    warmup: WarmupConfig | None = None
    """How to make reference and proposal where none are given."""
    sampling: SamplingConfig = SamplingConfig()
    """The sampling law of every stage that draws or scores."""
    proposals: ProposalsConfig = ProposalsConfig()
    """The offline trajectories."""
    scoring: ScoringConfig = ScoringConfig()
    """Their log-probabilities and rewards."""
    partition: PartitionConfig = PartitionConfig()
    """The estimates of log Z."""
    training: TrainingConfig = TrainingConfig()
    """The policies; ``training.inverse_temperature`` is the beta of the target."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured."""
    comparison: dict[str, Any] | None = None
    """What ``disa compare`` compares, in the fields of ``ComparisonConfig``; no other command reads it."""
    study: dict[str, Any] | None = None
    """The cells of ``disa study``, in the fields of ``StudyConfig``; no other command reads it."""
    verl: dict[str, Any] = {}
    """For ``disa verl`` alone: settings in verl's own names, such as ``trainer: {nnodes: 2}``."""

    @model_validator(mode="before")
    @classmethod
    def _fit_to_pretrained_models(cls, values: Any) -> Any:
        """Without a warm-up the models are pretrained, which want other lengths and rates than a small one."""
        if not isinstance(values, dict) or values.get("warmup"):
            return values
        training = values.get("training")
        presets: dict[str, dict[str, Any]] = {
            "sampling": {"max_completion_length": PRETRAINED_LENGTH},
            "training": {"learning_rate": pretrained_rate(isinstance(training, dict) and bool(training.get("lora")))},
        }
        unset = {name for name in presets if values.get(name) is None or isinstance(values[name], dict)}
        return values | {name: presets[name] | (values.get(name) or {}) for name in unset}

    @model_validator(mode="after")
    def _one_origin_of_models(self) -> Recipe:
        if (self.models.reference is None) == (self.warmup is None):
            found = "both" if self.warmup else "neither"
            raise ValueError(f"give models.reference or a warmup section, found {found}")
        return self

    @model_validator(mode="after")
    def _what_blends_need(self) -> Recipe:
        proposal = self.warmup.proposal if self.warmup else self.models.proposal
        if self.proposals.source == "bridge" and not proposal:
            raise ValueError("proposals.source: bridge leads to a proposal, give models.proposal")
        return self

    @model_validator(mode="after")
    def _whole_steps(self) -> Recipe:
        if self.tasks.train_prompts is not None:  # of a data set, only training will know
            self.training.check_prompts(self.training.methods, self.tasks.train_prompts)
        return self


_SLIP = 0.8
"""Likeness, of 1, from which on two keys differ by a slip."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: of two ``steps`` the first would be lost unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # "<<: *name" brings keys that may be set again here
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} stands twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply ``stage.key=value`` overrides (values are YAML too).

    Raises DisaError naming the file and the field: not found, not YAML, an unknown key, a value out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise DisaError("recipe not found", where=str(path), fix="check the path; recipes/ has examples")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise DisaError(f"not valid YAML ({problem})", where=str(path), fix="correct the line it names") from error
    if not isinstance(values, dict):
        raise DisaError("a recipe is a mapping of sections", where=str(path), fix="start from recipes/quickstart.yaml")
    for override in overrides or []:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise first_problem(error, path) from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise DisaError(f"--set {override}", where="command line", fix="write --set stage.key=value")
    node = values
    for part in parts[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            problem = f"--set {override}: '{part}' is not a section"
            raise DisaError(problem, where="command line", fix="write --set stage.key=value")
    try:
        node[parts[-1]] = yaml.load(text, Loader=_UniqueKeys)  # a SafeLoader
    except yaml.YAMLError as error:
        problem = f"--set {override}: the value is not valid YAML ({' '.join(str(error).split())})"
        raise DisaError(problem, where="command line", fix="quote the value as YAML would have it") from error


def read_section(config: type[Section], values: dict[str, Any], where: str, name: str) -> Section:
    """A section that one command reads, validated as those of a run are.

    Raises DisaError naming the field: an unknown key, a value out of range.
    """
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise first_problem(error, where, name, root=config) from error


def first_problem(
    error: ValidationError, path: str | Path, *section: str, root: type[StageConfig] | None = None
) -> DisaError:
    """One line about the first problem, naming the field as it is written in the recipe."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in (*section, *problem["loc"]) if part not in TASKS)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return DisaError(
            f"unknown key{more}", where=f"{path}, field {field}", fix=_nearest(problem["loc"], root or Recipe)
        )
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        message = f"unknown task '{problem['ctx']['tag']}'" if "tag" in problem["ctx"] else "no task is named"
        return DisaError(message, where=f"{path}, field tasks.name", fix=f"choose one of {', '.join(TASKS)}")
    given = "" if problem["type"] in ("missing", "value_error") else f", found {problem['input']!r}"
    where = f"{path}, field {field}" if field else str(path)
    return DisaError(f"{message}{given}{more}", where=where, fix="correct the value")


def _nearest(loc: tuple[int | str, ...], root: type[StageConfig]) -> str:
    """Name the known key that an unknown one was meant to be: a like one beside it, or the same in another section."""
    *sections, key = loc
    models: list[Any] = [root]
    for part in sections:
        if part in TASKS:
            models = [m for m in models if get_args(m.model_fields["name"].annotation) == (part,)]
        elif isinstance(part, str):
            models = _sections(models).get(part, [])
    beside = list(dict.fromkeys(name for model in models for name in model.model_fields))
    close = difflib.get_close_matches(str(key), beside, n=1)
    # A slip of the finger beside the key meant is likelier than another section; a word in common is not.
    slip = bool(close) and difflib.SequenceMatcher(None, str(key), close[0]).ratio() >= _SLIP
    sections_with_it = [s for s, models in _sections([root]).items() if any(key in m.model_fields for m in models)]
    if sections_with_it and not slip:
        return f"did you mean {' or '.join(f'{section}.{key}' for section in sections_with_it)}?"
    if close:
        return f"did you mean {close[0]}?"
    return f"remove it; known here: {', '.join(beside)}"


def _sections(models: list[Any]) -> dict[str, list[Any]]:
    """Fields of these models that are sections of their own, with the models each may be."""
    found: dict[str, list[Any]] = {}
    for model in models:
        for name, field in model.model_fields.items():
            inner = [
                m for m in types_in_annotation(field.annotation) if isinstance(m, type) and issubclass(m, StageConfig)
            ]
            if inner:
                found.setdefault(name, []).extend(inner)
    return found
