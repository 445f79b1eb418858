"""Check training data before the first step, and repair what can be repaired."""
