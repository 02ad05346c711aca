"""The recipe's optimiser is the one that trains, those with states of 8 bit among them where they are installed."""

from importlib.util import find_spec

import pytest
import torch
from transformers import Trainer, TrainingArguments

from disa.errors import DisaError
from disa.lm.loading import load_model
from disa.preflight import _check_optimiser
from disa.runs.folders import StageFolder
from disa.training import run
from disa.training.config import TrainingConfig

bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


# On a CPU nothing is paged; the library says so.
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (None, torch.optim.AdamW),
        ("adafactor", torch.optim.Optimizer),
        pytest.param("adamw_8bit", torch.optim.Optimizer, marks=bitsandbytes),
        pytest.param("paged_adamw_8bit", torch.optim.Optimizer, marks=bitsandbytes),
    ],
)
def test_a_recipe_s_optimiser_trains(small_run, tmp_path, monkeypatch, name, kind):
    made, build = [], run.build_trainer
    monkeypatch.setattr(run, "build_trainer", lambda *given: made.append(build(*given)) or made[-1])
    settings = {"steps": 2, "warmup_steps": 0, "prompts_per_step": 3, "completions_per_prompt": 4, "micro_batch": 4}
    config = TrainingConfig(methods=("disa",), inverse_temperature=2.0, learning_rate=0.01, optim=name, **settings)
    stage = StageFolder(tmp_path, "6_training/disa", version=1, identity={}, inputs={})
    stage.begin()
    given = small_run.recipe.sampling, small_run.task, small_run.prompts, small_run.reference, small_run.anchor
    run.run_training(stage, "disa", config, *given, [])
    optimizer = made[0].optimizer.optimizer
    assert isinstance(optimizer, kind)
    if name:
        assert name.removeprefix("paged_").removesuffix("_8bit") in type(optimizer).__name__.lower()
    if name and name.endswith("8bit"):
        # Only large weights have their states in 8 bit; the tiny model's are below the library's size for it.
        assert getattr(optimizer, "is_paged", False) is name.startswith("paged_")
        assert optimizer.args.optim_bits == 8
    before, after = load_model(small_run.reference), load_model(stage.path / "model")
    assert all((a != b).any() for a, b in zip(after.parameters(), before.parameters(), strict=True))


@bitsandbytes
def test_states_of_large_weights_take_a_byte_each():
    layer = torch.nn.Linear(128, 128)  # above the 4,096 numbers from which the library does it
    made, settings = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments("unused", optim="adamw_8bit"), layer)
    optimizer, before = made(layer.parameters(), **settings), layer.weight.detach().clone()
    layer(torch.ones(1, 128)).square().mean().backward()
    optimizer.step()
    states = [optimizer.state[layer.weight][name] for name in ("state1", "state2")]
    assert [(s.dtype, s.shape) for s in states] == [(torch.uint8, layer.weight.shape)] * 2
    assert (layer.weight != before).all()


def missing(library):
    return pytest.mark.skipif(find_spec(library) is not None, reason=f"{library} is installed")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamw_8bits", r"transformers has no optimiser 'adamw_8bits'.*Fix: use one of .*adamw_8bit"),
        pytest.param("rmsprop_bnb", "rmsprop_bnb cannot be made: .*bitsandbytes", marks=missing("bitsandbytes")),
        pytest.param("paged_adamw_8bit", "adamw_8bit cannot be made: .*bitsandbytes", marks=missing("bitsandbytes")),
        pytest.param("galore_adamw", "optimiser galore_adamw cannot be made: .*galore", marks=missing("galore_torch")),
    ],
)
def test_an_optimiser_that_is_not_there_is_refused_before_anything_is_drawn(name, message):
    with pytest.raises(DisaError, match=message):
        _check_optimiser(name)
