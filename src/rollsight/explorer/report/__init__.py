"""The report: what the explorer shows of a run, as one file that opens without a network."""

from rollsight.explorer.report.report import write_report

__all__ = ["write_report"]
