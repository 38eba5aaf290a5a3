"""Ray drivers, one file a stage: ``python -m jobs.NAME recipe.toml key=value``."""

import os
from typing import TYPE_CHECKING

from wm.collector import spare_imports
from wm.preflight import add_check

if TYPE_CHECKING:
    from wm.config import Recipe

# Read by OpenMP when torch is first imported. Threads that wait for each other sleep instead of spinning: on two cores
# with anything else running, spinning made a training step of two threads five times as slow (842 against 160 ms).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
spare_imports()  # before a job, or a worker of Ray that runs a part of one, imports them


def _check_submitted(recipe: "Recipe") -> None:
    """Refuse outputs of a submitted job that only one node of the cluster sees."""
    from wm.paths import is_submitted_job

    # Imported here: elsewhere no command needs it.
    if is_submitted_job():
        from jobs.shared.shared_storage import check_outputs

        check_outputs(recipe)


add_check(_check_submitted)
