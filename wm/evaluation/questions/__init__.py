"""Ask models questions about images, as the benchmarks of the paper's spatial rows do, and score their answers."""
