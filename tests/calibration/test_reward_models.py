"""A sequence classifier judges in calibration as it does in TRL's trainer."""

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

import disa
from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.loading import load_tokenizer
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt
from disa.tasks.reward_functions import RewardFunctions


@pytest.fixture(scope="module")
def reference(finished_run):
    return str(finished_run / "warmup" / "reference")


@pytest.fixture(scope="module")
def classifier(reference, tmp_path_factory):
    """Folder of a small classifier with one label."""
    tokenizer, folder = load_tokenizer(reference), tmp_path_factory.mktemp("classifier")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rows(finished_run):
    prompts = [p for path in (finished_run / "1_tasks").glob("*.parquet") for p in read_rows(path, Prompt)]
    return [{"prompt": p.prompt} for p in prompts if p.split == "train"]


def test_it_judges_as_trl_does_and_trains_on_its_anchor(tmp_path, reference, classifier, rows):
    args = disa.CalibrationConfig(
        str(tmp_path / "anchor"),
        inverse_temperature=2.0,
        num_generations=8,
        max_completion_length=7,
        reward_range=[-1.0, 1.0],
    )
    anchor = disa.calibrate(reference, classifier, rows, args)
    stored = {(row.prompt_id, row.completion): row.reward for row in anchor.trajectories()}
    assert len(set(stored.values())) > 10
    own = trainer_arguments(bf16=False, log_every=1) | {
        "max_steps": 1,
        "per_device_train_batch_size": 12,
        "num_generations": 4,
    }
    trainer = disa.DISATrainer(
        reference, classifier, anchor, disa.DISAConfig(str(tmp_path / "policy"), **own), Dataset.from_list(rows)
    )
    given = [(row.prompt_id, row.completion) for row in anchor.trajectories()[:12]]
    text = {row["prompt_id"]: row["prompt"] for row in trainer.train_dataset}
    inputs = [{"prompt": text[prompt_id]} for prompt_id, _ in given]
    found = trainer._calculate_rewards(inputs, [i["prompt"] for i in inputs], [c for _, c in given], None)
    # TRL pads the batch: another order of the same float32 sums.
    assert found[:, 0].tolist() == pytest.approx([stored[key] for key in given], abs=1e-5)
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_reward_does_not_depend_on_its_neighbours(classifier):
    judge = RewardFunctions(classifier, None)
    texts = ["1", "23", "123", "3213", "12"]
    together = judge(["1"] * 5, texts, {}, [])
    assert together == [judge(["1"], [text], {}, [])[0] for text in texts]


def test_another_models_rewards_have_another_identity(classifier, reference):
    model = LlamaForSequenceClassification.from_pretrained(classifier)
    tokenizer = load_tokenizer(classifier)
    named, given = RewardFunctions(classifier, None), RewardFunctions([model], None, [tokenizer])
    assert named.fingerprint == given.fingerprint
    with torch.no_grad():
        model.score.weight += 1.0
    assert RewardFunctions([model], None, [tokenizer]).fingerprint != given.fingerprint


def test_tokenizers_are_one_per_function(classifier):
    with pytest.raises(DisaError, match="1 reward_processing_classes for 2 reward functions"):
        RewardFunctions([classifier, len], None, [None])
