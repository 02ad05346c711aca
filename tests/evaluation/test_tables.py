"""The one table of metrics."""

import math

from disa.evaluation.metrics import MetricValue
from disa.evaluation.tables import better_direction, difference_text, metric_label, shown_metrics, summary_text


def test_the_terminal_table_puts_the_reference_first_and_shows_mean_at_k_once():
    metrics = {
        "mean@1": MetricValue(0.5, 0.01, 9),
        "mean@8": MetricValue(0.5, 0.01, 9),
        "pass@8": MetricValue(1, math.nan, 9),
    }
    table = summary_text({"disa": {"heldout": metrics}, "reference": {"heldout": metrics}})
    assert table.splitlines() == [
        "heldout (9 prompts)  reference      disa",
        "Mean@8 ↑             0.500 ± 0.010  0.500 ± 0.010",
        "pass@8 ↑             1.000          1.000",
    ]


def test_lengths_and_bounds_are_details_and_missing_verdicts_never_hidden():
    present = ["mean@1", "mean@8", "pass@1", "pass@8", "mean@8_low", "tokens", "truncated", "undecided", "kl_to_target"]
    assert shown_metrics(present) == ["mean@8", "pass@8", "kl_to_target"]
    assert shown_metrics(present, idle=()) == ["mean@8", "pass@8", "kl_to_target", "undecided"]
    detailed = ["mean@8", "mean@8_low", "pass@8", "kl_to_target", "truncated", "tokens"]
    assert shown_metrics(present, detail=True) == detailed
    assert "Undecided" in summary_text(
        {"a": {"t": {"mean@1": MetricValue(1, 0, 2), "undecided": MetricValue(0.5, 0.1, 2)}}}
    )
    assert "Undecided" not in summary_text(
        {"a": {"t": {"mean@1": MetricValue(1, 0, 2), "undecided": MetricValue(0, 0, 2)}}}
    )


def test_names_say_which_way_is_better():
    assert [metric_label(m) for m in ("mean@8", "pass@8_low", "kl_to_target")] == [
        "Mean@8 ↑", "pass@8, low bound", "KL to target (nats) ↓",
    ]  # fmt: skip
    assert [better_direction(m) for m in ("mean@8", "kl_to_target", "kl_to_reference", "tokens")] == [1, -1, 0, 0]


def test_the_mark_stands_beyond_two_standard_errors():
    assert difference_text(MetricValue(0.21, 0.1, 9)) == "+0.210 ± 0.100 *"
    assert difference_text(MetricValue(-0.2, 0.1, 9)) == "-0.200 ± 0.100"
    assert difference_text(MetricValue(0.2, math.nan, 1)) == "+0.200"
