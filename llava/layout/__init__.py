"""Check that the downloads of the training data are complete and in their folders."""
