"""A trainer reports as TRL users expect: evaluation, the best model, completions, backends, parsed arguments."""

import json
import struct
import sys
import types
from importlib.machinery import ModuleSpec

import pandas as pd
import pytest
from transformers import EarlyStoppingCallback
from trl import TrlParser

import disa
from disa.errors import DisaError
from disa.preflight import preflight
from disa.recipe import load_recipe
from disa.runs.folders import StageFolder
from disa.tasks import make_task
from disa.training.completions_table import CompletionsTable
from disa.training.run import run_training

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 12}


def evaluated(trainer, name="eval_kl_to_target"):
    return [line[name] for line in trainer.state.log_history if name in line]


def test_evaluation_returns_what_it_logs_and_the_log_z_facts(small_run, tmp_path):
    trainer = small_run.trainer(
        tmp_path, parts={"eval_dataset": small_run.rows.select(range(3))}, per_device_eval_batch_size=12
    )
    metrics = trainer.evaluate()
    assert metrics["eval_kl_to_target"] == evaluated(trainer)[-1]
    # The policy is the reference: its KL to it is 0 but for rounding, and that to the target is not.
    assert abs(metrics["eval_kl_to_reference"]) < 1e-4 < 0.01 < metrics["eval_kl_to_target"]


def test_several_evaluation_sets_keep_their_names(small_run, tmp_path):
    sets = {"first": small_run.rows.select([0]), "others": small_run.rows.select([1, 2])}
    trainer = small_run.trainer(tmp_path, parts={"eval_dataset": sets}, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    assert metrics["eval_first_log_z"] == pytest.approx(small_run.anchor.log_z(sets["first"]["prompt_id"])[0], abs=1e-5)
    assert metrics["eval_others_log_z"] == pytest.approx(
        small_run.anchor.log_z(sets["others"]["prompt_id"]).mean(), abs=1e-5
    )
    assert "eval_log_z" not in metrics


def test_training_stops_where_the_kl_to_the_target_falls_no_more_and_keeps_the_best(small_run, tmp_path):
    trainer = small_run.trainer(
        tmp_path,
        parts={
            "eval_dataset": small_run.rows.select(range(3)),
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=2)],
        },
        max_steps=60,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_kl_to_target",
        **EVERY_STEP,
    )
    trainer.train()
    found = evaluated(trainer)
    assert trainer.state.global_step < 60
    assert trainer.state.best_metric == min(found)
    assert found.index(min(found)) == len(found) - 3  # two lines later it stopped
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{len(found) - 2}")


@pytest.mark.parametrize("cut", [1, 3], ids=["whole step", "shuffled micro-batches"])
def test_the_table_has_every_completions_own_residual(small_run, tmp_path, capsys, cut):
    trainer = small_run.trainer(
        tmp_path, log_completions=True, per_device_train_batch_size=12 // cut, gradient_accumulation_steps=cut
    )
    trainer.train()
    (path,) = tmp_path.glob("completions/*.parquet")
    table = pd.read_parquet(path)
    assert "advantage" not in table and len(table) == 12
    prompts = {row["prompt"]: row["prompt_id"] for row in small_run.rows}
    log_z = small_run.anchor.log_z([prompts[p] for p in table["prompt"]])
    assert table["log_z"].tolist() == pytest.approx(log_z.tolist(), abs=1e-9)
    # At the first step the policy is the reference, and the residual log Z - beta r; its logarithms are float32.
    beta = small_run.anchor.fingerprint.inverse_temperature
    expected = log_z - beta * table["reward"].to_numpy()
    assert table["residual"].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert len(set(table["reward"])) > 1 and len({*table["prompt"]}) == 3
    assert "residual" in capsys.readouterr().out


def test_messages_with_calls_of_any_arguments_can_be_written():
    from disa.training.completions_table import _texts

    calls = [[{"role": "assistant", "content": "", "tool_calls": [{"arguments": {"a": a}}]}] for a in (1, "x")]
    assert [json.loads(text) for text in _texts(calls)] == calls
    assert _texts(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("backend", ["wandb", "trackio"])
def test_the_table_goes_to_the_backend(small_run, tmp_path, monkeypatch, backend):
    sent = []
    trainer = small_run.trainer(tmp_path, log_completions=True)
    module = types.ModuleType(backend)
    module.log, module.Table, module.run = sent.append, lambda dataframe: dataframe, object()
    module.__spec__ = ModuleSpec(backend, None)
    monkeypatch.setitem(sys.modules, backend, module)
    trainer.train()
    trainer.args.report_to = [backend]  # not before: TRL's own timings would want the real package
    trainer._table.write()
    (table,) = [message["completions"] for message in sent]
    assert table["residual"].notna().all()


LOGGED = ("kl_to_target", "residual/rms", "log_z", "reward")


def reported(small_run, tmp_path, backend, **settings):
    """Train two steps with a real backend; what was logged of each, by step."""
    trainer = small_run.trainer(tmp_path, report_to=backend, max_steps=2, logging_steps=1, **settings)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "residual/rms" in line]
    assert [line["step"] for line in lines] == [1, 2]
    return {name: [line[name] for line in lines] for name in LOGGED}


