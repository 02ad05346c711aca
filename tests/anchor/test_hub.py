"""Anchors travel over the hub unaltered; only the hub's own calls are replaced, by a folder."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.runs.parquet_rows import read_rows, write_rows
from disa.runs.records import PartitionEstimate


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folder that stands for the hub, a subfolder per repository, and the calls it got."""
    calls, root = [], tmp_path / "hub"

    def create_repo(self, repo_id, **options):
        calls.append(("create", repo_id, options))
        (root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id, folder_path, **options):
        calls.append(("upload", repo_id, options))
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
        return f"https://hub.example/{repo_id}/commit/1"

    def snapshot_download(self, repo_id, **options):
        calls.append(("download", repo_id, options))
        return str(root / repo_id)

    for function in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(HfApi, function.__name__, function)
    return root, calls


@pytest.fixture
def anchor(finished_run):
    return Anchor.load(finished_run)


def same(one, other):
    fields = [field.name for field in dataclasses.fields(Anchor) if field.name != "path"]
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def test_what_is_pushed_comes_back_equal_and_fits_the_same_trainer(hub, anchor):
    address = anchor.push_to_hub("me/anchor", reference="org/base", private=True, token="t")
    assert address == "https://hub.example/me/anchor/commit/1"
    found = Anchor.from_hub("me/anchor", revision="abc", token="t")
    assert same(found, anchor) and found.probes and found.evidence
    found.verify(anchor.fingerprint)
    (create, upload, download) = hub[1]
    assert create[2] == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert upload[2].items() >= {"repo_type": "dataset", "commit_message": "Upload a frozen anchor"}.items()
    assert download[2].items() >= {"repo_type": "dataset", "revision": "abc"}.items()
    assert "anchor.parquet" in upload[2]["allow_patterns"] and "3_scoring/*" not in upload[2]["allow_patterns"]


def test_an_anchor_moved_to_another_beta_is_pushed_as_it_is_now(hub, anchor):
    moved = anchor.at_inverse_temperature(5.0)
    moved.push_to_hub("me/moved")
    found = Anchor.from_hub("me/moved")
    assert found.fingerprint.inverse_temperature == 5.0 and same(found, moved) and not same(found, anchor)


def test_a_changed_download_is_refused(hub, anchor):
    anchor.push_to_hub("me/anchor")
    path = hub[0] / "me" / "anchor" / "anchor.parquet"
    rows = read_rows(path, PartitionEstimate)
    write_rows(path, [dataclasses.replace(rows[0], log_z=rows[0].log_z + 0.1), *rows[1:]], PartitionEstimate)
    with pytest.raises(DisaError, match="changed after it was frozen"):
        Anchor.from_hub("me/anchor")


def test_an_anchor_of_another_version_is_not_pushed(hub, anchor):
    with pytest.raises(DisaError, match="anchor of version 1, expected"):
        dataclasses.replace(anchor, version=1).push_to_hub("me/anchor")
    assert hub[1] == []


def test_a_download_has_no_trajectories_and_says_so(hub, anchor):
    anchor.push_to_hub("me/anchor")
    with pytest.raises(DisaError, match="no trajectories beside the anchor"):
        Anchor.from_hub("me/anchor").trajectories()


def test_the_card_names_base_beta_reward_flags_and_the_paper_and_no_folder(hub, anchor, finished_run):
    anchor.push_to_hub("me/anchor", reference="org/base")
    path = hub[0] / "me" / "anchor" / "README.md"
    card = DatasetCard.load(path)
    assert card.data.base_model == "org/base" and "disa" in card.data.tags
    assert "[DISA: Offline Importance Sampling for Distribution-Matching LLM-RL]" in card.text
    assert "https://arxiv.org/abs/2605.17295" in card.text and "[org/base]" in card.text
    beta = anchor.fingerprint.inverse_temperature
    assert f"| inverse temperature (beta) | `{beta}` |" in card.text and f"`{anchor.fingerprint.reward}`" in card.text
    flagged = [row for row in anchor.estimates.values() if "few_hits" in row.flags]
    assert flagged and f"| `few_hits` | {len(flagged)} |" in card.text
    for file in path.parent.iterdir():
        assert str(finished_run).encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize("call", ["create_repo", "snapshot_download"])
def test_what_the_hub_refuses_is_one_line_with_a_way_out(call, hub, anchor, monkeypatch):
    def refuse(*arguments, **options):
        raise OfflineModeIsEnabled("offline\nmode")

    monkeypatch.setattr(HfApi, call, refuse)
    with pytest.raises(DisaError, match="hub, me/anchor: OfflineModeIsEnabled: offline mode.*HF_HUB_OFFLINE"):
        anchor.push_to_hub("me/anchor") if call == "create_repo" else Anchor.from_hub("me/anchor")


def test_a_downloaded_anchor_has_its_folder_and_its_values(hub, anchor, tmp_path):
    anchor.push_to_hub("me/anchor")
    assert isinstance(Anchor.from_hub("me/anchor").path, Path)
    assert list(Anchor.from_hub("me/anchor").log_z(list(anchor.estimates)[:2])) == list(
        anchor.log_z(list(anchor.estimates)[:2])
    )
