"""Plan a training run: memory, FLOPs, batch sizes and what fits."""
