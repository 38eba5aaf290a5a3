"""Read original releases (Meta, Anole) that are not in the Hugging Face layout."""
