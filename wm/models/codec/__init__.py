"""Encode images into codes and decode them: the VQGAN and its files."""
