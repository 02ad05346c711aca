"""``disa inspect`` ends with a line to act on; ``disa watch`` and ``disa --help`` show what is there."""

import contextlib
import dataclasses
import json
import math
import shutil

import pytest

from disa.cli.inspect_text import MOST_FLAGGED, fitness
from disa.cli.main import main
from disa.partition.gate import CHANCE, SAFETY
from disa.partition.verdict import FLAGS
from disa.runs.locks import shared
from disa.runs.parquet_rows import read_rows
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

GOOD = PartitionEstimate("p", "train", 1.0, 0.1, 0.5, 1.5, 8, 4, 0.2, 6.0, 6.0, 1.0, None, "mixture", [])


def rows(flagged, n=8, flags=("few_hits",)):
    return [dataclasses.replace(GOOD, flags=list(flags) if i < flagged else []) for i in range(n)]


def test_the_last_line_says_whether_to_train_and_what_to_do():
    assert fitness({}, rows(0)) == "fit to train: 0 of 8 training prompts are flagged (0%)"
    assert fitness({}, rows(8, flags=["gated"])) == "fit to train: 0 of 8 training prompts are flagged (0%)"
    bound = int(8 * MOST_FLAGGED)
    assert fitness({}, rows(bound)).startswith(
        f"fit to train: {bound} of 8 training prompts are flagged (75%), most of"
    )
    assert fitness({}, rows(bound + 1)) == (
        "not fit to train: 7 of 8 training prompts are flagged (88%), most of them few_hits; "
        + FLAGS["few_hits"].split(": ")[1]
    )
    heldout = [dataclasses.replace(row, split="heldout") for row in rows(0)]
    assert fitness({}, heldout).startswith("not fit to train: no training prompt has an estimate")
    odd = {"null_test": {"log_ratio": 0.5, "standard_error": 0.1, "prompts": 9}}
    assert fitness(odd, rows(0)).startswith("not fit to train: the two models' log-probabilities do not agree")
    odd["null_test"]["standard_error"] = 0.2
    assert fitness(odd, rows(0)).startswith("fit to train")


def test_prompts_stand_beside_their_ids_d_is_shown_and_one_line_ends_it(finished_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(finished_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(finished_run)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == found["fit"]
    texts = {p.prompt_id: p.prompt for p in read_rows(finished_run / "1_tasks", Prompt)}
    assert found["worst"] and all(row["prompt"] == texts[row["prompt_id"]] for row in found["worst"])
    assert " ".join(found["worst"][0]["prompt"].split())[:20] in printed
    assert f"gated and nothing else {found['gated']}, flagged {found['flagged']}" in printed
    d = found["divergence"]
    assert f"D = KL(reference given success || proposal): median {d['median']:.2f} nats" in printed
    assert f"less {SAFETY:g} with a chance below {CHANCE:.0%}" in " ".join(printed.split())  # gate.gated_prompts
    assert d["lowest"] <= d["median"] <= d["highest"]
    drawn = [r for r in read_rows(finished_run / "3_scoring", ScoredTrajectory) if r.source == "proposal"]
    counts = sorted(sum(r.prompt_id == p for r in drawn) for p in {r.prompt_id for r in drawn})
    assert d["log_draws"] == pytest.approx(math.log(counts[len(counts) // 2]))


def test_an_anchor_outside_a_run_is_still_judged(finished_run, tmp_path, capsys):
    import shutil

    shutil.copytree(finished_run / "5_anchor", tmp_path / "anchor")
    assert main(["inspect", str(tmp_path / "anchor"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "divergence" not in found and found["worst"][0]["prompt"] is None and "fit to train" in found["fit"]


def test_watch_shows_every_stage_that_was_begun(run_copy, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, run = run_copy
    (run / "8_report" / "manifest.json").unlink()
    assert main(["watch", str(run), "--once"]) == 0
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert {"1_tasks", "3_scoring", "5_anchor", "6_training/disa", "7_evaluation/reference", "8_report"} <= set(lines)
    assert "done in" in lines["3_scoring"] and "120" in lines["3_scoring"]
    assert "under way" in lines["8_report"]
    assert "step 4, reward" in lines["6_training/disa"]
    assert main(["watch", str(run / "nowhere"), "--once"]) == 2


@pytest.fixture
def looks(monkeypatch):
    """What a watch does between its looks; more than five are one that does not end."""
    seen, during = [], []

    def sleep(seconds):
        seen.append(seconds)
        assert len(seen) <= 5, "the watch does not end"
        for act in during:
            act(len(seen))

    monkeypatch.setattr("disa.cli.watch.time.sleep", sleep)
    return seen, during


@pytest.mark.parametrize("last", ["4_partition", "5_anchor", "8_report"])
def test_a_watch_ends_when_the_run_is_done_as_far_as_it_was_asked_to_go(last, run_copy, looks, capsys):
    _, run = run_copy
    for folder in run.glob("[1-8]_*"):
        if folder.name > last:
            shutil.rmtree(folder)
    assert main(["watch", str(run)]) == 0 and looks[0] == []
    assert "every stage that was begun is done" in capsys.readouterr().out


def test_a_watch_goes_on_while_a_process_works_there(run_copy, looks, capsys):
    _, run = run_copy
    with contextlib.ExitStack() as worker:
        worker.enter_context(shared(run, "work"))
        looks[1].append(lambda look: worker.close() if look == 3 else None)
        assert main(["watch", str(run), "--every", "7"]) == 0
    assert looks[0] == [7.0] * 3


def test_a_watch_waits_for_a_run_that_begins_and_names_what_a_killed_one_left(tmp_path, looks, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def begin(look):
        (tmp_path / "2_proposals").mkdir(exist_ok=True)
        (tmp_path / "2_proposals" / "started.json").write_text("{}")

    looks[1].append(lambda look: begin(look) if look == 2 else None)
    assert main(["watch", str(tmp_path)]) == 0 and len(looks[0]) == 2
    assert "not finished: 2_proposals; the command that began it continues it" in capsys.readouterr().out


def test_help_has_every_command_once_in_a_group(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    names = [line.split()[0] for line in shown.partition("run a recipe:")[2].splitlines() if line.startswith("  ")]
    assert len(names) == len(set(names)) and {"run", "watch", "inspect", "compare", "tasks", "verl"} <= set(names)
    assert "more:" not in shown and "usage: disa [-h] COMMAND ..." in shown
