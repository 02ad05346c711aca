"""The two models of a run: where they lie, what they are, and how a stage loads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from disa.lm.loading import empty_model, load_model, load_tokenizer
from disa.runs.files import folder_digest
from disa.runs.provenance import weights_digest
from disa.runs.records import SOURCES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Origin: TypeAlias = "str | Path | PreTrainedModel"


class FrozenModels(Mapping[str, "PreTrainedModel"]):
    """Models by role, each loaded when first asked for; pickled, they are paths, and load where they arrive.

    Parameters
    ----------
    paths : dict
        Folder, hub id or model in memory of each role; roles of one path share a model.
    """

    def __init__(self, paths: Mapping[str, Origin]) -> None:
        self._paths = dict(paths)
        self._loaded: dict[Any, Any] = {}

    def __getitem__(self, role: str) -> PreTrainedModel:
        path = self._paths[role]
        if path not in self._loaded:
            self._loaded[path] = load_model(path) if isinstance(path, str | Path) else path.eval()
        return self._loaded[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_loaded": {}}

    def shapes(self) -> dict[str, PreTrainedModel]:
        """The models without their weights, for what can be said of their architectures."""
        with torch.device("meta"):
            paths = self._paths.items()
            return {role: empty_model(path) if isinstance(path, str | Path) else path for role, path in paths}


class Models:
    """Reference and proposal, loaded only when asked for.

    Parameters
    ----------
    reference : str, Path or PreTrainedModel
        Folder, hub id, or a model in memory, which is put into evaluation mode where it is used.
    proposal : str, Path or PreTrainedModel, optional
        The same; without one the reference stands in for it.
    made_here : bool
        The run's own warm-up made them: they then enter a stage's fingerprint as its input.
    tokenizer : PreTrainedTokenizerBase, optional
        By default the one beside the reference.
    """

    def __init__(
        self,
        reference: Origin,
        proposal: Origin | None,
        *,
        made_here: bool,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.paths = {"reference": reference, "proposal": reference if proposal is None else proposal}
        self.has_proposal, self._made_here, self._tokenizer = proposal is not None, made_here, tokenizer
        self._digests: dict[Origin, str] = {}

    @property
    def on_disk(self) -> bool:
        """Whether every model has a name or folder."""
        return all(isinstance(path, str | Path) for path in self.paths.values())

    def identity(self, *roles: str) -> dict[str, str]:
        """What given models are: a folder's files, a hub id, or the weights of a model in memory."""
        return {} if self._made_here else {role: self._digest(self.paths[role]) for role in roles}

    def _digest(self, path: Origin) -> str:
        # Read once: a comparison asks for it with every policy.
        if path not in self._digests:
            if not isinstance(path, str | Path):
                self._digests[path] = weights_digest(path)
            else:
                self._digests[path] = folder_digest(Path(path)) if Path(path).is_dir() else str(path)
        return self._digests[path]

    def load(self, roles: Sequence[str] = SOURCES) -> FrozenModels:
        """Frozen models by role; the same object twice where they are one."""
        return FrozenModels({role: self.paths[role] for role in roles})

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reference's tokenizer, by which all stages encode."""
        return self._tokenizer or load_tokenizer(self.paths["reference"])
