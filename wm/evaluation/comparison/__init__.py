"""Compare two systems on one bench: their values item by item, differences with intervals, and verdicts in words."""
