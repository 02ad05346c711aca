"""After each stage a run says what a person must know, and warns of what is usually a mistake."""

import re

import pytest

from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.folders import StageFolder
from disa.tasks.graph_coloring import GraphColoring


@pytest.fixture
def said(run_copy):
    """Lines of a run of the finished recipe with changed settings."""

    def run(*settings, until="report"):
        recipe, _ = run_copy
        lines = []
        Pipeline(load_recipe(recipe, list(settings)), say=lines.append).run(until)
        return lines

    return run


def test_every_stage_that_works_is_followed_by_its_figures(said):
    lines = "\n".join(said("proposals.seed=5"))
    for stage, figures in {
        "2_proposals": r"cut at the length limit: reference [\d.]+%, proposal [\d.]+%",
        "3_scoring": r"mean reward: reference 0\.\d+, proposal 0\.\d+",
        "4_partition": r"log Z of \d+ prompts: \d+ without a flag",
        "6_training/disa": r"last logged step: reward \d\.\d+, kl_to_target -?\d+\.\d+",
        "7_evaluation/disa": r"mean reward \d\.\d+, cut [\d.]+%",
    }.items():
        assert re.search(rf"{stage}: done in [\d.]+ s\n  {figures}", lines), (stage, lines)


def test_finished_stages_say_nothing_more(said):
    assert all("finished earlier" in line for line in said())


def test_a_reward_that_never_varies_is_warned_of(said, monkeypatch):
    monkeypatch.setattr(GraphColoring, "reward", lambda self, prompt, completion: 0.0)
    lines = said("scoring.parity_bound=0.01", until="training")
    assert any("warning: every reward is 0, so the target is the reference itself" in line for line in lines)
    assert any("warning: the reward was 0 in every logged step" in line for line in lines)
    assert any("warning: more than 50% of the prompts are flagged" in line for line in lines)


def test_undecided_rewards_beyond_the_bound_are_warned_of(said, monkeypatch):
    reward = GraphColoring.reward
    monkeypatch.setattr(GraphColoring, "reward", lambda self, p, c: None if p.prompt_id < "8" else reward(self, p, c))
    lines = said("scoring.parity_bound=0.01", until="scoring")
    assert any("warning: more than 10% of the rewards are undecided" in line for line in lines)
    assert any(re.search(r"undecided [\d.]+%", line) for line in lines)


def test_completions_that_are_mostly_cut_are_warned_of(said, reference_folder):
    given = ("warmup=null", f"models.reference={reference_folder}", "sampling.max_completion_length=2")
    lines = said(*given, until="proposals")
    assert any("warning: more than 50% of the reference's completions are cut" in line for line in lines)


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("checkpoints/checkpoint-12/trainer_state.json", "it goes on from the checkpoint of step 12"),
        ("checkpoints/checkpoint-12/model.safetensors", "nothing was finished yet, it begins again"),
        ("part-000000.parquet", "finished parts are kept: 1"),
        (None, "nothing was finished yet, it begins again"),
    ],
)
def test_an_interrupted_stage_says_what_it_will_go_on_from(file, kept, run_copy, monkeypatch):
    def interrupted(stage, *others):
        if file is not None:
            (stage.path / file).parent.mkdir(exist_ok=True, parents=True)
            (stage.path / file).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("disa.training.run.run_training", interrupted)
    lines = []
    with pytest.raises(KeyboardInterrupt):
        Pipeline(load_recipe(run_copy[0], ["training.seed=5"]), say=lines.append).run("training")
    assert lines[-1] == f"6_training/disa: interrupted; {kept}"
    assert not StageFolder(run_copy[1], "6_training/disa", version=0, identity={}, inputs={}).finished
