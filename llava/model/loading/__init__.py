"""Find, read and place the files of a checkpoint."""
