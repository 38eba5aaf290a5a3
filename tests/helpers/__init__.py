"""Share between tests: made data, tiny checkpoints, reference implementations, local servers."""
