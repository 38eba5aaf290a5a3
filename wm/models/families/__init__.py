"""Hold the model families, one file each."""
