"""What ``disa inspect`` says: the evidence in sentences, the worst prompts, and whether to train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from disa.partition.gate import CHANCE, SAFETY
from disa.partition.verdict import FLAGS
from disa.runs.records import PartitionEstimate

ALARMING_ERRORS = 4.0
"""Standard errors of the null test's log ratio: beyond them the two models' log-probabilities do not agree."""
MOST_FLAGGED = 0.75
"""Of this project's countdown runs, one with 61% of its training prompts flagged ended nearer to the target than the
reference, one with 93% did not (docs/experiment_log.md)."""
_CHARACTERS = 60


def fitness(result: dict[str, Any], rows: Sequence[PartitionEstimate]) -> str:
    """One line: fit to train or not, and what to do."""
    if disagreement(result) > ALARMING_ERRORS:
        return (
            "not fit to train: the two models' log-probabilities do not agree with what was drawn; check temperature, "
            "template and tokenizer, and score again"
        )
    train = [row for row in rows if row.split == "train"]
    flagged = [row for row in train if set(row.flags) - {"gated"}]
    if not train:
        return "not fit to train: no training prompt has an estimate; draw trajectories for them"
    share = f"{len(flagged)} of {len(train)} training prompts are flagged ({len(flagged) / len(train):.0%})"
    if not flagged:
        return f"fit to train: {share}"
    worst = Counter(flag for row in flagged for flag in row.flags).most_common(1)[0][0]
    if len(flagged) > MOST_FLAGGED * len(train):
        return f"not fit to train: {share}, most of them {worst}; {FLAGS[worst].partition(': ')[2]}"
    return f"fit to train: {share}, most of them {worst}; training.flagged says what becomes of them"


def disagreement(result: dict[str, Any]) -> float:
    """Standard errors of the null test's log ratio from 0; 0 where there was no test."""
    test = result.get("null_test", {})
    return abs(test["log_ratio"]) / test["standard_error"] if test.get("standard_error") else 0.0


def print_verdict(result: dict[str, Any]) -> None:
    """Print what ``disa inspect`` found, the line to act on last."""
    console = Console(highlight=False)
    beta = result["fingerprint"]["inverse_temperature"]
    console.print(
        f"[bold]{result['anchor']}[/bold]: log Z of {result['prompts']} prompts at inverse temperature {beta}"
    )
    console.print(f"good {result['good']}, gated and nothing else {result['gated']}, flagged {result['flagged']}")
    for name, flag in result["flags"].items():
        console.print(f"  {name} ({flag['prompts']}): {flag['meaning']}")
    for line in _evidence_lines(result):
        console.print(line, markup=False)
    if result["worst"]:
        table = Table(
            "prompt", "id", "log Z", "interval", "hits ESS", "flags", title="worst prompts", title_justify="left"
        )
        for row in result["worst"]:
            low, high = row["interval"]
            numbers = f"{row['log_z']:.2f}", f"[{low:.2f}, {high:.2f}]", f"{row['hits_ess']:.1f}"
            text = " ".join((row["prompt"] or "").split())
            text = text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"
            table.add_row(text, row["prompt_id"], *numbers, " ".join(row["flags"]))
        console.print(table, markup=False)
    if "sweep" in result:
        title = "other inverse temperatures, medians over training prompts"
        table = Table("beta", "log Z", "target's mean reward", "KL(target || reference)", title=title)
        for row in result["sweep"]:
            table.add_row(*(f"{row[name]:.3g}" for name in ("inverse_temperature", "log_z", "mean_reward", "kl")))
        console.print(table, markup=False)
    for figure in result.get("figures", []):
        console.print(f"figure: {figure}", markup=False)
    console.print(result["fit"], markup=False, soft_wrap=True)


def _evidence_lines(result: dict[str, Any]) -> list[str]:
    """One sentence each on the budget, the null test, the coverage and the regressor, where the anchor holds them."""
    lines = []
    if budget := result.get("budget"):
        spent = (
            "budget: {trajectories} trajectories over {prompts} training prompts, {fewest} to {most} a prompt "
            "(median {median:g}), {from_reference} of them from the reference; "
        )
        adaptive = (
            "{reached} prompts reached the precision of {precision:g}, {capped} stopped at the cap of {cap} without it"
        )
        resampled = "{still_flagged} prompts are still flagged for want of draws"
        lines.append((spent + (resampled if "still_flagged" in budget else adaptive)).format(**budget))
    test = result.get("null_test", {})
    if test.get("log_ratio") is not None:
        reading = (
            "do not agree: check temperature, template and tokenizer"
            if disagreement(result) > ALARMING_ERRORS
            else "agree with what was drawn"
        )
        lines.append(
            f"null test: log ratio {test['log_ratio']:.3f} +- {test['standard_error']:.3f} nats over {test['prompts']} "
            f"prompts (0 if right): the two models' log-probabilities {reading}"
        )
    if d := result.get("divergence"):
        lines.append(
            "D = KL(reference given success || proposal): median {median:.2f} nats, {lowest:.2f} to {highest:.2f} over "
            "{prompts} prompts; the gate closes where D is at most the logarithm of the proposal's draws "
            "({log_draws:.2f} at the median prompt) less {safety:g} with a chance below {chance:.0%}".format(
                safety=SAFETY, chance=CHANCE, **d
            )
        )
    coverage = result.get("coverage", {})
    if coverage.get("share") is not None:
        shares = ", ".join(f"{s:.0%} by {t:g}" for t, s in zip(coverage["nats"], coverage["share"], strict=True))
        lines.append(f"coverage: reference successes that the proposal writes less often, by t nats or more: {shares}")
    regressor = result.get("regressor", {})
    if regressor.get("prompts"):
        r = {name: f"{value:.2f}" for name, value in regressor.items() if name != "prompts"}
        lines.append(
            f"regressor on {regressor['prompts']} prompts outside its fit: R2 of logit q {r['r2_logit_q']}, "
            f"NLL {r['nll']} (constant {r['nll_constant']}), RMSE of log Z {r['rmse']} "
            f"(constant {r['rmse_constant']}), coverage {r['coverage']} at level {r['level']}"
        )
    elif regressor:
        lines.append(f"regressor: not judged, {regressor['reason']}")
    certified = (
        "certificate of {0}: KL to the target at most {kl:.3f} nats, TV at most {tv:.3f}, at {level:.0%} confidence"
    )
    return lines + [certified.format(model, **c) for model, c in result.get("certificates", {}).items()]
