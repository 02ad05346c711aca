"""The report: what was estimated, trained and found, on one page that a person decides from.

Reads the records and manifests of every stage (handed over as one :class:`ReportContent`), writes
``8_report/report.html``, self-contained, its figures as PNG files, and every number as JSON and Parquet. Formula: none
of its own; every sentence is computed from the numbers beside it.
"""

from disa.report.content import ReportContent

__all__ = ["ReportContent"]
