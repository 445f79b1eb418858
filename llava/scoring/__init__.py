"""Metrics of a run, their intervals, and the published figures to compare with."""
