import dataclasses
import json
from dataclasses import astuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from six_outcomes import GRADES, PASSES, PROPOSAL, REFERENCE

from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.partition.config import PartitionConfig
from disa.partition.stage import run_partition
from disa.partition.verdict import FLAGS, WORST, verdict
from disa.proposals.config import AdaptiveConfig
from disa.runs.folders import StageFolder
from disa.runs.parquet_rows import write_rows
from disa.runs.provenance import digest
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory
from disa.runs.scored_columns import ScoredColumns

BETA = 15.0


def prompt(name, split="train"):
    return Prompt(prompt_id=name, task="t", split=split, prompt="?", payload="{}", n_solutions=None)


def trajectories(prompts, n_reference=16, n_proposal=48, rewards=PASSES):
    rng, rows = np.random.default_rng(0), []
    for p in prompts:
        for draw in range(n_reference + n_proposal):
            own = draw < n_reference
            y = int(rng.choice(6, p=REFERENCE if own else PROPOSAL))
            log_ref, log_proposal = float(np.log(REFERENCE[y])), float(np.log(PROPOSAL[y]))
            rows.append(
                ScoredTrajectory(
                    prompt_id=p.prompt_id,
                    draw=draw,
                    source="reference" if own else "proposal",
                    completion=str(y),
                    completion_ids=[y, 0],
                    truncated=False,
                    log_sampler=log_ref if own else log_proposal,
                    log_ref=log_ref,
                    log_proposal=log_proposal,
                    reward=float(rewards[y]),
                )
            )
    return rows


def run(tmp_path, prompts, rows, config=None, reward_range=(0.0, 1.0)):
    stage = StageFolder(tmp_path, "4_partition", version=1, identity={}, inputs={})
    stage.begin()
    run_partition(stage, config or PartitionConfig(), BETA, reward_range, prompts, rows)
    return stage


def test_stage_writes_one_estimate_a_prompt_in_order_and_a_verdict(tmp_path):
    prompts = [prompt("b"), prompt("a"), prompt("c", "heldout")]
    rows = trajectories(prompts)
    stage = run(tmp_path, prompts, rows)
    estimates = stage.rows(PartitionEstimate)
    assert [(e.prompt_id, e.split) for e in estimates] == [("b", "train"), ("a", "train"), ("c", "heldout")]
    batch = estimate_log_partition_batch(
        [r.reward for r in rows],
        prompt_index=np.repeat([0, 1, 2], 64),
        log_ref=[r.log_ref for r in rows],
        log_proposal=[r.log_proposal for r in rows],
        from_reference=[r.source == "reference" for r in rows],
        lengths=np.full(len(rows), 2.0),
        beta=BETA,
    )
    assert [e.log_z for e in estimates] == batch.log_z.tolist()
    assert [e.interval_high for e in estimates] == batch.interval_high.tolist()
    assert [tuple(e.flags) for e in estimates] == list(batch.flags)
    manifest = stage.manifest
    assert manifest["binary"] is True
    assert manifest["verdict"]["prompts"] == manifest["null_test"]["prompts"] == 3
    assert manifest["verdict"] == json.loads(json.dumps(verdict(estimates)))


def test_stage_output_does_not_depend_on_the_order_of_the_trajectories(tmp_path):
    prompts = [prompt("a"), prompt("b")]
    rows = trajectories(prompts)
    a = run(tmp_path / "a", prompts, rows).rows(PartitionEstimate)
    b = run(tmp_path / "b", prompts, rows[::-1]).rows(PartitionEstimate)
    np.testing.assert_allclose([e.log_z for e in a], [e.log_z for e in b], rtol=1e-12)


@pytest.mark.parametrize(
    "rewards, reward_range, binary",
    [(PASSES, (0.0, 1.0), True), (GRADES, (0.0, 1.0), False), (PASSES, (-1.0, 1.0), False)],
)
def test_binary_says_whether_every_reward_is_an_end_of_the_declared_range(tmp_path, rewards, reward_range, binary):
    prompts = [prompt("a")]
    stage = run(tmp_path, prompts, trajectories(prompts, rewards=rewards), reward_range=reward_range)
    assert stage.manifest["binary"] is binary


