"""Readers of data sets people have, and stratified top-K selection."""
