"""One optimizer step: which shortcuts it takes and how its samples are arranged in rows."""
