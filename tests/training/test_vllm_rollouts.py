"""Completions by vLLM: TRL's arguments reach its trainers, and a machine without vLLM is told what to install."""

import importlib.machinery
import sys
import types

import pytest
from trl import GRPOConfig

from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.training.config import TrainingConfig
from disa.training.disa_config import DISAConfig
from disa.training.methods import METHODS
from disa.training.run import _rollouts


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_settings_become_trls_arguments(vllm, tmp_path):
    config = TrainingConfig(vllm={"mode": "server", "options": {"server_base_url": "http://localhost:8000"}})
    arguments = _rollouts(config)
    assert arguments == {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": "http://localhost:8000",
    }
    common = {"output_dir": str(tmp_path), **trainer_arguments("float32", log_every=1), **arguments}
    # GRPO's loss reads the importance-sampling correction, the balance losses do not, and it costs a forward pass.
    assert GRPOConfig(**common).vllm_importance_sampling_correction is True
    balance = DISAConfig(inverse_temperature=2.0, **common)
    assert (balance.use_vllm, balance.vllm_mode) == (True, "server")
    assert balance.vllm_importance_sampling_correction is False
    assert _rollouts(TrainingConfig()) == {}


def test_a_machine_without_vllm_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, where it is
    with pytest.raises(DisaError, match="field training.vllm: vllm is not installed. Fix: pip install 'vllm"):
        _rollouts(TrainingConfig(vllm={}))


def test_an_argument_that_trl_does_not_have_is_refused_with_those_it_has(vllm):
    config = TrainingConfig(vllm={"options": {"gpu_memory": 0.3}})
    with pytest.raises(DisaError, match="TRL has no argument vllm_gpu_memory.*Fix: use .*gpu_memory_utilization"):
        _rollouts(config)


def test_vllm_belongs_to_the_identity_of_methods_that_generate_and_null_does_not():
    plain, served = TrainingConfig(), TrainingConfig(vllm={})
    for method in METHODS:
        assert "vllm" not in plain.method_identity(method)
        assert ("vllm" in served.method_identity(method)) == METHODS[method].generates
