"""The two models of a run: where they lie, what they are, and how a stage loads them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from disa.errors import DisaError
from disa.lm.digests import weights_digest
from disa.lm.loading import DeviceMap, effective_precision, empty_model, load_config, load_model, load_tokenizer
from disa.runs.files import folder_digest
from disa.runs.records import SOURCES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Origin: TypeAlias = "str | Path | PreTrainedModel"


class FrozenModels(Mapping[str, "PreTrainedModel"]):
    """Models by role, one in memory at a time unless they work ``together``: asking for another lets the one before go.

    ``paths`` has the folder, hub id or model in memory of each role; roles of one path share a model. ``compute`` and
    ``device_map`` are :func:`disa.lm.loading.load_model`'s; a model in memory stays as it is. Pickled, they are paths,
    and load where they arrive. Raises DisaError where a model in memory is not in the stated precision.
    """

    def __init__(
        self,
        paths: Mapping[str, Origin],
        compute: str = "checkpoint",
        device_map: DeviceMap = None,
        *,
        together: bool = False,
    ) -> None:
        self._paths, self._how = dict(paths), (compute, device_map)
        self._held: dict[Origin, PreTrainedModel] = {}
        self._together = together
        self._configs: list[PretrainedConfig] | None = None
        for role, given in self._paths.items():
            if not isinstance(given, str | Path) and compute != "checkpoint":
                if given.dtype != getattr(torch, wanted := effective_precision(compute, given)):
                    raise DisaError(
                        f"a model in memory is in {given.dtype}, and compute asks for {wanted}",
                        where=role,
                        fix="leave compute out, convert the model, or give its folder",
                    )

    def __getitem__(self, role: str) -> PreTrainedModel:
        path = self._paths[role]
        if path not in self._held:
            if self._held and not self._together:
                self._held.clear()
                gc.collect()
                torch.cuda.empty_cache()
            self._held[path] = load_model(path, *self._how) if isinstance(path, str | Path) else path.eval()
        return self._held[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": {}}

    @classmethod
    def of(cls, models: Mapping[str, PreTrainedModel]) -> FrozenModels:
        """The same models, whatever mapping they come in."""
        return models if isinstance(models, cls) else cls(models)

    def configs(self) -> list[PretrainedConfig]:
        """Configuration of each distinct model."""
        if self._configs is None:
            paths = [self._paths[role] for role in self.distinct()]
            self._configs = [load_config(path) if isinstance(path, str | Path) else path.config for path in paths]
        return self._configs

    def precisions(self) -> set[str]:
        """What the models compute in."""
        return {effective_precision(self._how[0], path) for path in self._paths.values()}

    def distinct(self) -> list[str]:
        """One role of each model that differs from those before it."""
        first: dict[Origin, str] = {}
        for role, path in self._paths.items():
            first.setdefault(path, role)
        return list(first.values())

    def shapes(self) -> dict[str, PreTrainedModel]:
        """The models without their weights, for what can be said of their architectures."""
        with torch.device("meta"):
            paths = self._paths.items()
            return {role: empty_model(path) if isinstance(path, str | Path) else path for role, path in paths}


class Models:
    """Reference and proposal, each a folder, a hub id or a model in memory, loaded only when asked for.

    A model in memory is put into evaluation mode where it is used; without a proposal the reference stands in for it.
    ``made_here`` says that the run's own warm-up made them: they then enter a stage's fingerprint as its input. The
    tokenizer is by default the one beside the reference.
    """

    def __init__(
        self,
        reference: Origin,
        proposal: Origin | None,
        *,
        made_here: bool,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device_map: DeviceMap = None,
    ) -> None:
        self.paths = {"reference": reference, "proposal": reference if proposal is None else proposal}
        self.has_proposal, self._made_here, self._tokenizer = proposal is not None, made_here, tokenizer
        self.engines: Mapping[str, Any] = {}
        self._drawn_by: dict[str, str] = {}
        self._digests: dict[Origin, str] = {}
        self._device_map = device_map

    @property
    def on_disk(self) -> bool:
        """Whether every model has a name or folder."""
        return all(isinstance(path, str | Path) for path in self.paths.values())

    def identity(self, *roles: str) -> dict[str, str]:
        """What given models are: a folder's files, a hub id, or the weights of a model in memory."""
        return {} if self._made_here else {role: self._digest(self.paths[role]) for role in roles} | self._drawn_by

    def draw_with(self, engines: Mapping[str, Any], identity: str) -> None:
        """Let engines, by role, draw in the models' place; their identity is what they add to the models."""
        self.engines, self._drawn_by = engines, {"drawn_by": identity}

    def _digest(self, path: Origin) -> str:
        # Read once: a comparison asks for it with every policy.
        if path not in self._digests:
            if not isinstance(path, str | Path):
                self._digests[path] = weights_digest(path)
            else:
                self._digests[path] = folder_digest(Path(path)) if Path(path).is_dir() else str(path)
        return self._digests[path]

    def load(
        self, roles: Sequence[str] = SOURCES, compute: str = "checkpoint", *, together: bool = False
    ) -> FrozenModels:
        """Frozen models by role, as :class:`FrozenModels` takes its arguments."""
        return FrozenModels({role: self.paths[role] for role in roles}, compute, self._device_map, together=together)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reference's tokenizer, by which all stages encode."""
        return self._tokenizer or load_tokenizer(self.paths["reference"])
