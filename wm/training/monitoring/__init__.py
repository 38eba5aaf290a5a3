"""Watch a training run: metrics, trackers, evaluation, non-finite losses."""
