"""Finished evaluations as one HTML page that needs neither a server nor the net."""

from .page import write_report

__all__ = ["write_report"]
