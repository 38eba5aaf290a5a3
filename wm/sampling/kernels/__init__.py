"""Hold the fast kernels of sampling: attention, linear layers, CUDA graphs, Triton."""
