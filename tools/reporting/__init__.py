"""Finished evaluations as one HTML page that needs neither a server nor the net."""

from .assembling import write_report

__all__ = ["write_report"]
