"""The page against a synthetic run with every difficulty in it."""

import base64
import dataclasses
import hashlib
import html.parser
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from disa.display.figures import as_png, figure_style, running_mean
from disa.evaluation.metrics import paired_difference, per_prompt
from disa.partition.verdict import FLAGS
from disa.report import ReportContent
from disa.report.partition_figures import largest_log_mean, partition_figures
from disa.report.stage import write_report
from disa.report.verdict import significant_changes, verdict_lines
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt
from disa.runs.step_log import read_step_log

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
                        *(model, "countdown", f"p{i}", split, draw, completion, 7, draw == 0, float(correct), mode),
                        *(log_ratio - 9, -9.0),
                    )
                )
    return ReportContent(
        title="Countdown <quick> $start$",
        recipe="tasks:\n  task: countdown  # <b>",
        estimates=estimates,
        anchor_facts={"reference": "0f3a", "temperature": 1.0, "stop_token_ids": [2]},
        beta=BETA,
        reward_range=(0.0, 1.0),
        training_logs={"disa": _log(rng, n_steps, "disa"), "grpo": _log(rng, n_steps, "grpo")},
        values=values_of(records, prompts, estimates),
        prompts=prompts,
        records=records,
        parity={"bound": 1e-4, "unit": "nats per token", "reference": {"mean": 2e-6, "max": 1e-5, "trajectories": 640}},
        timings={"1_tasks": 0.4, "3_scoring": 130.0, "6_training/disa": 200.0, "6_training/grpo": 90.0},
        completions={"anchor": 2560, "disa": 3840, "grpo": 6400},
        files={"every metric": "values.parquet", "5_anchor": "../5_anchor/anchor.parquet"},
        versions={"disa": "0.1.0", "python": "3.11"},
    )


def values_of(records, prompts, estimates, ks=(1, 8)):
    log_z = {e.prompt_id: e.log_z for e in estimates}
    return per_prompt(records, {p.prompt_id: p.n_solutions for p in prompts}, ks, log_z=log_z, beta=BETA)


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


def changed(content, **fields):
    return dataclasses.replace(content, **fields)


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
    assert not page.values("src") and not page.values("srcset")
    # Links lead to places on the page and to files beside it.
    links = page.values("href")
    assert {"#verdict", "#prompts", "values.parquet", "../5_anchor/anchor.parquet"} <= set(links)
    assert not [link for link in links if "//" in link or ":" in link]
    assert not [v for v in page.values("xlink:href") if not v.startswith(("#", "data:image/png;base64,"))]
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text.partition("</head>")[0]


def test_the_only_script_is_the_one_that_the_policy_names(written):
    text = written.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text.partition("</head>")[0]
    assert [tag for tag, _ in Page(text).tags].count("script") == 1


def test_hostile_completions_stay_text(written):
    text = written.read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "link", "b", "img"})
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "<script src='https://evil.example/x.js'></script><U+202E><U+0000><U+D800><img src=x" in page.text
    assert not {"\u202e", "\x00"} & set(text)


def test_hostile_names_stay_text_and_break_no_figure(content, tmp_path):
    name = "<script>_$\\frac{"
    named = {
        "values": {**content.values, name: content.values["disa"]},
        "training_logs": {name: content.training_logs["disa"]},
        "versions": {name: name},
        "anchor_facts": {name: name},
        "title": name,
    }
    page = Page(write_report(tmp_path, changed(content, **named)).read_text())
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.text.count(name) >= 6


def test_every_figure_is_a_png_file_and_a_drawing_on_the_page_with_its_caption(written):
    files = {p.stem: p.read_bytes() for p in (written.parent / "figures").iterdir()}
    expected = {"log_z", "log_z_pass_rate", "ess", "flags", "quality_diversity"}
    expected |= {"modes_found_heldout", "modes_found_train"}
    expected |= {f"training_{key}" for key in ("reward", "kl_to_target", "kl_to_reference", "residual_mean")}
    expected |= {f"training_{key}" for key in ("residual_rms", "eps_audit", "entropy", "grad_norm")}
    assert set(files) == expected
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in files.values())
    page = Page(written.read_text())
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and expected <= set(ids)
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert {attrs["aria-describedby"] for attrs in drawn} == {f"caption-{name}" for name in expected} <= set(ids)
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawn)


def test_drawings_take_their_colours_from_the_theme(written):
    drawings = "".join(re.findall(r"<svg.*?</svg>", written.read_text(), re.DOTALL))
    defined = set(re.findall(r"--(\w+):", written.read_text()))
    assert {"text", "line", "soft", "blue"} <= set(re.findall(r"var\(--(\w+)\)", drawings)) <= defined
    # Nothing is left in the colours of paper and ink.
    assert not re.search(r"#(000000|1c1c1e|ffffff|e4e4e4)\b", drawings, re.IGNORECASE)


def test_captions_are_counted_from_the_estimates(content, written):
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


