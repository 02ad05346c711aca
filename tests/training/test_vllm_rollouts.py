"""Completions by vLLM: TRL's arguments reach its trainers, and a machine without vLLM is told what to install."""

import contextlib
import importlib.machinery
import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from trl import GRPOConfig
from trl.generation import vllm_generation

from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.training.config import TrainingConfig
from disa.training.disa_config import DISAConfig
from disa.training.methods import METHODS
from disa.training.rollouts import BOUNDS, check_gap, policy_precision
from disa.training.run import _rollouts
from disa.training.shared_prompt_trainer import SharedPromptTrainer


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
    common = {"output_dir": str(tmp_path), **trainer_arguments(bf16=False, log_every=1), **arguments}
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


def test_vllm_belongs_to_the_identity_of_methods_that_generate_and_of_no_others():
    plain, served = TrainingConfig(), TrainingConfig(vllm={})
    for method in METHODS:
        assert (plain.method_identity(method) != served.method_identity(method)) == METHODS[method].generates


@contextlib.contextmanager
def info_server(status=200, **changes):
    """What a vLLM server says of itself on /server_info, rightly started but for the changes."""
    model = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs", "max_logprobs": -1}
    config = {"model_config": model | changes, "weight_transfer_config": changes.get("transfer", {"backend": "nccl"})}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            data = json.dumps({"vllm_config": config}).encode()
            self.send_response(status if self.path == "/server_info?config_format=json" else 500)
            self.end_headers()
            self.wfile.write(data)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def arguments(tmp_path, **settings):
    common = {"output_dir": str(tmp_path), **trainer_arguments(bf16=False, log_every=1), "use_vllm": True}
    return GRPOConfig(**common | settings)


WRONG = {
    "dtype": ({"dtype": "torch.bfloat16"}, "has dtype torch.bfloat16, expected torch.float32"),
    "mode": ({"logprobs_mode": "raw_logprobs"}, "has logprobs_mode raw_logprobs, expected processed_logprobs"),
    "most": ({"max_logprobs": 20}, "has max_logprobs 20, expected -1"),
    "transfer": ({"transfer": None}, "takes no weights"),
    "development": ({"status": 404}, "has no development endpoints"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_server_that_was_started_otherwise_is_refused_with_the_command_that_starts_it(vllm, tmp_path, wrong):
    changes, message = WRONG[wrong]
    with info_server(**changes) as url, pytest.raises(DisaError, match=message) as refusal:
        with policy_precision("my/model", arguments(tmp_path, vllm_mode="server", vllm_server_base_url=url)):
            pass
    start = "VLLM_SERVER_DEV_MODE=1 vllm serve my/model --dtype float32 --logprobs-mode processed_logprobs"
    assert start in refusal.value.fix and "--weight-transfer-config" in refusal.value.fix


def test_a_server_that_was_started_rightly_passes_and_one_that_is_not_there_does_not(vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_generation, "LLM", object, raising=False)
    with info_server() as url:
        with policy_precision("my/model", arguments(tmp_path, vllm_mode="server", vllm_server_base_url=url)):
            pass
    with pytest.raises(DisaError, match="no vLLM server answers"):
        with policy_precision("my/model", arguments(tmp_path, vllm_mode="server", vllm_server_base_url=url)):
            pass


@pytest.mark.parametrize("settings, dtype", [({}, "float32"), ({"bf16": True}, "bfloat16")], ids=str)
def test_the_engine_that_trl_builds_gets_the_policys_dtype_and_others_do_not(
    vllm, tmp_path, monkeypatch, settings, dtype
):
    monkeypatch.setattr(vllm_generation, "LLM", dict, raising=False)
    with policy_precision("my/model", arguments(tmp_path, **settings)):
        assert vllm_generation.LLM(model="my/model") == {"model": "my/model", "dtype": dtype}
    assert vllm_generation.LLM is dict


class Stub:
    """What the check of the gap asks of a trainer, whose log-probabilities are known."""

    def __init__(self, args):
        self.args, self.model, self._metrics = args, torch.nn.Linear(1, 1), {"train": {"rollouts/gap": []}}
        self.accelerator = types.SimpleNamespace(gather=lambda x: x, unwrap_model=lambda m: m)
        self.state = types.SimpleNamespace(global_step=4)

    token_log_probs = SharedPromptTrainer.token_log_probs
    fresh_log_probs = SharedPromptTrainer.fresh_log_probs


@pytest.mark.parametrize("bound", [None, 0.01, 0.2])
def test_the_gap_is_the_mean_over_completions_of_the_difference_per_token(vllm, tmp_path, bound):
    batch = {
        "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "old_per_token_logps": torch.tensor([[-1.0, -2.0, -1.0], [-3.0, 9.0, 9.0]]),
        "sampling_per_token_logps": torch.tensor([[-1.1, -1.9, -1.3], [-3.2, 0.0, 0.0]]),
    }
    trainer = Stub(arguments(tmp_path))
    gap = (0.3 / 3 + 0.2) / 2  # differences within a completion cancel, padding does not count
    limit = BOUNDS[torch.float32] if bound is None else bound
    said = rf"training step 5, .*by 0.15 nats per token \(mean\), bound {limit:g}"
    with pytest.raises(DisaError, match=said) if gap > limit else contextlib.nullcontext():
        check_gap(trainer, batch, bound)
    assert trainer._metrics["train"]["rollouts/gap"] == [pytest.approx(gap, abs=1e-6)]


def test_log_probabilities_that_nobody_kept_are_asked_of_the_trainer(vllm, tmp_path):
    trainer, asked = Stub(arguments(tmp_path)), {}

    def score(model, ids, mask, length, batch_size, compute_entropy):
        asked.update(ids=ids.tolist(), mask=mask.tolist(), length=length, batch_size=batch_size)
        return torch.tensor([[-1.0, -2.0]]), torch.tensor([[9.0, 9.0]]), None

    trainer._get_per_token_logps_and_entropies = score
    batch = {
        "prompt_ids": torch.tensor([[0, 5]]),
        "prompt_mask": torch.tensor([[0, 1]]),
        "completion_ids": torch.tensor([[6, 7]]),
        "completion_mask": torch.tensor([[1, 1]]),
        "sampling_per_token_logps": torch.tensor([[-1.2, -2.0]]),
    }
    check_gap(trainer, batch, 0.2)
    assert trainer._metrics["train"]["rollouts/gap"] == [pytest.approx(0.1, abs=1e-6)]
    size = trainer.args.per_device_train_batch_size
    assert asked == {"ids": [[0, 5, 6, 7]], "mask": [[0, 1, 1, 1]], "length": 2, "batch_size": size}
