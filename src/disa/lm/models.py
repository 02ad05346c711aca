"""The two models of a run: where they lie, what they are, and how a stage loads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from disa.lm.loading import load_model, load_tokenizer
from disa.runs.files import folder_digest
from disa.runs.records import SOURCES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Models:
    """Reference and proposal, loaded only when asked for.

    Parameters
    ----------
    reference : str or Path
        Folder or hub id.
    proposal : str or Path, optional
        The same; without one the reference stands in for it.
    made_here : bool
        The run's own warm-up made them: they then enter a stage's fingerprint as its input.
    """

    def __init__(self, reference: str | Path, proposal: str | Path | None, *, made_here: bool) -> None:
        self.paths = {"reference": reference, "proposal": proposal or reference}
        self.has_proposal, self._made_here = proposal is not None, made_here
        self._digests: dict[str | Path, str] = {}

    def identity(self, *roles: str) -> dict[str, str]:
        """What given models are: a folder's files, or a hub id."""
        return {} if self._made_here else {role: self._digest(self.paths[role]) for role in roles}

    def _digest(self, path: str | Path) -> str:
        # Read once: a comparison asks for it with every policy.
        if path not in self._digests:
            self._digests[path] = folder_digest(Path(path)) if Path(path).is_dir() else str(path)
        return self._digests[path]

    def load(self, roles: Sequence[str] = SOURCES) -> dict[str, PreTrainedModel]:
        """Frozen models by role; the same object twice where they are one."""
        loaded = {path: load_model(path) for path in {self.paths[role]: None for role in roles}}
        return {role: loaded[self.paths[role]] for role in roles}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reference's tokenizer, by which all stages encode."""
        return load_tokenizer(self.paths["reference"])