def test_completions_of_training_stand_side_by_side_shared_prompts_first_and_are_shown_as_text(content, tmp_path):
    shared, own = content.prompts[0], "<b>only disa drew for this</b>"
    rewards = {own: None, shared.prompt: 1.0}
    rows = [{"step": 7, "prompt": p, "completion": HOSTILE, "reward": r} for p, r in rewards.items()]
    drawn = {"disa": rows, "grpo": [{"step": 7, "prompt": shared.prompt, "completion": "no", "reward": 0.0}]}
    html = write_report(tmp_path, changed(content, training_completions=drawn)).read_text()
    section = html[html.index('<section id="training"') : html.index('<section id="example-completions"')]
    text = Page(section).text
    assert text.index(f"Prompt {shared.prompt_id}") < text.index(own) and text.count("</pre><script src=") == 2
    assert all(
        note in text for note in ("✓ right, step 7, reward 1", "✗ wrong, step 7, reward 0", "? undecided, step 7")
    )
    assert "<script" not in section and "<b>only" not in section


def test_a_run_keeps_the_completions_of_the_last_step_of_every_method_that_draws(finished_run):
    for method in ("disa", "grpo"):
        rows = read_step_log(finished_run / "6_training" / method / "completions.jsonl")
        assert len(rows) == 3 * 4 and {row["step"] for row in rows} == {4}
        assert len({row["prompt"] for row in rows}) == 3 and {row["reward"] for row in rows} <= {0.0, 1.0}
    page = Page((finished_run / "8_report" / "report.html").read_text())
    assert rows[0]["completion"] in page.text and "Completions of the last step of training" in page.text
    assert "../6_training/disa/completions.jsonl" in page.values("href")


def test_an_empty_run_still_gives_a_page_and_old_figures_disappear(content, tmp_path):
    write_report(tmp_path, content)
    empty = {"estimates": [], "anchor_facts": {}, "training_logs": {}, "values": {}, "prompts": [], "records": []}
    empty |= {"parity": {}, "timings": {}, "completions": {}}
    page = Page(write_report(tmp_path, changed(content, **empty)).read_text())
    assert "svg" not in {tag for tag, _ in page.tags} and not list((tmp_path / "figures").iterdir())
    assert "Countdown <quick> $start$" in page.text


def test_uncountable_tasks_and_single_steps_are_drawn_without_their_missing_series(content, tmp_path):
    prompts = [Prompt(p.prompt_id, p.task, p.split, p.prompt, p.payload, None) for p in content.prompts]
    values = values_of(content.records, prompts, [], ks=[1])
    logs = {"grpo": [{"step": 1, "reward": 0.1}]}
    alone = {"prompts": prompts, "values": values, "training_logs": logs, "estimates": content.estimates[:1]}
    write_report(tmp_path, changed(content, **alone))
    names = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert names == {"log_z", "log_z_pass_rate", "ess", "flags", "training_reward"}


def test_the_table_shows_the_paired_difference_to_the_reference(content, written):
    values = [content.values[m]["heldout"]["effective_modes"] for m in ("disa", "reference")]
    difference = paired_difference(*values)
    mark = " *" if abs(difference.value) > 2 * difference.se else ""
    assert f"{difference.value:+.3f} ± {difference.se:.3f}{mark}" in Page(written.read_text()).text


def test_importing_the_report_loads_neither_matplotlib_nor_torch():
    code = "import sys, disa.report; print({'matplotlib', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_verdict_names_the_policy_what_it_is_better_in_the_flags_and_the_cost(content):
    lines = verdict_lines(content)
    better, worse = significant_changes(content, "disa", "heldout")
    for metric, difference in content.differences.items():
        if metric[:2] == ("disa", "heldout") and metric[2] in content.judged_metrics("heldout"):
            beyond = abs(difference.value) > 2 * difference.se
            assert (metric[2] in better or metric[2] in worse) == beyond
    assert len(better) > len(worse)
    assert lines[0].startswith("Take disa: on held-out prompts it is better in Mean@8 (+")
    assert lines[1].startswith("grpo is ")
    flagged = sum(bool(e.flags) for e in content.estimates if e.split == "train")
    assert lines[2].startswith(f"log Z: {flagged} of 30 training prompts are flagged (")
    assert lines[3] == (
        "Cost: the anchor 2,560 trajectories and 2.2 min, once for every policy that reads it; disa 3,840 completions "
        "and 3.3 min; grpo 6,400 completions and 90.0 s."
    )


def test_without_a_better_policy_the_reference_is_kept(content):
    same = changed(content, values={name: content.values["reference"] for name in ("reference", "disa")})
    first, second, *_ = verdict_lines(same)
    assert first == "Keep the reference: on held-out prompts no policy is better in more metrics than it is worse in."
    assert second.startswith("disa is better in none, and worse in none")


