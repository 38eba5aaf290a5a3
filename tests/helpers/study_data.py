"""A small study on disk, served in this process."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from wm.images import encode_png
from wm.study.server import build_app
from wm.study.session import StudySession
from wm.study.store import VoteStore
from wm.study.study import IMAGES, STORE_FILE, Study, StudyItem, write_study

SYSTEMS = ("GoT", "SmartEdit", "C-FT", "C-FDM")
ACTIONS = ("move the red circle to the left", "push the cup", "open the drawer", "put the spoon into the bowl")


def write_small_study(
    folder: Path, *, num_items: int = 4, num_participants: int = 3, side_px: int = 32, systems: Sequence[str] = SYSTEMS
) -> Study:
    """A study whose images are flat: grey 10 times the item's number, red one step more for each system."""
    (folder / IMAGES).mkdir(parents=True)
    items = []
    for number in range(num_items):
        names = {}
        for position, name in enumerate(["", *systems]):
            pixels = np.full((side_px, side_px, 3), 10 * (number % 20), np.uint8)
            pixels[..., 0] += 20 * position
            names[name] = f"{number:03}{position}f.png"
            (folder / IMAGES / names[name]).write_bytes(encode_png(pixels))
        action = ACTIONS[number % len(ACTIONS)]
        items.append(StudyItem(f"item{number:03}", f"t{number}", "ag", action, names.pop(""), names))
    study = Study(
        study_id="study-of-tests",
        title="Which image shows the action?",
        consent="You will compare images.\n\nNo personal data is kept.",
        instructions="Choose the best and the worst.\n\nCriteria:\n- Realism\n- Instruction followed",
        systems=tuple(systems),
        items=tuple(items),
        num_participants=num_participants,
        seed=3,
        image_px=side_px,
    )
    write_study(study, folder)
    return study


@contextmanager
def served_study(study: Study, folder: Path, **options: Any) -> Iterator[tuple[str, VoteStore]]:
    """The address of a study while it is served in a thread of this process, and its store."""
    open_seats = options.pop("open_seats", 0)
    with VoteStore(folder / STORE_FILE) as store:
        app = build_app(StudySession(study, folder, store, open_seats=open_seats), **options)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", store
        finally:
            server.should_exit = True
            thread.join(10)
