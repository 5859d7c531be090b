"""Reports: tables, plots and HTML pages, rebuilt from run directories alone.

A page is one file with everything in it: it can be mailed. The plots lie beside it as PNG.
"""

from tripletmas.report.compare import Comparison, Method, Spread, comparison, comparison_markdown, comparison_table
from tripletmas.report.page import write_comparison, write_report
from tripletmas.report.read import Run, read_group, read_run, seed_directories

__all__ = [
    "Comparison",
    "Method",
    "Run",
    "Spread",
    "comparison",
    "comparison_markdown",
    "comparison_table",
    "read_group",
    "read_run",
    "seed_directories",
    "write_comparison",
    "write_report",
]
