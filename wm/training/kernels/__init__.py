"""Hold the fast layers of training and their backward passes."""
