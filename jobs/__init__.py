"""Ray drivers, one file a stage: ``python -m jobs.NAME recipe.toml key=value``."""

import os

# Read by OpenMP when torch is first imported. Threads that wait for each other sleep instead of spinning: on two cores
# with anything else running, spinning made a training step of two threads five times as slow (842 against 160 ms).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
