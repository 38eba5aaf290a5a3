"""Hold the toy world and its base, so that the whole loop runs with no download."""
