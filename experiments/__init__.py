"""Runnable work on real data: `python -m experiments` lists it."""
