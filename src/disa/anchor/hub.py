"""Anchors on the Hugging Face hub: a data set repository with the frozen files and a card."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.errors import DisaError
from disa.partition.verdict import FLAGS
from disa.runs.files import file_digest

if TYPE_CHECKING:
    from disa.anchor.anchor import Anchor

PAPER = "[DISA: Offline Importance Sampling for Distribution-Matching LLM-RL](https://arxiv.org/abs/2605.17295)"
FILES = ("anchor.parquet", "manifest.json", "probes.parquet", "regressor.npz", "README.md")


def push_anchor(anchor: Anchor, repo_id: str, *, reference: str | None, **options: Any) -> str:
    """Upload an anchor as it is now, and say where it is; options are those of :meth:`Anchor.push_to_hub`."""
    from huggingface_hub import HfApi

    token, private = options.get("token"), options.get("private")
    with tempfile.TemporaryDirectory() as folder:
        anchor.save(folder)
        (Path(folder) / "README.md").write_text(anchor_card(anchor, Path(folder), repo_id, reference), encoding="utf-8")
        with _hub_errors(repo_id):
            api = HfApi(token=token)
            api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            found = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                repo_type="dataset",
                revision=options.get("revision"),
                commit_message=options.get("commit_message") or "Upload a frozen anchor",
                allow_patterns=list(FILES),
            )
    return str(found)


def pull_anchor(repo_id: str, *, revision: str | None, token: str | None) -> Path:
    """Folder of a downloaded anchor."""
    from huggingface_hub import HfApi

    with _hub_errors(repo_id):
        return Path(
            HfApi(token=token).snapshot_download(
                repo_id, repo_type="dataset", revision=revision, allow_patterns=list(FILES)
            )
        )


@contextlib.contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """What the hub or the way to it refuses, as one line that can be acted on."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (HFValidationError, OSError) as error:  # the hub's answers, a missing network and offline mode are OSErrors
        said = " ".join(str(error).split())[:200]
        fix = "check the name, the network, HF_HUB_OFFLINE and your token (`hf auth login`)"
        raise DisaError(f"{type(error).__name__}: {said}", where=f"hub, {repo_id}", fix=fix) from error


def conditions_rows(anchor: Anchor) -> list[str]:
    """Rows of a table: what the frozen log Z depends on."""
    rows = {"inverse temperature (beta)": anchor.fingerprint.inverse_temperature}
    rows |= {"reward range": list(anchor.reward_range)} | anchor.fingerprint.as_dict()
    del rows["inverse_temperature"]
    return [f"| {name.replace('_', ' ')} | `{value}` |" for name, value in rows.items()]


def flag_rows(anchor: Anchor) -> list[str]:
    """Rows of a table: flags, how many prompts have them, and what to do."""
    flags = Counter(flag for row in anchor.estimates.values() for flag in row.flags)
    return [f"| `{flag}` | {count} | {FLAGS.get(flag, '')} |" for flag, count in flags.most_common()]


def anchor_card(anchor: Anchor, folder: Path, repo_id: str, reference: str | None) -> str:
    """The README of an anchor's repository."""
    from huggingface_hub import DatasetCardData

    base: dict[str, Any] = {"base_model": reference} if reference else {}
    data = DatasetCardData(tags=["disa", "partition-function"], pretty_name=repo_id.rpartition("/")[2], **base)
    flagged = sum(bool(row.flags) for row in anchor.estimates.values())
    lines = ["---", data.to_yaml(), "---", "", f"# Anchor {repo_id}", ""]
    lines += [
        f"Frozen estimates of log Z of {len(anchor.estimates)} prompts, {flagged} of them flagged, for {PAPER}.",
        f"log Z(x) = log E_ref[exp(beta r)], in nats. Digest `{file_digest(folder / 'anchor.parquet')[:16]}`.",
        "",
        "```python",
        "import disa",
        "",
        f'anchor = disa.Anchor.from_hub("{repo_id}")',
        "```",
        "",
        "A trainer refuses the anchor under any other conditions than these:",
        "",
        "| condition | value |",
        "| --- | --- |",
        *([f"| base | [{reference}](https://huggingface.co/{reference}) |"] if reference else []),
        *conditions_rows(anchor),
        "",
    ]
    if rows := flag_rows(anchor):
        lines += ["| flag | prompts | meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)
