"""Right values, then times, on a machine with a GPU: `make gpu-check`."""
