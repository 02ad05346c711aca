"""The real vLLM on a CPU: a tiny model with heads of 64, which its CPU kernels take, and a run drawn by it.

vLLM is no dependency: ``make test-vllm`` puts it into a folder of its own. Without it these tests are skipped.
"""

import copy
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from vllm_server import serve

TINY = {
    "tasks": {
        "name": "graph_coloring",
        "vertices": 5,
        "colors": 4,
        "train_prompts": 6,
        "heldout_prompts": 3,
        "warmup_prompts": 24,
    },
    "warmup": {
        "small_model": {"hidden_size": 64, "layers": 1, "heads": 1, "context_length": 64},
        "reference": {"steps": 40, "noise": 0.5},
        "proposal": {"steps": 60, "noise": 0.0},
        "batch_size": 32,
        "learning_rate": 0.01,
    },
    "sampling": {"max_completion_length": 7, "temperature": 0.8},
    "proposals": {
        "engine": "vllm",
        "vllm": {"enforce_eager": True, "gpu_memory_utilization": 0.1},
        "per_prompt": 16,
        "per_heldout_prompt": 8,
        "prompts_per_part": 3,
    },
    # vLLM in float32 was within 5e-7 nats per token of the scorer here; a bfloat16 engine is 5e-3 off.
    "scoring": {"parity_bound": 1e-5},
    "training": {
        "inverse_temperature": 2,
        "methods": ["disa", "grpo"],
        "steps": 4,
        "prompts_per_step": 3,
        "completions_per_prompt": 4,
        "learning_rate": 0.01,
        "warmup_steps": 1,
        "save_every": 2,
        "vllm": {"options": {"gpu_memory_utilization": 0.1}, "parity_bound": 1e-5},
    },
    "evaluation": {"samples_per_prompt": 4, "ks": [1, 4], "train_prompts": 2},
}

# vLLM warns on import of everything that is not there; warnings are errors in the tests.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    if find_spec("vllm"):
        import vllm
        import vllm.model_executor.layers.utils as layers
    else:
        collect_ignore_glob = ["test_*"]


def pytest_collection_modifyitems(items):
    # What vLLM's own modules warn of is not the project's.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(autouse=True, scope="session")
def plain_linear_layers():
    """vLLM's CPU backend packs linear weights and keeps none to load new ones into, as training does; a GPU's does not.

    Replaced by the plain product, which is what the packed one computes.
    """
    assert hasattr(layers, "dispatch_cpu_unquantized_gemm"), vllm.__version__

    def plain(layer, remove_weight):
        layer.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, weight, bias)

    patch = pytest.MonkeyPatch()
    patch.setattr(layers, "dispatch_cpu_unquantized_gemm", plain)
    yield
    patch.undo()


@pytest.fixture
def recipe_values():
    """The tiny recipe as plain values, free to be changed."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def vllm_run(tmp_path_factory) -> Path:
    """Recipe of a run whose trajectories vLLM drew from two models, up to its anchor. Read it; change only copies."""
    from disa.pipeline import Pipeline
    from disa.recipe import load_recipe

    folder = tmp_path_factory.mktemp("vllm")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(TINY | {"run_dir": str(folder / "run")}))
    Pipeline(load_recipe(folder / "recipe.yaml"), say=lambda line: None).run("anchor")
    return folder / "recipe.yaml"


@pytest.fixture(scope="session")
def served(vllm_run):
    """Address of a server of the run's proposal, started as the docs say."""
    model = vllm_run.parent / "run" / "warmup" / "proposal"
    with serve(model, "--dtype", "float32", "--logprobs-mode", "processed_logprobs") as url:
        yield url
