"""Loaders of data sets: they read files; only `fetch` downloads."""
