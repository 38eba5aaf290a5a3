"""Write, read and prune training checkpoints."""
