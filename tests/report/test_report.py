"""The page against a synthetic run with every difficulty in it."""

import html.parser
import math
import subprocess
import sys

import numpy as np
import pytest

from disa.evaluation.metrics import Measured, paired_difference, per_prompt, summarise
from disa.report import ReportContent, metrics_table_text, write_report
from disa.report.blocks import markdown_table
from disa.report.escape import shown
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt
from disa.text_table import aligned

BETA = 3.0
HOSTILE = "</pre><script src='https://evil.example/x.js'></script>\u202e\x00\ud800<img src=x onerror=alert(1)>"


def synthetic_run(n_prompts=40, n_draws=16, n_steps=60, seed=0, completion=HOSTILE):
    """A run as the stages would leave it: consistent numbers, no model behind them."""
    rng = np.random.default_rng(seed)
    prompts, estimates, records = [], [], []
    for i in range(n_prompts):
        split = "heldout" if i % 4 == 0 else "train"
        n_solutions = int(rng.integers(1, 25))
        prompts.append(Prompt(f"p{i}", "countdown", split, f"Numbers {i} $x$ & <b>", "{}", n_solutions))
        p = rng.beta(0.7, 4)
        estimates.append(_estimate(rng, f"p{i}", split, p))
        for model, gain in (("reference", 1.0), ("disa", 2.2), ("grpo", 3.0)):
            chance, own = min(0.95, gain * p), max(1, n_solutions // (4 if model == "grpo" else 1))
            for draw in range(n_draws):
                correct = rng.random() < chance
                mode = f"mode {rng.integers(own)}" if correct else None
                log_ratio = math.log(chance / p) if correct else math.log((1 - chance) / (1 - p))
                if model == "grpo":
                    log_ratio += math.log(4)
                records.append(
                    EvaluationRecord(
                        model, f"p{i}", split, draw, completion, draw == 0, float(correct), mode, log_ratio - 9, -9.0
                    )
                )
    log_z = {e.prompt_id: e.log_z for e in estimates}
    return ReportContent(
        title="Countdown <quick> $start$",
        recipe="tasks:\n  task: countdown  # <b>",
        estimates=estimates,
        anchor_facts={"reference": "0f3a", "temperature": 1.0, "stop_token_ids": [2]},
        beta=BETA,
        training_logs={"disa": _log(rng, n_steps, "disa"), "grpo": _log(rng, n_steps, "grpo")},
        summary=summarise(records, prompts, log_z, BETA, [1, 8]),
        prompts=prompts,
        records=records,
        parity={"bound": 1e-4, "unit": "nats per token", "reference": {"mean": 2e-6, "max": 1e-5, "trajectories": 640}},
        timings={"tasks": 0.4, "training": 200.0},
        versions={"disa": "0.1.0", "python": "3.11"},
    )


def _estimate(rng, prompt_id, split, p):
    n, n_reference = 64, 16
    rate = rng.binomial(n_reference, p) / n_reference
    hits = rng.uniform(10, 48) * min(1, 6 * p)
    error = rng.normal(0, 0.5 / math.sqrt(hits + 1))
    log_z = float(np.clip(math.log1p(math.expm1(BETA) * p) + error, 0, BETA))
    half = 2.2 / math.sqrt(hits + 1)
    flags = (["few_hits"] if hits < 5 else []) + (["wide_interval"] if half > 1 else [])
    q = math.expm1(log_z) / math.expm1(BETA)
    interval = max(0.0, log_z - half), min(BETA, log_z + half)
    method = "pass_rate" if hits < 1 else "mixture"
    return PartitionEstimate(
        prompt_id, split, log_z, q, *interval, n, n_reference, rate, 40.0, hits, 0.9, None, method, flags
    )


def _log(rng, n_steps, method):
    steps = []
    for i in range(n_steps):
        t = i / n_steps
        step = {"step": i + 1, "completions": 64 * (i + 1), "reward": 0.12 + 0.2 * t + rng.normal(0, 0.03)}
        step |= {"kl_to_reference": 0.4 * t, "grad_norm": math.exp(rng.normal(-t, 0.3)), "entropy": 0.6 - 0.2 * t}
        if method == "disa":
            kl = 0.7 * math.exp(-2 * t)
            step |= {"kl_to_target": kl + rng.normal(0, 0.1), "residual_mean": kl + rng.normal(0, 0.1)}
            step |= {"residual_rms": 0.5 + kl, "eps_audit": rng.normal(0.05, 0.1) if i else math.nan, "loss": kl}
        steps.append(step)
    return steps


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def content():
    return synthetic_run()


@pytest.fixture(scope="module")
def written(content, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("run") / "8_report", content)


def test_the_page_loads_nothing_from_anywhere(written):
    text = written.read_text()
    page = Page(text)
    assert all(src.startswith("data:image/png;base64,") for src in page.values("src"))
    assert page.values("src") and not page.values("href") and not page.values("srcset")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text.partition("</head>")[0]


def test_hostile_completions_stay_text(written):
    text = written.read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "link", "b"})
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "<script src='https://evil.example/x.js'></script><U+202E><U+0000><U+D800><img src=x" in page.text
    assert not {"\u202e", "\x00"} & set(text)


