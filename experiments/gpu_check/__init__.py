"""What a machine with a GPU tells of the library in a few minutes: right values, then times."""
