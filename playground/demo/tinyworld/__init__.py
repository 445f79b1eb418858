"""The demo's world: scenes of nine cells, their drawings, questions about them. Knows nothing of models."""