def test_hostile_names_stay_text_and_break_no_figure(content, tmp_path):
    name = "<script>_$\\frac{"
    changed = {
        "summary": {**content.summary, name: content.summary["disa"]},
        "training_logs": {name: content.training_logs["disa"]},
        "versions": {name: name},
        "anchor_facts": {name: name},
        "title": name,
    }
    page = Page(write_report(tmp_path, ReportContent(**vars(content) | changed)).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(name) >= 6


def test_long_text_is_cut_and_says_so():
    assert shown("a" * 10 + "<", limit=10) == "a" * 10 + " … (1 more characters)"


def test_every_figure_is_a_png_file_and_on_the_page_with_its_reading(written):
    files = {p.stem: p.read_bytes() for p in (written.parent / "figures").iterdir()}
    expected = {"log_z", "log_z_pass_rate", "ess", "flags", "quality_diversity"}
    expected |= {"modes_found_heldout", "modes_found_train"}
    expected |= {f"training_{key}" for key in ("reward", "kl_to_target", "kl_to_reference", "residual_mean")}
    expected |= {f"training_{key}" for key in ("residual_rms", "eps_audit", "entropy", "grad_norm")}
    assert set(files) == expected
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in files.values())
    page = Page(written.read_text())
    assert set(page.values("id")) == expected
    assert all(len(alt) > 40 for alt in page.values("alt")) and len(page.values("alt")) == len(expected)


def test_readings_are_counted_from_the_estimates(content, written):
    flagged = sum(bool(e.flags) for e in content.estimates)
    few = sum(e.hits_ess < 5 for e in content.estimates)
    assert 0 < flagged < 40
    text = Page(written.read_text()).text
    assert f"{flagged} of 40 prompts are flagged" in text
    assert f"{few} of 40 prompts rest on fewer than 5 effective rewarded draws" in text
    assert "Not logged by grpo" in text


def test_the_same_content_gives_the_same_bytes(content, written, tmp_path):
    again = write_report(tmp_path, content)
    assert again.read_bytes() == written.read_bytes()
    for figure in (written.parent / "figures").iterdir():
        assert (tmp_path / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_an_empty_run_still_gives_a_page_and_old_figures_disappear(content, tmp_path):
    write_report(tmp_path, content)
    empty = {"estimates": [], "anchor_facts": {}, "training_logs": {}, "summary": {}, "prompts": [], "records": []}
    path = write_report(tmp_path, ReportContent(**vars(content) | empty | {"parity": {}, "timings": {}}))
    page = Page(path.read_text())
    assert not page.values("src") and not list((tmp_path / "figures").iterdir())
    assert "Countdown <quick> $start$" in page.text


def test_uncountable_tasks_and_single_steps_are_drawn_without_their_missing_series(content, tmp_path):
    prompts = [Prompt(p.prompt_id, p.task, p.split, p.prompt, p.payload, None) for p in content.prompts]
    summary = summarise(content.records, prompts, {}, BETA, [1])
    logs = {"grpo": [{"step": 1, "reward": 0.1}]}
    changed = {"prompts": prompts, "summary": summary, "training_logs": logs, "estimates": content.estimates[:1]}
    write_report(tmp_path, ReportContent(**vars(content) | changed))
    names = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert names == {"log_z", "log_z_pass_rate", "ess", "flags", "training_reward"}


def test_the_table_shows_the_paired_difference_to_the_reference(content, written):
    log_z = {e.prompt_id: e.log_z for e in content.estimates}
    values = per_prompt(content.records, content.prompts, log_z, BETA, [8])
    difference = paired_difference(*(values[m]["heldout"]["effective_modes"] for m in ("disa", "reference")))
    assert f"{difference.value:+.3f} ± {difference.se:.3f}" in Page(written.read_text()).text


def test_the_terminal_table_puts_the_reference_first_and_shows_mean_at_k_once():
    metrics = {"mean@1": Measured(0.5, 0.01, 9), "mean@8": Measured(0.5, 0.01, 9), "pass@8": Measured(1, math.nan, 9)}
    table = metrics_table_text({"disa": {"heldout": metrics}, "reference": {"heldout": metrics}})
    assert table.splitlines() == [
        "heldout (9 prompts)  reference      disa",
        "Mean@8 ↑             0.500 ± 0.010  0.500 ± 0.010",
        "pass@8 ↑             1.000          1.000",
    ]


def test_importing_the_report_loads_neither_matplotlib_nor_torch():
    code = "import sys, disa.report; print({'matplotlib', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_text_and_markdown_show_the_same_cells():
    rows = [["method", "x"], ["disa *", "0.5"], ["g", "1"]]
    assert aligned(rows) == "method  x\ndisa *  0.5\ng       1"
    assert aligned(rows, numbers=True) == "method    x\ndisa *  0.5\ng         1"
    assert markdown_table(rows) == "| method | x |\n| --- | --- |\n| disa * | 0.5 |\n| g | 1 |"
