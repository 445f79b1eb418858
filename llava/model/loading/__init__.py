"""Find and read the files of a checkpoint.

`locate` turns a name into a local folder, `source` decides which folders make up a model, `checkpoint` knows
the files that LLaVA runs write, `run_record` tells one base from another, `weights` reads tensor files, and
`placement` chooses device and precision.
"""
