"""Loaders of real recordings: they read files; only `fetch` downloads."""
