"""Writing checkpoints, finding the one to resume from, and stopping on a signal."""
