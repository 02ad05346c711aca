"""The documentation site: built without a warning, complete, every link and anchor of it leads somewhere."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

import disa
from disa.cli.init import recipe_schema

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Ids, links and what a page loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        self.loaded += [found["src"]] if found.get("src") else []
        self.loaded += [found["href"]] if tag == "link" and found.get("href") else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_and_anchor_leads_somewhere(site, pages):
    broken, checked = [], 0
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            where, anchor = urldefrag(link)
            if urlsplit(link).scheme or link.startswith("data:"):
                continue
            target = path if not where else (path.parent / unquote(where.split("?")[0])).resolve()
            target = target / "index.html" if target.is_dir() else target
            checked += 1
            if not target.is_file():
                broken.append((path.relative_to(site), link))
            elif anchor and target.suffix == ".html" and unquote(anchor) not in pages[target].ids:
                broken.append((path.relative_to(site), link))
    assert broken == [] and checked > 1000


def test_pages_load_nothing_from_elsewhere(pages):
    for path, page in pages.items():
        assert [link for link in page.loaded if urlsplit(link).netloc] == [], path


def test_every_page_of_docs_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert len(written) > 25
    assert {name for name in written if f": {name}\n" not in navigation} == set()


def test_the_generated_page_has_every_field_of_a_recipe(site):
    text = (site / "recipe_fields" / "index.html").read_text(encoding="utf-8")
    schema = recipe_schema()
    for model in [schema, *(m for m in schema["$defs"].values() if "properties" in m)]:
        for name, field in model["properties"].items():
            assert f"<td><code>{name}</code></td>" in text, name
            assert field.get("description") or "$ref" in json.dumps(field) or name == "name", name
    sections = {name.lower() for name, model in schema["$defs"].items() if "properties" in model}
    assert sections <= set(re.findall(r'<h2 id="([^"]+)"', text))


def test_the_python_reference_has_every_public_name(site):
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r' id="([\w.]+)"', text))
    for name in set(disa.__all__) - {"__version__"}:
        thing = getattr(disa, name)
        assert f"{thing.__module__}.{thing.__qualname__}" in ids, name
