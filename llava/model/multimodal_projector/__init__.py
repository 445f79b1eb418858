"""From vision features to word-embedding space."""
