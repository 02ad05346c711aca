"""``disa init`` writes a recipe that loads and says what each line means; ``disa schema`` describes every field."""

import json

import pytest
import yaml
from pydantic import BaseModel

from disa.cli.main import main
from disa.comparison.config import ComparisonConfig
from disa.config import types_in_annotation
from disa.recipe import Recipe, load_recipe
from disa.study.config import StudyConfig


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(dataset, *others):
        code = main(["init", "--model", "org/model", "--dataset", dataset, "--output", "mine.yaml", *others])
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize("dataset", ["countdown", "gsm8k_train", "org/problems"])
def test_the_recipe_loads_and_explains_every_field(dataset, init, tmp_path):
    assert init(dataset)[0] == 0
    text = (tmp_path / "mine.yaml").read_text()
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.models.reference == "org/model"
    lines = text.splitlines()
    for section in ("sampling", "proposals", "training", "evaluation"):
        for field in yaml.safe_load(text)[section]:
            (at,) = [i for i, line in enumerate(lines) if line.startswith(f"  {field}:")][:1] or pytest.fail(field)
            assert lines[at - 1].startswith("  # "), field


def test_columns_of_a_local_file_are_recognised(init, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "1+1?", "final_answer": "2", "n": 1}) + "\n")
    assert init("rows.jsonl", "--verifier", "exact", "--proposal", "org/large")[0] == 0
    recipe = load_recipe(tmp_path / "mine.yaml")
    (source,) = recipe.tasks.sources
    assert source.columns == {"prompt": "question", "answer": "final_answer"}
    assert (source.path, source.verifier, recipe.models.proposal) == ("rows.jsonl", "exact", "org/large")


@pytest.mark.parametrize("row", [{"text": "a", "label": 1}, None])
def test_a_file_without_a_prompt_is_refused_by_its_columns(row, init, tmp_path):
    (tmp_path / "rows.jsonl").write_text("" if row is None else json.dumps(row) + "\n")
    code, said = init("rows.jsonl")
    assert code == 2
    assert f"no column looks like the prompt, found {'no row' if row is None else 'text, label'}" in said.err
    assert not (tmp_path / "mine.yaml").exists()


def test_a_recipe_is_never_overwritten(init, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    code, said = init("countdown")
    assert code == 2
    assert "mine.yaml: the file exists" in said.err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def models(model):
    inner = [t for f in model.model_fields.values() for t in types_in_annotation(f.annotation)]
    return {model}.union(*(models(t) for t in inner if isinstance(t, type) and issubclass(t, BaseModel)))


def test_the_schema_describes_every_field_of_every_section(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    described = {"Recipe": schema} | schema["$defs"]
    sections = (models(Recipe) | models(ComparisonConfig) | models(StudyConfig)) - {ComparisonConfig, StudyConfig}
    assert described.keys() == {model.__name__ for model in sections}
    for name, model in described.items():
        for field, found in model["properties"].items():
            assert found.get("description"), f"{name}.{field}"
