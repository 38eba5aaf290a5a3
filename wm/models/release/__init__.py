"""Convert original releases (Meta's Chameleon, Anole) to Hugging Face folders; nothing else reads them."""
