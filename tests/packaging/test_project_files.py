"""Files for others' machines: what they name exists here, and they agree with the package's own metadata."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import disa

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_the_citation_names_the_paper_as_the_readme_does():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paper = citation["preferred-citation"]
    assert re.search(r"title\s+= \{(.*)\}", readme)[1] == paper["title"]
    people = re.search(r"author\s+= \{(.*?)\},\n", readme, re.DOTALL)[1].split(" and ")
    people = [" ".join(person.split()) for person in people]
    listed = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert [name.replace("\n", " ").strip() for name in people] == listed and len(listed) == 12
    assert citation["version"] == disa.__version__ and citation["license"] == PROJECT["license"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_exists_and_end(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [name for name in re.findall(r"run: make ([a-z0-9-]+)", text) if name not in targets] == []
    extras = re.findall(r"-e '\.\[(\w+)\]'", text)
    assert [name for name in extras if name not in PROJECT["optional-dependencies"]] == []
    jobs = yaml.safe_load(text)["jobs"]
    called = [job["uses"] for job in jobs.values() if "uses" in job]
    assert all((ROOT / name).is_file() for name in called)
    assert jobs and all(job["timeout-minutes"] <= 90 for job in jobs.values() if "uses" not in job)
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_the_workflow_runs_what_make_test_runs():
    commands = re.search(r"^test: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    steps = [step.get("run", "") for name in ("lint", "test") for step in jobs[name]["steps"]]
    for command in ("ruff check .", "ruff format --check .", "mypy", '-m "not slow and not gpu"'):
        assert command in commands and any(command in step for step in steps), command


def test_the_workflow_takes_torch_for_cpus_and_skips_no_browser():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["env"]["PIP_EXTRA_INDEX_URL"].endswith("/whl/cpu") and workflow["env"]["UV_TORCH_BACKEND"] == "cpu"
    (tests,) = (step for step in workflow["jobs"]["test"]["steps"] if "pytest" in step.get("run", ""))
    (required,) = tests["env"]
    assert f'os.environ.get("{required}")' in (ROOT / "tests" / "display" / "test_in_a_browser.py").read_text()
    # A machine's own index decides where the variable is not set.
    assert "index-url" not in (ROOT / "Makefile").read_text() + (ROOT / ".ci" / "run").read_text()


def test_the_oldest_torch_of_the_metadata_is_the_one_that_is_tried():
    (bound,) = re.findall(r"torch>=([\d.]+)", " ".join(PROJECT["dependencies"]))
    places = [ROOT / "Makefile", ROOT / ".github" / "workflows" / "ci.yml", ROOT / "tests/packaging/test_wheel.py"]
    tried = [found for path in places for found in re.findall(r"torch==([\d.]+)", path.read_text(encoding="utf-8"))]
    assert len(tried) >= 4 and set(tried) == {f"{bound}.0"}


def test_only_the_job_that_publishes_may_ask_for_an_identity():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    asked = {name: job.get("permissions", {}) for name, job in jobs.items()}
    assert asked == {"build": {}, "tests": {}, "publish": {"id-token": "write"}}
    assert jobs["publish"]["needs"] == ["build", "tests"]
    assert not any("secrets." in path.read_text() for path in WORKFLOWS)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_what_the_build_needs_and_do_not_run_as_root(path):
    text = path.read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    # What pyproject.toml names, and what .dockerignore lets through.
    assert {"pyproject.toml", PROJECT["readme"], "LICENSE", "src", "recipes"} == set(copied)
    let_through = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(let_through) == set(copied)
    assert re.search(r"^USER (\d+)$", text, re.MULTILINE)[1] != "0"
    assert text.index("USER ") < text.index('ENTRYPOINT ["disa"]')
    (mounted,) = re.findall(r'-v "\$PWD/runs:(\S+)"', text)
    assert mounted == re.search(r"^WORKDIR (\S+)$", text, re.MULTILINE)[1] + "/runs"  # a recipe's run_dir is runs/NAME
    recipes = re.findall(r"/opt/disa/(recipes/\S+)", text)
    assert recipes and all((ROOT / name).is_file() for name in recipes)
    assert [e for e in re.findall(r"/opt/disa\[(\w+)\]", text) if e not in PROJECT["optional-dependencies"]] == []


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_ask_for_something(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"] and form["description"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])
