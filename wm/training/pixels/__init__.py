"""Train models that read pixels: rows with images instead of codes, their batches, loss and plan."""