def test_settings_reach_the_estimator(tmp_path):
    prompts = [prompt("a")]
    rows = trajectories(prompts, 64, 0)
    wide = run(tmp_path / "a", prompts, rows, PartitionConfig(interval="clopper_pearson", level=0.99))
    narrow = run(tmp_path / "b", prompts, rows, PartitionConfig(method="pass_rate", level=0.5))
    wide, narrow = wide.rows(PartitionEstimate)[0], narrow.rows(PartitionEstimate)[0]
    assert narrow.method == "pass_rate"
    assert wide.interval_high - wide.interval_low > narrow.interval_high - narrow.interval_low


def test_completion_lengths_reach_the_gate(tmp_path):
    prompts = [prompt(f"p{i}") for i in range(10)]
    rows = trajectories(prompts)
    assert not any("gated" in e.flags for e in run(tmp_path / "a", prompts, rows).rows(PartitionEstimate))
    # No reference success of its own, and completions a thousand times as long as those of the other prompts.
    rows = [
        dataclasses.replace(row, completion_ids=[0] * 2000, reward=0.0 if row.source == "reference" else row.reward)
        if row.prompt_id == "p9"
        else row
        for row in rows
    ]
    estimates = run(tmp_path / "b", prompts, rows).rows(PartitionEstimate)
    assert [e.prompt_id for e in estimates if "gated" in e.flags] == ["p9"]


def test_training_prompts_at_the_cap_short_of_the_precision_are_flagged(tmp_path):
    prompts = [prompt("all"), prompt("undecided"), prompt("fewer"), prompt("heldout", "heldout")]
    rows = [row for row in trajectories(prompts) if row.prompt_id != "fewer" or row.draw < 60]
    # Two draws without a verdict were drawn all the same.
    rows = [dataclasses.replace(r, reward=None) if r.prompt_id == "undecided" and r.draw < 2 else r for r in rows]

    def flagged(name, adaptive):
        stage = StageFolder(tmp_path / name, "4_partition", version=1, identity={}, inputs={})
        stage.begin()
        run_partition(stage, PartitionConfig(), BETA, (0.0, 1.0), prompts, rows, adaptive=adaptive)
        estimates = stage.rows(PartitionEstimate)
        assert {e.prompt_id: e.n for e in estimates} == {"all": 64, "undecided": 62, "fewer": 60, "heldout": 64}
        return [e.prompt_id for e in estimates if "capped" in e.flags], stage.manifest

    found, manifest = flagged("short", AdaptiveConfig(cap=64, precision=0.01))
    assert found == ["all", "undecided"]
    assert manifest["verdict"]["flags"]["capped"] == {"prompts": 2, "meaning": FLAGS["capped"]}
    assert (manifest["budget"]["capped"], manifest["budget"]["trajectories"]) == (2, 64 + 64 + 60)
    # One effective hit is enough here, and every prompt has more.
    assert flagged("reached", AdaptiveConfig(cap=64, precision=1.0))[0] == []
    assert flagged("even", None)[0] == []


def test_without_reference_draws_the_rows_can_still_be_written_and_read(tmp_path):
    prompts = [prompt("a")]
    row = run(tmp_path, prompts, trajectories(prompts, 0, 64)).rows(PartitionEstimate)[0]
    assert row.n_reference == 0 and "no_reference" in row.flags


def test_prompt_without_trajectories_is_named(tmp_path):
    prompts = [prompt("a"), prompt("lonely")]
    with pytest.raises(DisaError, match="prompt lonely .train. has no trajectory"):
        run(tmp_path, prompts, trajectories(prompts[:1]))


def test_a_heldout_split_that_was_not_drawn_at_all_is_left_out(tmp_path):
    prompts = [prompt("a"), prompt("h", "heldout")]
    assert len(run(tmp_path, prompts, trajectories(prompts[:1])).rows(PartitionEstimate)) == 1


def test_trajectory_of_an_unknown_prompt_is_refused(tmp_path):
    with pytest.raises(DisaError, match="prompt b, which is not among"):
        run(tmp_path, [prompt("a")], trajectories([prompt("a"), prompt("b")]))


@pytest.mark.parametrize("prompts, rows", [([], []), ([prompt("a")], []), ([], trajectories([prompt("a")]))])
def test_empty_input_is_refused(tmp_path, prompts, rows):
    with pytest.raises(DisaError, match="no (prompts|trajectories) to estimate"):
        run(tmp_path, prompts, rows)


