"""Compute metrics of texts and images, and their statistics."""
