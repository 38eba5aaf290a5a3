"""Hold the toy world and its base, so that the complete loop runs with no download."""
