"""Ray Serve applications."""

from wm.collector import spare_imports

spare_imports()  # before a replica, or the command that starts them, imports torch and transformers
