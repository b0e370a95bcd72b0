"""Comparisons of speed and memory, each a script of its own: `python -m benchmarks.NAME`."""
