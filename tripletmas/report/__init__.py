"""Reports: tables, plots and HTML pages, rebuilt from run directories alone.

A page is one file with everything in it: it can be mailed. The plots lie beside it as PNG.
"""

from tripletmas.report.compare import Comparison, Method, Paired, comparison
from tripletmas.report.numbers import Spread
from tripletmas.report.page import write_comparison, write_report
from tripletmas.report.primary import Primary
from tripletmas.report.read import Run, read_group, read_run, seed_directories
from tripletmas.report.search import search_table
from tripletmas.report.sensitivity import Curve, Panel, draw_sensitivity
from tripletmas.report.tables import comparison_markdown, comparison_table

__all__ = [
    "Comparison",
    "Curve",
    "Method",
    "Paired",
    "Panel",
    "Primary",
    "Run",
    "Spread",
    "comparison",
    "comparison_markdown",
    "comparison_table",
    "draw_sensitivity",
    "read_group",
    "read_run",
    "search_table",
    "seed_directories",
    "write_comparison",
    "write_report",
]
