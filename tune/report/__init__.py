"""A run's story as one page: `write_report` for one run, `write_comparison` for several; and its curve as a picture."""

from __future__ import annotations

from tune.report.comparison import write_comparison
from tune.report.page import write_report

__all__ = ["write_comparison", "write_report"]
