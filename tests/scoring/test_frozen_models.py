"""Frozen models are held in the precision they compute in, one at a time, on one device or spread over several."""

import shutil
import weakref

import numpy as np
import pytest
import torch
from test_scoring_stage import LetterTask
from torch.utils._python_dispatch import TorchDispatchMode

from disa.errors import DisaError
from disa.lm import loading, models
from disa.lm.digests import weights_digest
from disa.lm.loading import effective_precision, load_base, load_model
from disa.lm.log_probs import sequence_log_probs
from disa.lm.models import FrozenModels
from disa.lm.sampling_config import SamplingConfig
from disa.proposals.config import ProposalsConfig
from disa.proposals.run import run_proposals
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, Trajectory
from disa.scoring.config import ScoringConfig
from disa.scoring.run import run_scoring
from disa.warmup.config import SmallModelConfig
from disa.warmup.small_model import character_tokenizer, small_model
from small_architectures import ragged_rows, small_architecture

LAW = SamplingConfig(max_completion_length=4)
SHAPE = SmallModelConfig(hidden_size=16, layers=1, heads=2, context_length=32)


@pytest.fixture(params=[True, False], ids=["bfloat16 at hand", "bfloat16 emulated"])
def has_bfloat16(request, monkeypatch):
    monkeypatch.setattr(loading, "_emulates_bfloat16", lambda: not request.param)
    return request.param


@pytest.fixture
def half(tmp_path):
    """A checkpoint in bfloat16."""
    small_architecture("llama", torch.bfloat16).save_pretrained(tmp_path / "half")
    return tmp_path / "half"


@pytest.fixture
def whole(tmp_path):
    """A checkpoint in float32, whose values bfloat16 would round."""
    small_architecture("llama", torch.float32).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def test_a_checkpoint_is_held_in_its_own_precision_where_the_machine_has_it(half, whole, has_bfloat16):
    own = torch.bfloat16 if has_bfloat16 else torch.float32
    assert {p.dtype for p in load_model(half).parameters()} == {own}
    assert {p.dtype for p in load_model(whole).parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(half, "float32").parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(whole, "bfloat16").parameters()} == {own}
    assert effective_precision("checkpoint", load_model(half)) == str(own).removeprefix("torch.")


def test_the_digest_is_the_checkpoints_whatever_precision_it_was_loaded_in(half, monkeypatch):
    monkeypatch.setattr(loading, "_emulates_bfloat16", lambda: False)
    digests = {weights_digest(load_model(half, compute)) for compute in ("checkpoint", "float32", "bfloat16")}
    assert len(digests) == 1
    assert digests != {weights_digest(small_architecture("llama", torch.float32))}


def test_a_base_of_adapters_is_never_rounded(half, whole, monkeypatch):
    monkeypatch.setattr(loading, "_emulates_bfloat16", lambda: False)
    held = {(name.name, c): load_base(name, c).dtype for name in (half, whole) for c in ("float32", "bfloat16")}
    assert held.pop(("half", "bfloat16")) == torch.bfloat16
    assert set(held.values()) == {torch.float32}


class Casts(TorchDispatchMode):
    """Counts conversions of a model's own weights."""

    CONVERSIONS = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)

    def __init__(self, model):
        super().__init__()
        self.weights, self.found = {p.data_ptr() for p in model.parameters()}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function in self.CONVERSIONS and result.dtype != args[0].dtype:
            self.found += args[0].data_ptr() in self.weights
        return result


def test_no_weight_is_cast_in_a_pass(half, monkeypatch):
    monkeypatch.setattr(loading, "_emulates_bfloat16", lambda: False)
    model, rows = load_model(half), ragged_rows()
    with Casts(model) as casts:
        sequence_log_probs(model, *rows)
    assert casts.found == 0
    with Casts(exact := load_model(half, "float32")) as casts, torch.autocast("cpu", torch.bfloat16):
        sequence_log_probs(exact, *rows)
    assert casts.found > 0  # what autocast does, and this mode sees


def test_a_model_in_memory_in_another_precision_than_the_stated_one_is_refused():
    model = small_architecture("llama", torch.float32)
    assert FrozenModels({"reference": model})["reference"] is model
    with pytest.raises(DisaError, match=r"a model in memory is in torch.float64, and compute asks for float32"):
        FrozenModels({"reference": model.double()}, "float32")


class Loads:
    """Every load, with how many models were alive at it."""

    def __init__(self, monkeypatch):
        self.paths, self.alive, self._refs, self._load = [], [], [], models.load_model
        monkeypatch.setattr(models, "load_model", self)

    def __call__(self, path, *how):
        self.paths.append(path.name)
        self.alive.append(sum(ref() is not None for ref in self._refs))
        model = self._load(path, *how)
        self._refs.append(weakref.ref(model))
        return model


def test_proposals_and_scoring_hold_one_model_at_a_time_and_load_each_once(tmp_path, monkeypatch):
    paths, tokenizer = {}, character_tokenizer("abcdefgh")
    for seed, role in enumerate(("reference", "proposal")):
        paths[role] = tmp_path / role
        small_model(SHAPE, tokenizer, seed=seed).save_pretrained(paths[role])
    prompts = [Prompt(p, "letters", "train", p, "{}", None) for p in "abcdefgh"]
    loads, rows = Loads(monkeypatch), {}
    for name, given in {"one": FrozenModels(paths), "both": {r: load_model(p) for r, p in paths.items()}}.items():
        drawn, scored = (
            StageFolder(tmp_path / name, stage, version=1, identity={}, inputs={})
            for stage in ("2_proposals", "3_scoring")
        )
        drawn.begin()
        config = ProposalsConfig(per_prompt=8, prompts_per_part=3)
        run_proposals(drawn, config, LAW, prompts, given, tokenizer)
        scored.begin()
        config = ScoringConfig(trajectories_per_part=25)
        run_scoring(scored, config, LAW, LetterTask(), prompts, drawn.rows(Trajectory), given, tokenizer)
        assert len(list(drawn.path.glob("*.parquet"))) == 6 and len(list(scored.path.glob("*.parquet"))) == 3
        rows[name] = [path.read_bytes() for path in sorted(scored.path.glob("*.parquet"))]
    # Scoring goes on with the proposal's last draws' model laid aside: the reference first, then the proposal.
    assert loads.paths == ["reference", "proposal", "reference", "proposal"]
    assert loads.alive == [0, 0, 0, 0]
    assert rows["one"] == rows["both"]


def test_a_model_spread_by_a_device_map_scores_and_has_the_same_digest(whole, tmp_path):
    expected, rows = load_model(whole), ragged_rows()
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    # What does not fit goes to the disk: of several devices a CPU can show no more.
    parts |= {"model.layers.1": "disk", "lm_head": "disk"}
    spread = load_model(whole, device_map=parts)
    assert spread.model.layers[1].self_attn.q_proj.weight.is_meta and spread.lm_head.weight.is_meta
    assert weights_digest(spread) == weights_digest(expected)
    found = sequence_log_probs(spread, *rows)
    # The plain way against the shared one, in float32: 24 bits on sums of some ten nats.
    np.testing.assert_allclose(found, sequence_log_probs(expected, *rows), rtol=0, atol=1e-4)
    shutil.rmtree(tmp_path, ignore_errors=True)
