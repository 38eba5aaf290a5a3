"""Compute what votes of people say about systems."""