def test_every_prompt_has_a_row_with_its_log_z_flags_and_what_every_model_solves(content, written):
    text = written.read_text()
    table = text[text.index("Every prompt") :].partition("</table>")[0]
    assert table.count("<tr>") == 1 + len(content.prompts)
    e = next(e for e in content.estimates if len(e.flags) == 2)
    (row,) = [row for row in table.split("<tr>") if f"<td>{e.prompt_id}</td>" in row]
    cells = re.findall(r"<td>(.*?)</td>", row)
    mean, modes = (content.values["disa"][e.split][m][e.prompt_id] for m in ("mean@8", "distinct_modes@8"))
    assert cells[2:6] == [f"{e.log_z:.3f}", f"{e.interval_low:.3f}", f"{e.interval_high:.3f}", "few_hits wide_interval"]
    assert (f"{mean:.3f}", f"{modes:.3f}") == (cells[-4], cells[-3])
    assert FLAGS["few_hits"].replace("'", "&#39;") in text


def test_samples_stand_by_model_marked_right_or_wrong_with_the_prompts_id(content, tmp_path):
    records = [dataclasses.replace(r, reward=None, mode=None) if r.draw == 1 else r for r in content.records]
    text = write_report(tmp_path, changed(content, records=records)).read_text()
    first = next(p for p in content.prompts if p.split == "heldout")
    part = text[text.index(f"Prompt {first.prompt_id}, heldout") :].partition("<h3>")[0]
    assert re.findall("<h4>(.*?)</h4>", part) == ["reference", "disa", "grpo"]
    marks = re.findall(r"(\S) (right|wrong|undecided), draw (\d)", part)
    assert len(marks) == 6 and {m for m in marks if m[2] == "1"} == {("?", "undecided", "1")}
    (decided,) = [r for r in records if (r.model, r.prompt_id, r.draw) == ("reference", first.prompt_id, 0)]
    assert marks[0] == (("✓", "right", "0") if decided.correct else ("✗", "wrong", "0"))


def test_a_mode_with_an_undecided_reward_is_no_mode_found(content, tmp_path):
    records = [dataclasses.replace(r, reward=None) if r.draw == 1 else r for r in content.records]
    assert any(r.mode is not None and r.reward is None for r in records)
    write_report(tmp_path, changed(content, records=records))


def graded(content, low=-2.0, high=1.0):
    """The same prompts under rewards of another range: log Z and mean rewards moved to it."""
    span = high - low
    rows = []
    for e in content.estimates:
        u = e.mean_reward_reference
        rate = low + span * u
        log_z = BETA * low + math.log1p(math.expm1(BETA * span) * max(u, 0.01))
        rows.append(
            dataclasses.replace(
                e, mean_reward_reference=rate, log_z=log_z, interval_low=log_z - 0.3, interval_high=log_z + 0.3
            )
        )
    return changed(content, estimates=rows, reward_range=(low, high))


@pytest.mark.parametrize("binary", [True, False])
def test_figures_know_the_range_of_the_reward(content, binary):
    other = graded(content)
    with figure_style():
        figures = {f.name: f for f in partition_figures(other.estimates, BETA, other.reward_range, binary=binary)}
    assert "with rewards from -2 to 1 and beta = 3 it lies between -6 and 3" in figures["log_z"].caption
    caption = figures["log_z_pass_rate"].caption
    found = int(re.search(r"(\d+) of 40 intervals", caption)[1])
    # Every estimate lies on the curve of its own rate, but for rates of 0, which stand a little above it.
    assert found >= sum(e.mean_reward_reference > -2 for e in other.estimates) > 20
    assert ("so log Z is exactly the dashed curve" in caption) == binary
    (axes,) = figures["log_z_pass_rate"].drawing.axes
    for line in axes.lines:
        assert np.isfinite(line.get_ydata()).all()


def test_a_legend_covers_nothing(content):
    wide = [dataclasses.replace(e, interval_low=0.0, interval_high=BETA) for e in content.estimates]
    with figure_style():
        for figure in partition_figures(wide, BETA, (0.0, 1.0), binary=True):
            as_png(figure.drawing)
            (axes,) = figure.drawing.axes
            for legend in figure.drawing.legends:
                assert legend.get_window_extent().y1 <= axes.get_window_extent().y0, figure.name
            assert axes.get_legend() is None


def test_reward_curves_are_means_of_what_came_before():
    jump = [0.0] * 50 + [1.0] * 50
    smooth = running_mean(jump, 10)
    assert smooth[:50].tolist() == [0.0] * 50  # a centred mean would know of the jump five steps earlier
    assert smooth[50:60] == pytest.approx(np.arange(1, 11) / 10, abs=1e-12)
    assert smooth[-1] == 1.0


def test_the_largest_log_z_of_a_mean_reward_is_finite_for_any_range():
    found = largest_log_mean(np.array([0.0, 0.5, 100.0]), 10.0, (0.0, 100.0))
    np.testing.assert_allclose(found, [0.0, 1000.0 + np.log(0.005), 1000.0])
    few, share = largest_log_mean(np.array([-1.0, 0.2, 1.0]), 2.0, (-1.0, 1.0)), np.array([0.0, 0.6, 1.0])
    np.testing.assert_allclose(few, np.log((1 - share) * np.exp(-2) + share * np.exp(2)))
