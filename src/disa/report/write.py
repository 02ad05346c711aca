"""Draw the figures, write them and the page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from disa.report.content import ReportContent, models_in_order
from disa.report.html import Illustration, page


def write_report(report_dir: Path, content: ReportContent) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into ``report_dir``.

    The same content gives the same bytes with the same version of matplotlib.

    Parameters
    ----------
    report_dir : Path
        Made if missing; figures of an earlier report in it are replaced.
    content : ReportContent
        What to show.

    Returns
    -------
    Path
        The page.
    """
    # matplotlib takes a second to load and only this stage needs it
    from disa.report.canvas import illustrations, model_styles, style
    from disa.report.evaluation_figures import modes_found, quality_against_diversity
    from disa.report.partition_figures import partition_plates
    from disa.report.training_figures import training_plates

    styles = model_styles(models_in_order(dict.fromkeys([*content.summary, *content.training_logs])))
    with style():
        plates = {
            "evaluation": [
                *quality_against_diversity(content.summary, styles),
                *modes_found(content.records, content.prompts, styles),
            ],
            "partition": partition_plates(content.estimates, content.beta),
            "training": training_plates(content.training_logs, styles),
        }
        drawn = {name: illustrations(group) for name, group in plates.items()}
    write_figures(report_dir / "figures", itertools.chain(*drawn.values()))
    path = report_dir / "report.html"
    path.write_text(page(content, drawn), encoding="utf-8")
    return path


def write_figures(folder: Path, drawn: Iterable[Illustration]) -> None:
    """Write one PNG a figure; those of an earlier report go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for name, image, _ in drawn:
        (folder / f"{name}.png").write_bytes(image)
