"""What a run folder tells, as one self-contained HTML page, and tables for page and terminal."""

from difftilt.report.page import write_report
from difftilt.report.tables import Column, Spread, html_table, render_table

__all__ = ["Column", "Spread", "html_table", "render_table", "write_report"]
