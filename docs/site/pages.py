"""Pages that are made when the site is built: README and its kin, every field of a recipe, the Python reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from disa.cli.init import recipe_schema

ROOT = Path(__file__).parents[2]
COPIED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
SHOWN = ("recipes/**/*.yaml", "examples/*.py", "src/disa/objectives/advantages.py", "LICENSE")
"""Files that pages link to, shown as they are."""
MODULES = {
    "Calibrate and train": ["calibration.calibrate.calibrate", "calibration.config.CalibrationConfig"]
    + ["training.trainer.DISATrainer", "training.disa_config.DISAConfig", "anchor.anchor.Anchor", "errors.DisaError"],
    "Learn from stored trajectories": ["training.offline_trainer.OfflineTrainer"]
    + ["training.offline_trainer.OfflineConfig", "training.anchors_own.offline_trajectories"],
    "Estimate log Z": [f"partition.estimate.{name}" for name in ("estimate_log_partition", "LogPartition")]
    + [f"partition.estimate.{name}" for name in ("estimate_log_partition_batch", "LogPartitionBatch")]
    + ["partition.sweep.sweep_log_partition"],
    "Objectives": ["objectives.advantages", "objectives.trajectory_balance", "objectives.forward_projection"]
    + ["objectives.log_z", "objectives.supervised"],
    "Rows of a run": ["runs.records"],
    "An exact model": ["testing.enumerable", "testing.exact"],
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and the files that pages link to."""
    made = {to: (ROOT / name).read_text(encoding="utf-8") for name, to in COPIED.items()}
    made["recipe_fields.md"] = recipe_fields()
    made["api.md"] = api()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted(p for pattern in SHOWN for p in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the repository, to where things are in the site."""
    if page.file.src_uri in COPIED.values():
        for name, to in COPIED.items():
            markdown = markdown.replace(f"]({name})", f"]({to})")
        return markdown.replace("](docs/", "](")
    depth = page.file.src_uri.count("/") + 1
    return re.sub(rf"\]\((?:\.\./){{{depth}}}(recipes|examples|src|LICENSE)", rf"]({'../' * (depth - 1)}\1", markdown)


def api() -> str:
    """The public names by what they are for, from their docstrings."""
    lines = [
        "# Python reference",
        "",
        "Names of the first two sections are names of `disa`: `disa.calibrate`.",
    ]
    for title, names in MODULES.items():
        lines += ["", f"## {title}"] + [f"\n::: disa.{name}" for name in names]
    return "\n".join(lines) + "\n"


def recipe_fields() -> str:
    """Every field of a recipe, from its JSON schema."""
    schema = recipe_schema()
    lines = ["# Every field of a recipe", "", "Made from `disa schema`. Unknown keys are refused.", ""]
    lines += ["[One recipe with comments](recipes/quickstart.yaml); `disa init` writes one.", ""]
    lines += _table(schema, schema["properties"], schema.get("required", []))
    for name, model in sorted(schema["$defs"].items()):
        if "properties" in model:
            lines += ["", f"## {name}", "", " ".join(model.get("description", "").split()), ""]
            lines += _table(schema, model["properties"], model.get("required", []))
    return "\n".join(lines) + "\n"


def _table(schema: dict[str, Any], fields: dict[str, Any], required: list[str]) -> list[str]:
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        default = "required" if name in required else f"`{_plain(field.get('default'))}`"
        meaning = " ".join(field.get("description", "").split()).replace("|", "\\|").replace("``", "`")
        rows.append(f"| `{name}` | {_type(field)} | {default} | {meaning} |")
    return rows


def _plain(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return "see its section" if isinstance(value, dict) and value else text.replace("|", "\\|")


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in field:
            return " or ".join(dict.fromkeys(_type(one) for one in field[several]))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}" if "items" in field else "list"
    kind = {"object": "mapping", "integer": "integer", "number": "number", "boolean": "true or false"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[name]:g}" for name, sign in bounds.items() if name in field]
    return " ".join([kind.get(field.get("type", ""), field.get("type", "any")), ", ".join(limits)]).strip()
