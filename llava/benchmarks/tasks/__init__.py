"""One module for each benchmark; each defines `BENCHMARK`."""
