"""The report's page in a real browser: sorting, search, names for screen readers, day and night, wide and narrow."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, browser

from disa.report.stage import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from test_report import HOSTILE, synthetic_run  # noqa: E402

# Where DISA_NEEDS_BROWSER is set a missing browser is a failure.
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("DISA_NEEDS_BROWSER"),
    reason="needs chromedriver, and google-chrome or chromium, on the path",
)

ROWS = "return [...document.querySelectorAll('#prompts table')[0].tBodies[0].rows].filter(r => !r.hidden)"
COLUMN = f"{ROWS}.map(r => r.cells[arguments[0]].textContent.trim())"
CLICK = (
    "document.querySelectorAll('#prompts table')[0].tHead.rows[0].cells[arguments[0]].querySelector('button').click()"
)


@pytest.fixture(scope="module")
def content():
    found = synthetic_run()
    # Prompts that only start with equal digits, and one without an estimate.
    return dataclasses.replace(found, estimates=found.estimates[1:])


@pytest.fixture(scope="module")
def written(content, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("page"), content)


@pytest.fixture(scope="module")
def shown(written, tmp_path_factory):
    with browser(written, tmp_path_factory.mktemp("profile")) as session:
        yield session


def test_a_click_on_a_column_sorts_by_it_numbers_as_numbers_empty_cells_last(shown, content):
    for click, order in ((1, "ascending"), (2, "descending")):
        shown.run(CLICK, 3)
        found = shown.run(COLUMN, 3)
        assert found[-1] == "" and len(found) == len(content.prompts)
        numbers = [float(text) for text in found[:-1]]
        assert numbers == sorted(numbers, reverse=click == 2) and numbers[0] != numbers[-1]
        said = "return [...document.querySelectorAll('#prompts th[aria-sort]')].map(h => h.ariaSort)"
        assert shown.run(said) == [order]
    shown.run(CLICK, 1)
    assert shown.run(COLUMN, 1) == sorted(p.prompt_id for p in content.prompts)


def search(session, text):
    session.run(
        "const box = document.querySelector('#prompts input'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('input'))",
        text,
    )


def test_a_search_leaves_the_rows_that_have_every_word_and_says_how_many(shown, content):
    search(shown, "HELDOUT few_hits")
    wanted = {e.prompt_id for e in content.estimates if e.split == "heldout" and "few_hits" in e.flags}
    assert set(shown.run(COLUMN, 1)) == wanted and 0 < len(wanted) < len(content.prompts)
    assert shown.run("return document.querySelector('#prompts output').checkVisibility()")
    assert shown.run("return document.querySelector('#prompts output').value") == f"{len(wanted)} of 40 rows"
    search(shown, "no such prompt")
    assert shown.run(COLUMN, 1) == []
    search(shown, "")
    assert len(shown.run(COLUMN, 1)) == 40


def test_figures_tables_and_fields_have_names(shown):
    assert "log Z against the mean reward" in shown.names("svg[role=img]")
    for selector in ("svg[role=img]", "section div[role=region]", "th button", "input", "nav", "nav a"):
        names = shown.names(selector)
        assert names and all(names), selector
    assert shown.names("input") == ["Search"]


def test_the_console_stays_silent_and_hostile_text_does_nothing(shown):
    assert shown.messages() == []
    assert shown.run("return document.querySelectorAll('script, iframe, img').length") == 1
    texts = shown.run("return [...document.querySelectorAll('.columns pre')].map(p => p.textContent)")
    assert len(texts) == 30 and all("</pre><script src='https://evil.example/x.js'>" in text for text in texts)
    assert HOSTILE.startswith("</pre><script")


def test_a_script_that_got_through_would_not_run(written, tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(written.read_text().replace("</main>", "<script>document.title = 'owned'</script></main>"))
    with browser(page, tmp_path / "profile") as session:
        assert session.run("return document.title") != "owned"
        assert any("Content Security Policy" in message for message in session.messages())


@pytest.mark.parametrize("width", [1280, 500])
def test_day_and_night_are_legible_and_nothing_leaves_the_window(written, tmp_path, width):
    colours = {}
    for dark in (False, True):
        with browser(written, tmp_path / f"profile-{dark}", width=width, dark=dark) as session:
            colours[dark] = session.run(
                "const c = (e, p) => getComputedStyle(document.querySelector(e))[p];"
                "return [c('body', 'backgroundColor'), c('body', 'color'), c('svg text', 'fill')]"
            )
            # Wide tables scroll within themselves.
            assert session.run("return document.documentElement.scrollWidth <= window.innerWidth")
    for page, text, drawn in colours.values():
        # Contrast by WCAG 2.1; 4.5 is its bound for text.
        assert contrast(page, text) > 4.5 and contrast(page, drawn) > 4.5
    assert luminance(colours[True][0]) < 0.05 < 0.9 < luminance(colours[False][0])


def test_a_number_and_its_error_stay_on_one_line_in_a_narrow_window(written, tmp_path):
    lines = (
        "return [...document.querySelectorAll('td')].filter(d => d.textContent.includes('±')).map(d => {"
        "const range = document.createRange(); range.selectNodeContents(d);"
        "return [d.textContent, new Set([...range.getClientRects()].map(r => r.top)).size]})"
    )
    with browser(written, tmp_path / "profile", width=500) as session:
        found = session.run(lines)
    assert len(found) > 10 and [text for text, drawn in found if drawn != len(text.splitlines())] == []


def luminance(colour):
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_links_lead_to_files_that_are_there(finished_run, tmp_path):
    report = finished_run / "8_report" / "report.html"
    with browser(report, tmp_path / "profile") as session:
        links = session.run("return [...document.querySelectorAll('#files a')].map(a => a.getAttribute('href'))")
        assert session.messages() == []
    assert {"values.parquet", "summary.json", "../5_anchor/anchor.parquet"} <= set(links)
    assert [link for link in links if not (report.parent / link).is_file()] == []
    assert json.loads((report.parent / "summary.json").read_text())
