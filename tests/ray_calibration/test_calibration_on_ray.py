"""Calibration on a real Ray of two nodes on one machine: the anchor is the local one, whatever happens to nodes."""

import importlib.util
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from disa.errors import DisaError
from disa.pipeline import Pipeline
from disa.ray.backend import backend_on
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory
from ray_cluster import Cluster

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: make test-ray", allow_module_level=True)

pytestmark = pytest.mark.timeout(1800)

CALIBRATED = ("2_proposals", "3_scoring", "5_anchor")
SLOW = """
import os
import time


def reward(completions, **columns):
    end = time.monotonic() + 6 * len(completions)
    while os.path.exists(os.environ.get("KILLS_PENDING", "")) and time.monotonic() < end:
        time.sleep(0.1)
    return [float("1" in c) for c in completions]
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Recipe of two given models, and its anchor made by one process."""
    folder = tmp_path_factory.mktemp("local")
    small = {"hidden_size": 16, "layers": 1, "heads": 2, "context_length": 64}
    values = {
        "run_dir": str(folder / "models"),
        "tasks": {
            "name": "graph_coloring",
            "vertices": 5,
            "colors": 3,
            "train_prompts": 24,
            "heldout_prompts": 8,
            "warmup_prompts": 24,
        },
        "warmup": {
            "small_model": small,
            "reference": {"steps": 20, "noise": 0.5},
            "proposal": {"steps": 30, "noise": 0.1},
            "batch_size": 32,
        },
        "sampling": {"max_completion_length": 7},
        "proposals": {"per_prompt": 8, "per_heldout_prompt": 8},
        "scoring": {"trajectories_per_part": 16},
        "training": {"methods": ["disa"], "inverse_temperature": 2, "prompts_per_step": 4},
    }
    write(folder / "models.yaml", values)
    Pipeline(load_recipe(folder / "models.yaml"), say=print).run("warmup")
    models = {role: str(folder / "models" / "warmup" / role) for role in ("reference", "proposal")}
    values = values | {"run_dir": str(folder / "run"), "models": models, "warmup": None}
    write(folder / "recipe.yaml", values)
    Pipeline(load_recipe(folder / "recipe.yaml"), say=print).run("anchor")
    return folder


