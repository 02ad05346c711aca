"""The warm-up: ordinary folders, graded strength, and the same result after a kill."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from disa.errors import DisaError
from disa.lm.digests import weights_digest
from disa.lm.loading import load_model, load_tokenizer
from disa.lm.sampler import draw_rows, uniforms
from disa.lm.sampling_config import SamplingConfig, decode_completion, encode_prompt
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt
from disa.runs.step_log import StepLog
from disa.tasks import make_task
from disa.tasks.config import GraphColoringConfig
from disa.warmup.base_model import base_model
from disa.warmup.config import WarmupConfig
from disa.warmup.run import run_warmup

TASK = make_task(
    GraphColoringConfig(
        name="graph_coloring", vertices=5, colors=4, train_prompts=4, heldout_prompts=4, warmup_prompts=8
    )
)
LAW = SamplingConfig(max_completion_length=6)
TINY = {
    "small_model": {"hidden_size": 16, "layers": 1, "heads": 2, "context_length": 64},
    "batch_size": 8,
    "learning_rate": 0.02,
    "log_every": 1,
    "reference": {"steps": 8, "noise": 0.5},
    "proposal": {"steps": 8, "noise": 0.0},
}


def warm_up(folder, prompts=None, sampling=LAW, **changes):
    stage = StageFolder(folder, "warmup", version=1, identity={}, inputs={})
    stage.begin()
    prompts = TASK.prompts("warmup") if prompts is None else prompts
    run_warmup(stage, WarmupConfig(**TINY | changes), TASK, prompts, sampling)
    return stage


def losses(folder):
    return [(line["step"], line["loss"]) for line in map(json.loads, folder.read_text().splitlines())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return warm_up(tmp_path_factory.mktemp("warmup")).path


def test_both_folders_load_with_the_auto_classes_in_float32_and_write_text(finished):
    for name in ("reference", "proposal"):
        model = AutoModelForCausalLM.from_pretrained(finished / name)
        tokenizer = AutoTokenizer.from_pretrained(finished / name)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        prompt = TASK.prompts("train")[0].prompt
        ids = tokenizer(prompt, return_tensors="pt")
        assert tokenizer.decode(ids["input_ids"][0]) == prompt
        output = model.generate(**ids, max_new_tokens=6, do_sample=False)
        assert set(tokenizer.decode(output[0], skip_special_tokens=True)) <= set(TASK.alphabet)
        assert model.config.vocab_size == len(tokenizer) == len(set(TASK.alphabet)) + 2
        assert model.generation_config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])


def test_reference_and_proposal_share_their_tokenizer_but_not_their_weights(finished):
    tokenizers = [(finished / name / "tokenizer.json").read_bytes() for name in ("reference", "proposal")]
    assert tokenizers[0] == tokenizers[1]
    assert len({weights_digest(load_model(finished / name)) for name in ("reference", "proposal")}) == 2


def test_training_lowers_the_loss_and_logs_every_step_once(finished):
    for name in ("reference", "proposal"):
        logged = losses(finished / f"{name}.jsonl")
        assert [step for step, _ in logged] == list(range(1, 9))
        assert logged[-1][1] < logged[0][1]


def test_the_seed_decides_the_weights(tmp_path, finished):
    same = warm_up(tmp_path / "a", proposal=None).path
    other = warm_up(tmp_path / "b", proposal=None, seed=1).path
    digests = [weights_digest(load_model(folder / "reference")) for folder in (finished, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert not (same / "proposal").exists()


class Kill(Exception):
    pass


def kill_at(monkeypatch, run, step):
    """Stop the run of this name as a kill would: after a step, with no further file written."""
    original = StepLog.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if self.path.stem == run and state.global_step == step:
            self._progress.stop()
            raise Kill

    monkeypatch.setattr(StepLog, "on_step_end", on_step_end)


@pytest.mark.parametrize(
    "run, step, continued",
    [
        # Every second step of eight has a checkpoint; what had finished before the kill is not trained again.
        ("proposal", 5, [("proposal", 4), ("reference", 0)]),
        ("reference", 1, [("reference", 0)]),
        ("reference", 7, [("reference", 6)]),
    ],
)
def test_a_killed_run_continues_from_its_checkpoint_to_the_same_weights_and_log(
    tmp_path, finished, monkeypatch, run, step, continued
):
    with monkeypatch.context() as patch:
        kill_at(patch, run, step)
        with pytest.raises(Kill):
            warm_up(tmp_path)
    assert not (tmp_path / "warmup" / run / "config.json").exists()
    started = []
    original = StepLog.on_train_begin

    def on_train_begin(self, args, state, control, **kwargs):
        started.append((self.path.stem, state.global_step))
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StepLog, "on_train_begin", on_train_begin)
    stage = warm_up(tmp_path)
    assert started == continued
    assert stage.finished
    for name in ("reference", "proposal"):
        assert weights_digest(load_model(stage.path / name)) == weights_digest(load_model(finished / name))
        assert losses(stage.path / f"{name}.jsonl") == losses(finished / f"{name}.jsonl")


def test_a_kill_while_the_model_is_saved_leaves_no_half_written_folder_behind(tmp_path, finished, monkeypatch):
    @contextlib.contextmanager
    def cut(target):
        aside = target.with_name(f".{target.name}.0.tmp")
        yield aside
        (aside / "model.safetensors").write_bytes(b"cut")
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr("disa.lm.hf_trainer.whole_folder", cut)
        with pytest.raises(Kill):
            warm_up(tmp_path, proposal=None)
    assert not (tmp_path / "warmup" / "reference").exists()
    stage = warm_up(tmp_path, proposal=None)
    assert weights_digest(load_model(stage.path / "reference")) == weights_digest(load_model(finished / "reference"))
    assert not list(stage.path.glob(".*.tmp"))


def distance(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("start", ["base", "proposal"])
def test_a_reference_starts_from_the_base_or_from_the_finished_proposal(tmp_path, finished, start):
    rate = 1e-9
    changes = {"reference": {"steps": 1, "noise": 0.5, "start": start}, "learning_rate": rate}
    folder = tmp_path / "warmup"
    StageFolder(tmp_path, "warmup", version=1, identity={}, inputs={}).begin()
    # A proposal that has moved far from the base, and a reference that takes one step too small to see.
    shutil.copytree(finished / "proposal", folder / "proposal")
    warm_up(tmp_path, **changes)
    reference = load_model(folder / "reference")
    origins = {
        "base": base_model(WarmupConfig(**TINY), TASK.alphabet)[0],
        "proposal": load_model(finished / "proposal"),
    }
    # AdamW's first step moves a weight by at most the learning rate, and weight decay by a part of it.
    assert distance(reference, origins.pop(start)) <= 2 * rate + 2.0**-24
    assert distance(reference, *origins.values()) > 0.01


def test_a_proposal_cannot_start_from_itself_nor_a_reference_from_a_proposal_that_is_not_made():
    with pytest.raises(ValidationError, match="proposal.start must be base"):
        WarmupConfig(proposal={"start": "proposal"})
    with pytest.raises(ValidationError, match="reference.start is proposal, but there is no proposal run"):
        WarmupConfig(proposal=None, reference={"start": "proposal"})


def test_more_noise_makes_a_weaker_model(tmp_path):
    # A path and two colours: 12121 and 21212 are the solutions, quickly learnt, and 1 in 16 random colourings.
    payload = json.dumps({"vertices": 5, "colors": 2, "edges": [[0, 1], [1, 2], [2, 3], [3, 4]]})
    prompt = Prompt("path", TASK.name, "warmup", "ab bc cd de/2:", payload, 1)
    numbers = np.stack([uniforms(0, "path", "reference", draw, 6) for draw in range(400)])

    def success(folder):
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        draws = draw_rows(
            model,
            tokenizer,
            [encode_prompt(tokenizer, prompt.prompt, LAW)] * 400,
            numbers,
            temperature=LAW.temperature,
        )
        return np.mean([TASK.reward(prompt, decode_completion(tokenizer, d.completion_ids)) for d in draws])

    changes = {"reference": {"steps": 80, "noise": 0.8}, "proposal": {"steps": 80}, "batch_size": 32, "log_every": 80}
    folder = warm_up(tmp_path, prompts=[prompt], demonstrations_per_prompt=200, **changes).path
    # Demonstrations succeed with probability 1 and 0.2 + 0.8 / 16 = 0.25. 400 draws have a standard error of at
    # most 0.025; the bounds leave ten of them for what eighty steps do not learn.
    assert success(folder / "proposal") > 0.75
    assert success(folder / "reference") < 0.5


def test_a_prompt_that_does_not_fit_the_small_models_context_is_refused(tmp_path):
    with pytest.raises(DisaError, match="exceeds the model's context of 16.*Fix: "):
        warm_up(tmp_path, small_model=TINY["small_model"] | {"context_length": 16}, sampling=LAW)


def test_no_warm_up_prompts_is_the_users_error(tmp_path):
    with pytest.raises(DisaError, match="tasks.warmup_prompts"):
        warm_up(tmp_path, prompts=[])


def test_a_base_that_cannot_be_loaded_is_the_users_error(tmp_path):
    with pytest.raises(DisaError, match="no loadable Hugging Face model.*Fix: "):
        warm_up(tmp_path, base=str(tmp_path / "missing"))


def test_a_folder_as_base_is_the_start_of_the_run(tmp_path, finished):
    changes = {"base": str(finished / "proposal"), "proposal": None, "learning_rate": 1e-9}
    folder = warm_up(tmp_path, reference={"steps": 1}, **changes).path
    # As above: one step of at most the learning rate.
    assert distance(load_model(folder / "reference"), load_model(finished / "proposal")) <= 2e-9 + 2.0**-24
