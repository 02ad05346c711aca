"""Tiny twins of the recipes for maths and code, with their tasks, proposals and methods, from start to report."""

import json
from pathlib import Path

import pytest
import yaml

from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory
from disa.tasks import dataset as dataset_task
from tiny_qwen import data, write_model

SMALL = {
    "proposals.per_prompt": 8,
    "proposals.per_heldout_prompt": 4,
    "proposals.pilot": {"prompts": 3, "draws": 4},
    "sampling.max_completion_length": 4,
    "training.steps": 2,
    "training.warmup_steps": 1,
    "training.prompts_per_step": 2,
    "training.completions_per_prompt": 4,
    "training.micro_batch": 4,
    "training.lora": {"rank": 2},
    "evaluation.samples_per_prompt": 2,
    "evaluation.ks": [1, 2],
    "evaluation.train_prompts": 2,
}


@pytest.mark.parametrize("name", ["mbpp", "gsm8k", "math"])
def test_a_twin_of_the_recipe_runs_from_start_to_report(name, tmp_path, monkeypatch):
    recipe = yaml.safe_load(Path(f"recipes/{name}-qwen.yaml").read_text())
    as_it_stands = load_recipe(f"recipes/{name}-qwen.yaml")
    assert as_it_stands.tasks.validation_share > 0, "the search of its comparison needs validation prompts"
    recipe["run_dir"] = str(tmp_path / "run")
    recipe["models"] = {
        "reference": write_model(tmp_path / "reference", 0),
        "proposal": write_model(tmp_path / "proposal", 1),
    }
    for number, (source, rows) in enumerate(zip(recipe["tasks"]["sources"], data(name), strict=True)):
        path = tmp_path / f"rows{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for field in ("hub", "revision", "split"):
            source.pop(field, None)
        source["path"] = str(path)
    for key, value in SMALL.items():
        section, field = key.split(".")
        recipe[section][field] = value
    # The twin's rows are not the benchmark's.
    monkeypatch.setattr(dataset_task, "verify_benchmark", lambda *args, **how: "a test's rows")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = []
    Pipeline(load_recipe(tmp_path / "recipe.yaml"), say=lines.append).run()

    run = tmp_path / "run"
    prompts = read_rows(run / "1_tasks", Prompt)
    assert all("level 5" not in prompt.prompt for prompt in prompts)
    assert {prompt.split for prompt in prompts} >= {"train", "heldout"}
    solved = [row.reward for row in read_rows(run / "3_scoring", ScoredTrajectory)]
    assert 0 < sum(solved) < len(solved), "rewards are all the same"
    assert read_json(run / "pilot" / "manifest.json")["chosen"] in " ".join(lines)
    parity = read_json(run / "3_scoring" / "parity.json")
    assert all(parity[source]["mean"] < 1e-5 for source in ("reference", "proposal") if source in parity)
    for method in recipe["training"]["methods"]:
        assert (run / "6_training" / method / "model" / "config.json").is_file()
    page = (run / "8_report" / "report.html").read_text()
    assert "pass@2" in page