def write(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one core, the head with none."""
    cluster = Cluster(KILLS_PENDING=str(tmp_path_factory.mktemp("kills") / "pending"))
    cluster.start(cpus=0)
    for _ in range(2):
        cluster.start(cpus=1)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def slow(local) -> Path:
    """The same models with a reward that is slow on nodes until all kills are done, in some 96 parts."""
    folder = local / "slow"
    folder.mkdir()
    (folder / "reward.py").write_text(SLOW)
    prompts = read_rows(local / "run" / "1_tasks" / "train.parquet", Prompt)
    rows = "".join(json.dumps({"prompt": p.prompt, "answer": f"x{i}"}) + "\n" for i, p in enumerate(prompts))
    (folder / "rows.jsonl").write_text(rows)
    source = {"path": str(folder / "rows.jsonl"), "verifier": f"{folder / 'reward.py'}:reward"}
    values = yaml.safe_load((local / "recipe.yaml").read_text()) | {"run_dir": str(folder / "run")}
    values["tasks"] = {"name": "dataset", "sources": [source]}
    values["scoring"] = {"trajectories_per_part": 2}
    write(folder / "recipe.yaml", values)
    Pipeline(load_recipe(folder / "recipe.yaml"), say=print).run("anchor")
    return folder


def run_on(cluster: Cluster, local: Path, folder: Path, *settings: str) -> subprocess.Popen:
    """``disa run --until anchor --on ray:ADDRESS`` into another run directory."""
    folder.mkdir(exist_ok=True)
    sets = [f"run_dir={folder / 'run'}", *settings]
    command = [sys.executable, "-m", "disa", "run", str(local / "recipe.yaml"), "--until", "anchor"]
    command += ["--on", f"ray:{cluster.address}"] + [word for s in sets for word in ("--set", s)]
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)


def contents(run: Path) -> dict[str, str]:
    return {name: read_json(run / name / "manifest.json")["content"] for name in CALIBRATED}


def assert_same(local: Path, folder: Path) -> None:
    """The same files to the byte, and so nothing lost and nothing doubled."""
    assert contents(folder / "run") == contents(local / "run")
    rows = read_rows(folder / "run" / "3_scoring", ScoredTrajectory)
    prompts = sum(len(read_rows(local / "run" / "1_tasks" / f"{s}.parquet", Prompt)) for s in ("train", "heldout"))
    assert len({(r.prompt_id, r.source, r.draw) for r in rows}) == len(rows) == 8 * prompts


def test_the_anchor_made_on_ray_is_the_one_made_locally_to_the_byte(cluster, local, tmp_path):
    assert run_on(cluster, local, tmp_path).wait(900) == 0, (tmp_path / "log.txt").read_text()
    assert_same(local, tmp_path)


def test_more_nodes_than_parts_make_the_same_anchor(cluster, local, tmp_path):
    # One part of each stage, and two nodes. A local run of the same sizes: batches decide the last bits of a sum.
    sizes = ("proposals.prompts_per_part=1000", "scoring.trajectories_per_part=100000")
    here = tmp_path / "here"
    Pipeline(load_recipe(local / "recipe.yaml", [f"run_dir={here / 'run'}", *sizes]), say=print).run("anchor")
    assert run_on(cluster, local, tmp_path, *sizes).wait(900) == 0, (tmp_path / "log.txt").read_text()
    assert_same(here, tmp_path)


def killed_and_replaced(cluster, local, folder, kills, seed):
    """Run while nodes are killed, each a random while after the last one's loss was made good, and replaced."""
    generator, moments = random.Random(seed), [0]
    process = run_on(cluster, local, folder)
    workers = [n for n, node in enumerate(cluster.nodes) if n and node.poll() is None]
    pending = Path(cluster.environment["KILLS_PENDING"])
    pending.touch()
    try:
        while process.poll() is None and len(moments) <= kills:
            made = len(list(folder.glob("run/[23]_*/*.parquet")))
            if made > moments[-1]:
                time.sleep(generator.uniform(0.0, 3.0))
                # Parts that are made while the node goes down do not show that its loss was made good.
                cluster.kill(workers.pop(generator.randrange(len(workers))))
                moments.append(len(list(folder.glob("run/[23]_*/*.parquet"))))
                workers.append(cluster.start(cpus=1))
            time.sleep(0.1)
        pending.unlink()
        assert process.wait(900) == 0, (folder / "log.txt").read_text()
    finally:
        pending.unlink(missing_ok=True)
        process.kill()
    begun_again = (folder / "log.txt").read_text().count("is asked for again")
    print(f"parts at each kill: {moments[1:]}, begun again {begun_again} times")
    assert len(moments) == kills + 1, moments
    assert_same(local, folder)


def test_a_killed_node_loses_nothing_and_doubles_nothing(cluster, local, tmp_path):
    killed_and_replaced(cluster, local, tmp_path, 1, seed=1)


@pytest.mark.slow
def test_nodes_killed_at_ten_random_moments_lose_nothing_and_double_nothing(cluster, slow, tmp_path):
    killed_and_replaced(cluster, slow, tmp_path, 10, seed=10)


def test_a_node_that_is_lost_for_good_leaves_its_parts_to_the_others(cluster, local, tmp_path):
    process = run_on(cluster, local, tmp_path)
    while process.poll() is None and len(list(tmp_path.glob("run/2_proposals/*.parquet"))) < 3:
        time.sleep(0.1)
    cluster.kill(len(cluster.nodes) - 1)
    try:
        assert process.wait(900) == 0, (tmp_path / "log.txt").read_text()
    finally:
        cluster.start(cpus=1)
    assert_same(local, tmp_path)


def test_a_node_without_the_rewards_package_ends_the_run_with_node_and_package(cluster, local, tmp_path):
    (tmp_path / "head" / "only_here").mkdir(parents=True)
    reward = "def reward(completions, **columns):\n    return [float('1' in c) for c in completions]\n"
    (tmp_path / "head" / "only_here" / "__init__.py").write_text(reward)
    rows = tmp_path / "rows.jsonl"
    # Prompts that the small model's tokenizer can spell.
    prompts = read_rows(local / "run" / "1_tasks" / "train.parquet", Prompt)
    rows.write_text("".join(json.dumps({"prompt": p.prompt, "answer": f"x{i}"}) + "\n" for i, p in enumerate(prompts)))
    cluster.environment["PYTHONPATH"] += f":{tmp_path / 'head'}"
    try:
        values = yaml.safe_load((local / "recipe.yaml").read_text())
        values["tasks"] = {"name": "dataset", "sources": [{"path": str(rows), "verifier": "only_here:reward"}]}
        write(tmp_path / "recipe.yaml", values)
        assert run_on(cluster, tmp_path, tmp_path).wait(900) == 2, (tmp_path / "log.txt").read_text()
    finally:
        cluster.environment["PYTHONPATH"] = cluster.environment["PYTHONPATH"].removesuffix(f":{tmp_path / 'head'}")
    said = (tmp_path / "log.txt").read_text()
    assert "disa: node " in said and "cannot import only_here (ModuleNotFoundError" in said


CALIBRATE = """
import sys
import disa
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt


def shares_a_colour(completions, **columns):
    return [float("1" in c) for c in completions]


run, output, backend = sys.argv[1:4]
rows = [{"prompt": p.prompt} for p in read_rows(f"{run}/1_tasks/train.parquet", Prompt)[:12]]
settings = {"inverse_temperature": 2, "max_completion_length": 7, "num_generations": 8}
disa.calibrate(
    sys.argv[4], shares_a_colour, rows, disa.CalibrationConfig(output, **settings), backend=backend or None
)
"""


def test_calibrate_from_python_on_ray_makes_the_anchor_that_it_makes_here(cluster, local, tmp_path):
    script, reference = tmp_path / "script.py", str(local / "models" / "warmup" / "reference")
    script.write_text(CALIBRATE)
    for name, backend in (("here", ""), ("there", f"ray:{cluster.address}")):
        command = [sys.executable, str(script), str(local / "run"), str(tmp_path / name), backend, reference]
        done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


ACTORS = """
import json
import os
import sys
from disa.errors import DisaError
from disa.ray.backend import RayBackend


def make(block, advance):
    return [os.environ["CUDA_VISIBLE_DEVICES"]]


found = dict(RayBackend(sys.argv[1], gpus=2).make({"a": [1], "b": [2]}, None, make))
try:
    list(RayBackend(sys.argv[1], gpus=4).make({"a": [1]}, None, make))
except DisaError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


def test_an_actor_has_as_many_gpus_of_a_node_as_its_model_is_spread_over(tmp_path):
    cluster = Cluster()
    try:
        cluster.start(cpus=0)
        for _ in range(2):
            cluster.start(cpus=1, gpus=3)  # as they are counted; none is there
        (tmp_path / "script.py").write_text(ACTORS)
        command = [sys.executable, str(tmp_path / "script.py"), cluster.address]
        done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    finally:
        cluster.close()
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("refused").startswith("--on ray: an actor needs 4 GPUs, and the largest node has 3")
    assert {key: len(rows[0].split(",")) for key, rows in found.items()} == {"a": 2, "b": 2}


def test_a_device_map_with_one_gpu_to_spread_over_is_refused_before_ray_is_asked(local):
    recipe = load_recipe(local / "recipe.yaml", ["models.device_map=auto"])
    with pytest.raises(DisaError, match="models.device_map is 'auto', and an actor on Ray has one GPU"):
        backend_on("ray:127.0.0.1:1", recipe)
