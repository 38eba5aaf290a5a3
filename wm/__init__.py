"""World models bootstrapped from inverse dynamics (arXiv 2506.06006), free of Ray."""

__version__ = "0.1.0"
