"""Answer a question file: shards, journal, merge."""
