"""The page: one file, no request to anywhere."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Mapping

from disa.report.content import ReportContent, models_in_order
from disa.report.escape import shown
from disa.report.tables import metrics_table_html, pairs_html
from disa.runs.records import EvaluationRecord

# Even if something hostile got through the escaping, the browser would load and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CSS = """
:root { color-scheme: light dark; --text: #1c1c1e; --soft: #5c5c62; --page: #ffffff; --card: #f5f5f7; --line: #d9d9de; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ea; --soft: #a5a5ad; --page: #17181a; --card: #222326; --line: #3a3b40; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h1, p, td, th, pre { overflow-wrap: anywhere; }
p { max-width: 48rem; } .soft, small, figcaption { color: var(--soft); }
.plates { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figcaption { font-size: .9rem; margin-top: .4rem; }
img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 1.25rem; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-top: 1px solid var(--line); }
.metrics td, .metrics th { overflow-wrap: normal; } .metrics span { white-space: nowrap; }
@media (max-width: 40rem) { .metrics table { font-size: .85rem; } .metrics td, .metrics th { padding-right: .5rem; } }
tbody th { font-weight: 500; }
.draws { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
pre { background: var(--card); padding: .6rem .8rem; border-radius: 8px; white-space: pre-wrap;
  max-height: 18rem; overflow-y: auto; font-size: .85rem; margin: .3rem 0 .8rem; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
"""
_EXAMPLE_PROMPTS, _EXAMPLE_DRAWS = 3, 2

Illustration = tuple[str, bytes, str]
"""(name, PNG, reading) of one figure."""


def page(content: ReportContent, sections: Mapping[str, Iterable[Illustration]]) -> str:
    """Return the whole page; ``sections`` holds the figures of ``evaluation``, ``partition`` and ``training``."""
    body = [
        f"<h1>{shown(content.title)}</h1>",
        f'<p class="soft">Target: the reference, reweighted by exp(beta · reward), with beta = {content.beta:g}. '
        "log Z is that target's log partition function, estimated from offline draws and frozen before training. "
        "Log-probabilities, log Z and KL are in nats; ± is one standard error over prompts.</p>",
        section("Results", _results(content) + plates(sections.get("evaluation", ()))),
        section("Partition function", plates(sections.get("partition", ()))),
        section("Training", plates(sections.get("training", ()))),
        section("Example completions", _examples(content)),
        section("Sampler against scorer", _parity(content.parity)),
        section("What the anchor is frozen to", pairs_html(content.anchor_facts) if content.anchor_facts else ""),
        section("Provenance", _provenance(content)),
    ]
    return document(content.title, body)


def document(title: str, body: Iterable[str]) -> str:
    """Return a page without scripts and requests around the non-empty parts of its body."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown(title)}</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def section(title: str, html: str) -> str:
    """Return a section with a heading; nothing where it has no content."""
    return f"<section><h2>{title}</h2>\n{html}\n</section>" if html else ""


def plates(illustrations: Iterable[Illustration]) -> str:
    """Return figures side by side, each with its reading below it."""
    figures = [
        f'<figure id="{shown(name)}"><img alt="{shown(reading)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{shown(reading)}</figcaption></figure>"
        for name, png, reading in illustrations
    ]
    return f'<div class="plates">{"".join(figures)}</div>' if figures else ""


def _results(content: ReportContent) -> str:
    if not content.summary:
        return ""
    note = "<p>Second lines: difference to the reference, paired by prompt. Arrows: which way is better.</p>"
    return f'<div class="metrics">{metrics_table_html(content)}</div>{note}'


def _examples(content: ReportContent) -> str:
    """Show the first draws of the first prompts: by position, so that nothing is picked for its looks."""
    by_prompt: dict[str, dict[str, list[EvaluationRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in content.records:
        by_prompt[record.prompt_id][record.model].append(record)
    evaluated = [p for p in content.prompts if p.prompt_id in by_prompt]
    evaluated.sort(key=lambda p: p.split != "heldout")
    html = []
    for prompt in evaluated[:_EXAMPLE_PROMPTS]:
        html.append(f'<h3>{shown(prompt.split)} prompt</h3><pre>{shown(prompt.prompt)}</pre><div class="draws">')
        for model in models_in_order(by_prompt[prompt.prompt_id]):
            for record in sorted(by_prompt[prompt.prompt_id][model], key=lambda r: r.draw)[:_EXAMPLE_DRAWS]:
                cut = ", cut at the length limit" if record.truncated else ""
                reward = "undecided" if record.reward is None else f"reward {record.reward:g}"
                html.append(
                    f"<div><small>{shown(model)}, draw {record.draw}: {reward}{cut}</small>"
                    f"<pre>{shown(record.completion)}</pre></div>"
                )
        html.append("</div>")
    lead = "<p>The first draws of the first evaluated prompts, not selected.</p>" if html else ""
    return lead + "".join(html)


def _parity(parity: Mapping[str, object]) -> str:
    if not parity:
        return ""
    flat: dict[str, object] = {}
    for key, value in parity.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {f"{key} {name}".strip(): f"{v:.3g}" if isinstance(v, float) else v for name, v in inner}
    lead = (
        "<p>Every stored log-probability was computed twice, by the sampler and by the scorer. The mean absolute "
        "difference per token must stay within the bound: every importance weight is off by what they disagree.</p>"
    )
    return lead + pairs_html(flat)


def _provenance(content: ReportContent) -> str:
    parts = []
    if content.timings:
        timings = {stage: _duration(seconds) for stage, seconds in content.timings.items()}
        parts.append(pairs_html(timings | {"all stages": _duration(sum(content.timings.values()))}))
    if content.versions:
        parts.append(pairs_html(content.versions))
    if content.recipe:
        # The recipe is the user's own and must be complete to be run again: no cut.
        recipe = shown(content.recipe, limit=len(content.recipe))
        parts.append(f"<details><summary>Recipe</summary><pre>{recipe}</pre></details>")
    return "".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
