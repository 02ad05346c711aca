"""vLLM draws the trajectories: offline from two models, and behind its own server."""

import json
import shutil
import signal
import string
import subprocess
import sys

import pytest
import yaml
from vllm_server import serve

from disa.cli.main import main
from disa.errors import DisaError
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import EvaluationRecord, Trajectory
from disa.warmup.config import SmallModelConfig
from disa.warmup.small_model import character_tokenizer, small_model

# float32 arithmetic in another order: below 5e-7 nats per token here, on completions of up to 7 tokens. The recipe's
# bound, 1e-5, is twenty times that, and a five-hundredth of what bfloat16 weights are off.
BOUND = 1e-5


def run(recipe, *overrides, until="anchor"):
    Pipeline(load_recipe(recipe, list(overrides)), say=lambda line: None).run(until)
    return recipe.parent / "run"


def trajectories(run_dir):
    return sorted(read_rows(run_dir / "2_proposals", Trajectory), key=lambda t: (t.prompt_id, t.source, t.draw))


@pytest.fixture
def copy_of(vllm_run, tmp_path, recipe_values):
    """Recipe file of a copy of the run that has no trajectories yet."""
    folder = vllm_run.parent / "run"
    for name in ("1_tasks", "warmup"):
        shutil.copytree(folder / name, tmp_path / "run" / name, copy_function=shutil.copy2)
    values = recipe_values | {"run_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def test_two_models_draw_under_vllm_through_to_the_anchor(vllm_run):
    folder = vllm_run.parent / "run"
    parity = json.loads((folder / "3_scoring" / "parity.json").read_text())
    assert parity["reference"]["trajectories"] == 6 * 4 + 3 * 2
    assert parity["proposal"]["trajectories"] == 6 * 12 + 3 * 6
    for source in ("reference", "proposal"):
        assert parity[source]["max"] < BOUND, parity
    rows = trajectories(folder)
    assert {row.truncated for row in rows} == {True, False}  # both ways of ending were drawn and scored
    assert len({row.completion for row in rows}) > 20
    assert (folder / "5_anchor" / "manifest.json").is_file()


def test_the_same_seeds_give_the_same_tokens_and_others_give_others(vllm_run, copy_of):
    again = trajectories(run(copy_of, "proposals.prompts_per_part=2", "proposals.batch_size=5", until="proposals"))
    first = trajectories(vllm_run.parent / "run")
    # Another batch adds in another order: tokens are equal, log-probabilities to rounding.
    assert [row.completion_ids for row in again] == [row.completion_ids for row in first]
    assert [row.log_sampler for row in again] == pytest.approx([row.log_sampler for row in first], abs=7 * BOUND)
    shutil.rmtree(copy_of.parent / "run" / "2_proposals")
    other = trajectories(run(copy_of, "proposals.seed=1", until="proposals"))
    assert [row.completion_ids for row in other] != [row.completion_ids for row in first]


KILLED = """
import os, signal, sys
from disa.cli.main import main
from disa.runs.folders import StageFolder
write, parts = StageFolder.write_part, []
def write_and_die(self, key, rows, kind):
    write(self, key, rows, kind)
    parts.append(key)
    if self.path.name == "2_proposals" and len(parts) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
StageFolder.write_part = write_and_die
sys.exit(main(["proposals", sys.argv[1]]))
"""


def test_a_killed_proposals_stage_continues_where_it_was(vllm_run, copy_of):
    done = subprocess.run([sys.executable, "-c", KILLED, str(copy_of)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    folder = copy_of.parent / "run" / "2_proposals"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    # All parts of the reference, which comes first, and one of the proposal.
    assert sorted(p.stem for p in kept) == ["part-000000-proposal", *(f"part-00000{i}-reference" for i in (0, 3, 6))]
    run(copy_of, until="proposals")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows, whole = trajectories(copy_of.parent / "run"), trajectories(vllm_run.parent / "run")
    assert [row.completion_ids for row in rows] == [row.completion_ids for row in whole]


def test_its_server_draws_exact_tokens_with_exact_log_probabilities(copy_of, served):
    values = yaml.safe_load(copy_of.read_text())
    del values["proposals"]["vllm"]
    values["proposals"] |= {"engine": "openai", "openai": {"proposal": f"openai:{served}/v1#tiny"}}
    copy_of.write_text(yaml.safe_dump(values))
    folder = run(copy_of)
    parity = json.loads((folder / "3_scoring" / "parity.json").read_text())
    assert parity["proposal"]["max"] < BOUND and "unchecked" not in parity
    manifest = json.loads((folder / "2_proposals" / "manifest.json").read_text())
    assert (manifest["engine"], manifest["retokenised"], manifest["without_log_prob"]) == ("openai", 0, 0)
    first = trajectories(folder)
    shutil.rmtree(folder / "2_proposals")
    again = trajectories(run(copy_of, "proposals.openai.concurrency=1", until="proposals"))
    assert [row.completion_ids for row in again] == [row.completion_ids for row in first]


@pytest.mark.parametrize(
    "options",
    [("--logprobs-mode", "processed_logprobs"), ("--dtype", "float32")],
    ids=["bfloat16, its choice", "log-probabilities before the temperature, its default"],
)
def test_a_server_that_was_started_otherwise_is_refused_with_the_command_line(copy_of, options):
    values = yaml.safe_load(copy_of.read_text())
    del values["proposals"]["vllm"]
    with serve(copy_of.parent / "run" / "warmup" / "proposal", *options) as url:
        values["proposals"] |= {"engine": "openai", "openai": {"proposal": f"openai:{url}/v1#tiny"}}
        copy_of.write_text(yaml.safe_dump(values))
        with pytest.raises(DisaError, match="disagree on proposal draws") as refusal:
            run(copy_of)
    assert "vllm serve MODEL --dtype float32 --logprobs-mode processed_logprobs" in str(refusal.value)


def test_a_served_model_gets_the_numbers_of_the_folder_it_serves(vllm_run, served, tmp_path):
    folder, proposal = tmp_path / "evaluation", vllm_run.parent / "run" / "warmup" / "proposal"
    options = "vertices=5 colors=4 train_prompts=6 heldout_prompts=6 warmup_prompts=24".split()
    task = ["--task", "graph_coloring", *(part for option in options for part in ("--option", option))]
    how = "--samples 1 --temperature 0 --max-tokens 7 --prompt-format text".split()
    models = [f"served=openai:{served}/v1#tiny", f"local={proposal}"]
    assert main(["evaluate", *models, *task, *how, "--output", str(folder)]) == 0
    of_served, of_local = (
        [(r.prompt_id, r.completion, r.truncated, r.reward) for r in read_rows(path, EvaluationRecord)]
        for path in (folder / "samples" / "graph_coloring" / name for name in ("served", "local"))
    )
    assert of_served == of_local and len(of_local) == 6
    assert all(completion for _, completion, *_ in of_local)


@pytest.fixture
def judging(tmp_path):
    """Folder of a random model that reads a whole question, with a chat template."""
    tokenizer = character_tokenizer(string.printable)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model = small_model(SmallModelConfig(hidden_size=64, layers=1, heads=1, context_length=4096), tokenizer, seed=0)
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def test_a_served_model_judges_and_answers_that_cannot_be_read_are_abstentions(judging, tmp_path, capsys):
    labels = {"b + a": "same", "a - -b": "different"}
    pairs = [{"problem": "add", "first": "a + b", "second": text, "label": label} for text, label in labels.items()]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    command = ["judge", "--calibration", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "o"), "--yes"]
    command += ["--max-tokens", "64", "--json"]
    with serve(judging, "--dtype", "float32") as url:
        command += ["--judge", f"openai:{url}/v1#tiny"]
        assert main(command) == 0
        found = json.loads(capsys.readouterr().out)["calibration"]
    # A random model answers, and says no verdict: each pair is asked about in both orders and once more.
    assert found["pairs"] == 2 and sum(found["abstained"].values()) == 2
    log = next(judging.parent.glob("server-*.log")).read_text()
    assert log.count('"POST /v1/chat/completions HTTP/1.1" 200 OK') >= 4
