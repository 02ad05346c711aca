"""The README's script runs as it stands, but for the model's name and a shorter training."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from disa.anchor import Anchor

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def readme():
    return README.read_text(encoding="utf-8")


def test_its_script_calibrates_and_trains(readme, tmp_path, little_model):
    (script,) = re.findall(r"<!-- script -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in script.splitlines() if line]) <= 12
    script = script.replace("Qwen/Qwen2.5-0.5B", str(little_model)).replace("max_steps=20", "max_steps=2")
    (tmp_path / "script.py").write_text(script)  # a reward's source is read from its file
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(Anchor.load(tmp_path / "anchor").estimates) == 100


def test_it_is_short_and_its_links_lead_somewhere(readme):
    assert len(readme.splitlines()) <= 200
    links = re.findall(r"\]\(([^)#]+)", readme)
    assert len(links) > 20
    assert [link for link in links if not link.startswith("http") and not (README.parent / link).exists()] == []


def test_its_short_result_is_part_of_the_full_one(readme):
    """Same columns and same lines as the block of docs/results.md, fewer of them."""
    (short,) = re.findall(r"<!-- quickstart-short -->\n```\n(.*?)```\n<!-- /quickstart-short -->", readme, re.DOTALL)
    page = (README.parent / "docs" / "results.md").read_text(encoding="utf-8")
    full = re.search(r"^## Quickstart\n.*?^```\n(.*?)\n\n", page, re.DOTALL | re.MULTILINE)[1].splitlines()
    lines = short.splitlines()
    assert lines[0] == full[0] and len(lines) >= 4
    assert [line for line in lines if line not in full] == []


def test_the_summary_of_the_results_agrees_with_their_tables():
    """Every number of the first table stands in the linked section's table, in the method's row."""
    page = (README.parent / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[.*?\]\(#([\w-]+)\) \| (\d) \| (\d) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for anchor, beta, seeds, cells in rows:
        title = re.escape(anchor).replace(r"\-", r"[ ,]+")
        section = re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", page, re.DOTALL | re.MULTILINE | re.IGNORECASE)[1]
        assert f"inverse temperature {beta}, seeds {', '.join(map(str, range(int(seeds))))}" in section
        found = []
        for column in (0, 3):  # Mean@8 and effective modes, behind the number of seeds
            for method in ("disa_both", "grpo", "lora_sft"):
                row = re.search(rf"^\| {method}(?: \*)? \| {seeds} \| (.*) \|$", section, re.MULTILINE)
                found.append(row[1].split(" | ")[column].split(" ")[0] if row else "-")
        assert cells.split(" | ") == found, anchor
