"""Estimates for a run before it starts, and its throughput while it runs."""