def estimate(name, width, flags):
    return PartitionEstimate(
        prompt_id=name,
        split="train",
        log_z=5.0,
        q=0.1,
        interval_low=5.0 - width,
        interval_high=5.0,
        n=4,
        n_reference=1,
        mean_reward_reference=0.0,
        ess=1.0,
        hits_ess=1.0,
        mean_weight=1.0,
        pareto_k=None,
        method="mixture",
        flags=flags,
    )


def test_verdict_counts_good_gated_and_flagged_and_names_the_widest_ten():
    rows = [estimate("good", 1.0, []), estimate("gated", 4.0, ["gated"])]
    rows += [estimate(f"f{i:02}", float(i), ["gated", "few_hits"]) for i in range(15)]
    facts = verdict(rows)
    assert (facts["prompts"], facts["good"], facts["gated"], facts["flagged"]) == (17, 1, 1, 15)
    assert facts["flags"]["gated"] == {"prompts": 16, "meaning": FLAGS["gated"]}
    assert facts["flags"]["few_hits"]["prompts"] == 15 and "no_reference" not in facts["flags"]
    assert [row["prompt_id"] for row in facts["worst"]] == [f"f{i:02}" for i in range(14, 14 - WORST, -1)]
    assert verdict([rows[0]])["worst"] == []


def mixed_rows(prompts):
    """Rows of every kind: undecided, imported as text, partly a tool's, in an order that is not the prompts'."""
    rows = trajectories(prompts)
    rows[3] = dataclasses.replace(rows[3], reward=None)
    rows[70] = dataclasses.replace(rows[70], retokenised=True, completion_ids=[1, 2, 3, 0], tool_mask=[1, 0, 0, 1])
    return [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]


def stored(folder, rows, *, without=()):
    """Two files of rows, the second without some columns."""
    folder.mkdir()
    for number, part in enumerate((rows[:100], rows[100:])):
        write_rows(folder / f"part-{number}.parquet", part, ScoredTrajectory)
    table = pq.read_table(folder / "part-1.parquet")
    pq.write_table(table.drop_columns(list(without)), folder / "part-1.parquet")
    return sorted(folder.glob("*.parquet"))


@pytest.mark.parametrize("without", [(), ("own_length",)], ids=["written now", "written before lengths were"])
def test_columns_give_the_estimates_that_rows_gave_to_the_byte(tmp_path, without):
    prompts = [prompt("b"), prompt("a"), prompt("c", "heldout")]
    rows = mixed_rows(prompts)
    by_row = run(tmp_path / "rows", prompts, rows)
    by_column = run(tmp_path / "columns", prompts, ScoredColumns.read(stored(tmp_path / "s", rows, without=without)))
    assert by_row.part("estimates").read_bytes() == by_column.part("estimates").read_bytes()
    facts = ("binary", "trajectories", "verdict", "null_test", "coverage")
    assert all(by_row.manifest[name] == by_column.manifest[name] for name in facts)
    # Of the code that made an object per row; nine digits, as processors differ in the last ones.
    shown = [[f"{x:.9g}" if isinstance(x, float) else x for x in astuple(e)] for e in by_column.rows(PartitionEstimate)]
    assert digest(shown) == "847fbce6fea5953e"


def test_columns_are_checked_as_rows_are(tmp_path):
    paths = stored(tmp_path / "s", trajectories([prompt("a"), prompt("b")]))
    table = pq.read_table(paths[1])
    table = table.set_column(
        table.schema.get_field_index("reward"), "reward", [[1.0] * 7 + [float("nan")] + [1.0] * 20]
    )
    pq.write_table(table, paths[1])
    with pytest.raises(DisaError, match="part-1.parquet, row 7: field 'reward' is NaN, expected a double value"):
        ScoredColumns.read(paths)
    pq.write_table(table.drop_columns(["log_ref"]), paths[1])
    with pytest.raises(DisaError, match="field 'log_ref' is missing"):
        ScoredColumns.read(paths)
    with pytest.raises(DisaError, match="no trajectories to estimate log Z from"):
        run(tmp_path / "none", [prompt("a")], ScoredColumns.read([]))
