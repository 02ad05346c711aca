"""What goes to the hub with a policy, and stands in a run's model folder; only the hub's own calls are replaced."""

import functools

import pytest
from huggingface_hub import HfApi, ModelCard
from small_trainer import DISATrainer

from disa.training.card import TITLES, model_card

PAPER = "DISA: Offline Importance Sampling for Distribution-Matching LLM-RL"


@pytest.fixture
def uploads(monkeypatch):
    found = []

    def create_repo(self, repo_id, **options):
        return type("Repo", (), {"repo_id": f"me/{repo_id}" if "/" not in repo_id else repo_id})()

    def upload_folder(self, *, repo_id, folder_path, **options):
        found.append((repo_id, ModelCard.load(f"{folder_path}/README.md")))
        return "https://hub.example/commit/1"

    for function in (create_repo, upload_folder):
        monkeypatch.setattr(HfApi, function.__name__, function)
        # Older transformers hold on to the methods of one client.
        monkeypatch.setattr(
            f"transformers.trainer.{function.__name__}", functools.partial(function, None), raising=False
        )
    return found


def test_a_pushed_policy_names_anchor_beta_reward_flags_results_and_the_paper(small_run, tmp_path, uploads):
    trainer = small_run.trainer(tmp_path, hub_model_id="me/policy")
    trainer.train()
    trainer.push_to_hub(dataset_name="me/rows", tags="sums")
    ((repo, card),) = uploads
    assert repo == "me/policy" and card.data.datasets == "me/rows"
    assert {"disa", "trl", "sums"} <= set(card.data.tags) and card.data.library_name == "transformers"
    assert f"[{PAPER}](https://arxiv.org/abs/2605.17295)" in card.text and card.text.lstrip().startswith("# policy")
    beta = small_run.anchor.fingerprint.inverse_temperature
    assert f"| inverse temperature | `{beta}` |" in card.text and "| reward | `reward` |" in card.text
    assert f"Frozen log Z of {len(small_run.anchor.estimates)} prompts, digest `" in card.text
    flagged = sum("few_hits" in row.flags for row in small_run.anchor.estimates.values())
    assert flagged and f"| `few_hits` | {flagged} |" in card.text
    last = trainer.state.log_history[0]
    assert f"| KL to the target, nats | {last['kl_to_target']:.4g} |" in card.text
    # The reference is a folder of this machine: it is not named.
    assert card.data.base_model is None and "a local model" in card.text and str(small_run.reference) not in card.text


def test_a_base_from_the_hub_is_linked():
    text = model_card("p", "DISA", "org/base", paper="2605.17295", settings={}, logged={})
    card = ModelCard(text)
    assert card.data.base_model == "org/base" and "[org/base](https://huggingface.co/org/base)" in card.text


def test_a_method_of_another_paper_names_that_one_and_one_without_title_its_number():
    text = model_card("p", "FlowRL", "org/base", paper="2509.15207", settings={}, logged={})
    assert f"[{TITLES['2509.15207']}](https://arxiv.org/abs/2509.15207)" in text and PAPER not in text
    assert "[arXiv 2607.13394](" in model_card("p", "x", "org/base", paper="2607.13394", settings={}, logged={})


def test_checkpoints_of_a_trainer_carry_the_card_as_well(small_run, tmp_path):
    trainer = small_run.trainer(tmp_path, save_strategy="steps", save_steps=1)
    assert isinstance(trainer, DISATrainer)
    trainer.train()
    assert PAPER in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_model_folders_of_a_run_have_cards_of_their_methods(finished_run):
    disa = (finished_run / "6_training" / "disa" / "model" / "README.md").read_text(encoding="utf-8")
    grpo = (finished_run / "6_training" / "grpo" / "model" / "README.md").read_text(encoding="utf-8")
    assert PAPER in disa and "| `few_hits` |" in disa and "inverse temperature" in disa and "KL to the target" in disa
    assert PAPER not in grpo and "few_hits" not in grpo and "inverse temperature" not in grpo
    assert "graph_coloring" in grpo and str(finished_run) not in disa + grpo
