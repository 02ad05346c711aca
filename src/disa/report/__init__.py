"""The report: what was estimated, trained and found, on one page.

Reads the records and manifests of every stage (handed over as one :class:`ReportContent`), writes
``8_report/report.html``, self-contained, and its figures as PNG files. Formula: none of its own;
every sentence under a figure is computed from the numbers that the figure shows.
"""

from disa.report.content import ReportContent
from disa.report.tables import metrics_table_text
from disa.report.write import write_report

__all__ = ["ReportContent", "metrics_table_text", "write_report"]