def test_tensorboards_events_hold_what_was_logged(small_run, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = reported(small_run, tmp_path, "tensorboard")
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    for name, values in logged.items():
        read = events.Scalars(f"train/{name}")
        assert [event.step for event in read] == [1, 2]
        # An event holds a float32.
        assert [event.value for event in read] == pytest.approx(values, rel=1e-6, abs=1e-7)


def wandbs_records(path):
    """Records of an offline file: blocks of 2^15 bytes of checksum, length, kind and data, as in LevelDB's log."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_wandbs_offline_run_holds_what_was_logged_and_the_completions(small_run, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = reported(small_run, tmp_path, "wandb", log_completions=True)
    wandb.finish()
    (file,) = tmp_path.rglob("run-*.wandb")
    history = [Record.FromString(record).history for record in wandbs_records(file)]
    rows = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in h.item} for h in history if h.item]
    for name, values in logged.items():
        assert [row[f"train/{name}"] for row in rows if f"train/{name}" in row] == values
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("completions_*.table.json")]
    assert {len(table["data"]) for table in tables} == {12}
    assert all(len({row[table["columns"].index("residual")] for row in table["data"]}) > 1 for table in tables)


def test_trackios_data_base_holds_what_was_logged(small_run, tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="pip install trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for name, module in list(sys.modules.items()):  # TRL may have imported it
        if name.startswith("trackio") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    logged = reported(small_run, tmp_path, "trackio", log_completions=True, project="disa", run_name="tested")
    assert (tmp_path / "trackio").is_dir()
    rows = SQLiteStorage.get_logs("disa", "tested")
    for name, values in logged.items():
        assert [row[f"train/{name}"] for row in rows if f"train/{name}" in row] == values
    # TRL hands over the last table once more when training ends.
    assert [len(row["completions"]["_value"]) for row in rows if "completions" in row] == [12, 12, 12]


def test_rows_of_an_earlier_generation_are_not_written_over_the_newest():
    import torch

    trainer = types.SimpleNamespace(state=types.SimpleNamespace(global_step=3), _logs={"extra": {}})
    trainer._logs["extra"] = {name: [] for name in ("residual", "log_z")}
    table = CompletionsTable(trainer)
    table.open(2)
    values = torch.tensor([1.0, 2.0, 9.0])
    table.note(torch.tensor([1, 0, 0]), torch.tensor([3, 3, 2]), values, values)
    assert trainer._logs["extra"]["residual"] == [2.0, 1.0]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")  # every parser sets every field
def test_a_script_may_parse_its_arguments_as_trls_do(tmp_path):
    (tmp_path / "args.yaml").write_text(
        f"output_dir: {tmp_path}\ninverse_temperature: 3.0\nflagged: group\nuse_cpu: true\nbf16: false\n"
    )
    (args,) = TrlParser(disa.DISAConfig).parse_args_and_config(
        ["--config", str(tmp_path / "args.yaml"), "--offline_share", "0.25", "--num_generations", "4"]
    )
    assert isinstance(args, disa.DISAConfig)
    assert (args.inverse_temperature, args.beta, args.offline_share, args.flagged) == (3.0, 1 / 3, 0.25, "group")


def test_a_recipes_backend_must_be_installed(finished_run, monkeypatch):
    recipe = load_recipe(finished_run.parent / "recipe.yaml", ["training.report_to=[trackio]"])
    monkeypatch.setattr("disa.preflight.find_spec", lambda name: None)
    with pytest.raises(DisaError, match="the package trackio is not installed.*pip install trackio"):
        preflight(recipe, make_task(recipe.tasks), list)


def test_a_recipe_keeps_completions_and_calls_no_stage_stale_for_it(small_run, tmp_path):
    config = small_run.recipe.training
    shown = config.model_copy(update={"log_completions": True, "report_to": ("tensorboard",)})
    assert shown.method_identity("disa") == config.method_identity("disa")
    changed = {"steps": 1, "prompts_per_step": 3, "completions_per_prompt": 4, "log_completions": True}
    stage = StageFolder(tmp_path, "6_training/disa", version=1, identity={}, inputs={})
    stage.path.mkdir(parents=True)
    run_training(
        stage,
        "disa",
        config.model_copy(update=changed),
        small_run.recipe.sampling,
        small_run.task,
        small_run.prompts,
        small_run.reference,
        small_run.anchor,
        [],
    )
    (path,) = (stage.path / "checkpoints" / "completions").glob("*.parquet")
    assert pd.read_parquet(path)["residual"].notna().all()
