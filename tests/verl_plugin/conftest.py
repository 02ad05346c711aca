"""verl as an installed plugin's host finds it, and a run with a chat template up to its anchor.

These tests need the real verl, which is no dependency: ``make test-verl`` puts it into a folder of its own. Without
it they are skipped.
"""

import contextlib
import importlib.metadata
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
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


class PyprojectEntryPoints(importlib.metadata.DistributionFinder):
    """Entry points as pyproject.toml declares them now; an editable install keeps those of its day."""

    def find_distributions(self, context=None):
        if context is None or context.name is None:
            yield Declared()


class Declared(importlib.metadata.Distribution):
    """The project's distribution, of which only entry points are asked."""

    def read_text(self, filename):
        if filename == "METADATA":
            return "Metadata-Version: 2.1\nName: disa-declared\nVersion: 0\n"
        if filename != "entry_points.txt":
            return None
        groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        return "\n".join(f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in e.items()) for g, e in groups.items())

    def locate_file(self, path):
        return ROOT / path


# verl warns on import of every engine and accelerator that is not there; warnings are errors in the tests.
with warnings.catch_warnings(), contextlib.suppress(ImportError):
    warnings.simplefilter("ignore")
    sys.meta_path.append(PyprojectEntryPoints())
    import verl  # noqa: F401
    import verl.trainer.main_ppo
    import verl.trainer.ppo.ray_trainer  # noqa: F401
    import verl.workers.engine.utils  # noqa: F401
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, PyprojectEntryPoints)]


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
