"""The metrics.json format, confidence intervals, paired tests, and published scores to compare with."""
