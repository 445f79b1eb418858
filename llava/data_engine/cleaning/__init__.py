"""Clean what a model wrote: answers in, engine records out, each rejection with its rule. See README.md."""
