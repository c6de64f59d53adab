"""The library against its peers: `python -m experiments.benchmarks`."""
