"""Imports point upstream only, and nothing left of the anchor knows the policy."""

import ast
from pathlib import Path

import disa

ROOT = Path(disa.__file__).parent
PIPELINE = ("tasks", "warmup", "proposals", "scoring", "partition", "anchor", "training", "evaluation", "report")
# Folders that only one stage uses stand where that stage stands.
RANK = {name: rank for rank, name in enumerate(PIPELINE)} | {
    "rewards": PIPELINE.index("tasks"),
    "objectives": PIPELINE.index("training"),
    "verl": PIPELINE.index("training"),
}
LEFT_OF_THE_WALL = {"tasks", "rewards", "warmup", "proposals", "scoring", "partition", "anchor"}
RIGHT_OF_THE_WALL = {"objectives", "training", "verl"}
# What training may know of the offline side, each with its reason.
THROUGH_THE_WALL = {
    # The offline rows enter the forward projection with the weights that log Z was estimated with, their tail
    # smoothed as the estimator psis does: pure functions of frozen numbers, which cannot change log Z.
    ("training/trajectory_weights.py", "disa.partition.log_weights.balance_log_weights"),
    ("training/trajectory_weights.py", "disa.partition.psis.smoothed_log_weights"),
    ("training/trajectory_weights.py", "disa.partition.draws.Draws"),
}
# Packages below all stages, lowest first: each may import those before it.
FOUNDATION = ("runs", "lm", "display")


def imports_of(path):
    """Every absolute name a file imports from disa, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import, line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "disa"}


def stage_of(name):
    """The stage folder an imported name lives in, None for the foundation."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANK else None


IMPORTS = {str(path.relative_to(ROOT)): imports_of(path) for path in sorted(ROOT.rglob("*.py"))}


def edges():
    """(file, its stage, imported name, that name's stage) wherever both sides are stages."""
    for file, names in IMPORTS.items():
        own = file.split("/")[0]
        for name in sorted(names):
            if own in RANK and stage_of(name) is not None and stage_of(name) != own:
                yield file, own, name, stage_of(name)


def test_every_stage_folder_was_looked_at():
    assert {file.split("/")[0] for file in IMPORTS} >= set(RANK)
    assert len(list(edges())) > 10


def test_no_stage_imports_a_later_one():
    wrong = [f"{file} imports {name}" for file, own, name, other in edges() if RANK[other] > RANK[own]]
    assert wrong == []


def test_nothing_left_of_the_anchor_knows_training_or_its_objectives():
    wrong = [
        f"{file} imports {name}"
        for file, own, name, other in edges()
        if own in LEFT_OF_THE_WALL and other in RIGHT_OF_THE_WALL
    ]
    assert wrong == []


def test_training_and_objectives_reach_the_offline_side_only_through_the_anchor():
    reached = {
        (file, name)
        for file, own, name, other in edges()
        if own in RIGHT_OF_THE_WALL and other in {"proposals", "scoring", "partition", "warmup"}
    }
    assert reached == THROUGH_THE_WALL


def test_objectives_import_nothing_of_the_project_but_themselves():
    wrong = {n for f, names in IMPORTS.items() if f.startswith("objectives/") for n in names if "objectives" not in n}
    assert wrong == set()


def test_the_foundation_imports_stages_only_where_it_composes_them():
    # recipe collects the stages' configurations, preflight and pipeline use them, __init__ names what is public.
    composers = {"recipe.py", "preflight.py", "pipeline.py", "__init__.py"}
    foundation = {f: n for f, n in IMPORTS.items() if ("/" not in f and f not in composers) or f.startswith(FOUNDATION)}
    wrong = [f"{file} imports {name}" for file, names in foundation.items() for name in names if stage_of(name)]
    assert len(foundation) >= 20
    assert wrong == []


def test_what_a_run_is_made_of_knows_no_model():
    wrong = [f"{f} imports {n}" for f, names in IMPORTS.items() if f.startswith("runs/") for n in names if ".lm" in n]
    assert wrong == []


def test_one_place_takes_the_fingerprint_that_log_z_depends_on():
    # What a trainer compares with the anchor must be made as the anchor's was.
    def calls(path):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        return {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}

    makers = [str(path.relative_to(ROOT)) for path in sorted(ROOT.rglob("*.py")) if "Fingerprint" in calls(path)]
    assert makers == ["lm/fingerprint.py"]


def test_the_pure_cores_import_no_engine():
    # Estimators are numpy in and out, objectives torch in and out: neither knows a model library.
    for path in [*ROOT.glob("objectives/*.py"), *ROOT.glob("partition/*.py")]:
        text = ast.parse(path.read_text(encoding="utf-8"))
        modules = {a.name for n in ast.walk(text) if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module for n in ast.walk(text) if isinstance(n, ast.ImportFrom)}
        engines = {m.split(".")[0] for m in modules} & {"transformers", "trl", "peft", "accelerate", "datasets"}
        assert engines == set(), path


def test_a_run_knows_nothing_of_comparisons_and_studies():
    above = ("comparison", "study", "cli")
    names = [(f, n) for f, found in IMPORTS.items() if f.split("/")[0] not in above for n in found]
    assert [f"{f} imports {n}" for f, n in names if n.split(".")[1:2] in (["comparison"], ["study"])] == []
