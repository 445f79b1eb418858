"""Training: flags, the model they ask for, the trainer, and what a run leaves behind."""
