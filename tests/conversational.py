"""A run with a chat template, finished up to its anchor: what verl trains from."""

from pathlib import Path

import pytest
import yaml

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
RECIPE = {
    "tasks": {
        "name": "graph_coloring",
        "vertices": 5,
        "colors": 4,
        "train_prompts": 6,
        "heldout_prompts": 3,
        "warmup_prompts": 24,
    },
    "proposals": {"per_prompt": 8, "per_heldout_prompt": 4},
    "training": {
        "methods": ["disa"],
        "inverse_temperature": 2,
        "steps": 4,
        "prompts_per_step": 2,
        "completions_per_prompt": 4,
        "save_every": 2,
    },
    "evaluation": {"samples_per_prompt": 4, "ks": [1, 4], "train_prompts": 2},
}


@pytest.fixture(scope="session")
def conversational_run(tmp_path_factory) -> Path:
    """Recipe file of a run with a chat template, finished up to its anchor."""
    from disa.lm.loading import load_tokenizer
    from disa.pipeline import Pipeline
    from disa.recipe import load_recipe

    folder = tmp_path_factory.mktemp("verl")
    warmup = {
        "small_model": {"hidden_size": 16, "layers": 1, "heads": 2, "context_length": 64},
        "reference": {"steps": 30, "noise": 0.5},
        "proposal": None,
        "batch_size": 32,
        "learning_rate": 0.02,
    }
    sampling = {"max_completion_length": 7}
    values = RECIPE | {"run_dir": str(folder / "models"), "warmup": warmup, "sampling": sampling}
    (folder / "models.yaml").write_text(yaml.safe_dump(values))
    Pipeline(load_recipe(folder / "models.yaml"), say=lambda line: None).run("warmup")
    reference = folder / "models" / "warmup" / "reference"
    tokenizer = load_tokenizer(reference)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(reference)
    values = RECIPE | {
        "run_dir": str(folder / "run"),
        "models": {"reference": str(reference)},
        "sampling": sampling | {"conversational": True},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    Pipeline(load_recipe(folder / "recipe.yaml"), say=lambda line: None).run("anchor")
    return folder / "recipe.yaml"
