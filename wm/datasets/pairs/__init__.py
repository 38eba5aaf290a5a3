"""Read human-labelled image pairs: AURORA's layout and narrated video segments."""
