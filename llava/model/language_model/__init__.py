"""The language model with its image side."""
