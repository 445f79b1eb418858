"""The metrics.json format, confidence intervals, and published scores to compare with."""
