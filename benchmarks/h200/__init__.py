"""What one H200 does with tune and with its peers: three commands of at most ten minutes each.

    python -m benchmarks.h200.parts --output benchmarks/results/h200_parts.json
    python -m benchmarks.h200.train full --output benchmarks/results/h200_full.json
    python -m benchmarks.h200.train adapters --output benchmarks/results/h200_adapters.json

Each takes `--device cpu --toy` as well, which runs all of it in a minute on sizes that say nothing about speed.
"""
