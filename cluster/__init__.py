"""Running on more than one node: images, manifests, and several Ray nodes on one machine."""
