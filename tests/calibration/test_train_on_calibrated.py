"""A trainer takes what calibrate made: ids, conditions and trajectories, with public names alone."""

import pytest
from datasets import Dataset

import disa
from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt


def ones_share(completions, **_):
    """Share of a completion's characters that are 1."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [text.count("1") / len(text) if text else 0.0 for text in texts]


@pytest.fixture(scope="module")
def rows(finished_run):
    prompts = [p for path in (finished_run / "1_tasks").glob("*.parquet") for p in read_rows(path, Prompt)]
    return [{"prompt": p.prompt, "level": i} for i, p in enumerate(p for p in prompts if p.split == "train")]


@pytest.fixture(scope="module")
def reference(finished_run):
    return str(finished_run / "warmup" / "reference")


@pytest.fixture(scope="module")
def anchor(finished_run, reference, rows, tmp_path_factory):
    args = disa.CalibrationConfig(
        str(tmp_path_factory.mktemp("calibrated")), inverse_temperature=2.0, num_generations=16, max_completion_length=7
    )
    return disa.calibrate(reference, ones_share, rows, args, proposal=str(finished_run / "warmup" / "proposal"))


def trainer(tmp_path, reference, anchor, rows, reward=ones_share, **settings):
    own = trainer_arguments(False, 1) | {"max_steps": 2, "per_device_train_batch_size": 12, "num_generations": 4}
    args = disa.DISAConfig(str(tmp_path / "policy"), **own | settings)
    return disa.DISATrainer(
        model=reference, reward_funcs=reward, train_dataset=Dataset.from_list(rows), anchor=anchor, args=args
    )


def test_conditions_left_unset_are_the_anchors(tmp_path, reference, anchor, rows):
    trained = trainer(tmp_path, reference, anchor, rows)
    trained.train()
    assert trained.args.inverse_temperature == 2.0 and trained.args.beta == 0.5
    assert (trained.args.temperature, trained.args.max_completion_length) == (1.0, 7)
    assert trained.state.global_step == 2


def test_the_anchors_own_trajectories_are_the_forward_projections(tmp_path, reference, anchor, rows):
    trained = trainer(tmp_path, reference, str(anchor.path.parent), rows, offline_share=0.5)
    trained.train()
    assert any("forward_projection" in line for line in trained.state.log_history)
    assert len(anchor.trajectories()) == 6 * 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inverse_temperature": 3.0}, "inverse_temperature is 3.0, the anchor was estimated for 2.0"),
        ({"temperature": 0.9}, "temperature is 0.9, the anchor was estimated for 1.0"),
        ({"max_completion_length": 6}, "max_completion_length is 6, the anchor was estimated for 7"),
    ],
)
def test_other_conditions_are_refused(tmp_path, reference, anchor, rows, settings, message):
    with pytest.raises(DisaError, match=message):
        trainer(tmp_path, reference, anchor, rows, **settings)


def test_another_reward_or_another_column_is_refused(tmp_path, reference, anchor, rows):
    def other(completions, **_):
        return [0.0] * len(completions)

    with pytest.raises(DisaError, match="reward"):
        trainer(tmp_path, reference, anchor, rows, reward=other)
    with pytest.raises(DisaError, match="no log Z|has no estimate|not in the anchor"):
        trainer(tmp_path, reference, anchor, [row | {"level": 99} for row in rows])
    with pytest.raises(DisaError, match="column 'level' is missing, found prompt"):
        trainer(tmp_path, reference, anchor, [{"prompt": row["prompt"]} for row in rows])
    with pytest.raises(DisaError, match="prompt_id is the data set's own"):
        trainer(tmp_path, reference, anchor, [row | {"prompt_id": "x"} for row in rows])


def test_a_trainer_without_any_inverse_temperature_says_so(tmp_path):
    config = disa.DISAConfig(str(tmp_path), **trainer_arguments(False, 1))
    with pytest.raises(DisaError, match="inverse_temperature is None, expected a number above 0"):
        config.complete()
