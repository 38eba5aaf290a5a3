"""Count what one image edit crosses: ``python -m tests.helpers.image_edit_files`` prints the product's files whose
functions ran, and the deepest chain of product functions, from the HTTP app in this process to the images and back.

The models are random and tiny, and stand behind objects that act as Ray Serve's handles: no session is needed. What is
done once for a process (imports, loading, a first request) is not counted.
"""

import base64
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
from starlette.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from wm.images import encode_png
from wm.nano.preset import TINY, write_random_base

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("serve_apps", "wm")


class CallTrace:
    """Record, from all threads, which product functions run and how deep they nest."""

    def __init__(self) -> None:
        self.is_on = False
        self.chain: tuple[str, ...] = ()
        self._prefixes = tuple(f"{ROOT / room}/" for room in ROOMS)
        self._codes: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Take an event of ``sys.setprofile``."""
        if not self.is_on or event != "call" or not frame.f_code.co_filename.startswith(self._prefixes):
            return
        self._codes.add(frame.f_code)
        chain = []
        current: FrameType | None = frame
        while current is not None:
            if current.f_code.co_filename.startswith(self._prefixes):
                chain.append(current.f_code)
            current = current.f_back
        if len(chain) > len(self.chain):
            self.chain = tuple(f"{_path_of(code)}:{code.co_qualname}" for code in reversed(chain))

    @property
    def files(self) -> list[str]:
        """The files of the functions that ran, from the repository's root."""
        return sorted({_path_of(code) for code in self._codes})


def _path_of(code: CodeType) -> str:
    return str(Path(code.co_filename).relative_to(ROOT))


def trace_edit(base: Path) -> CallTrace:
    """Trace one edit of a server whose two models are ``base``."""
    trace = CallTrace()
    # Threads get the profiler as they start: it is set before the models' own are made, and counts later.
    threading.setprofile(trace)
    sys.setprofile(trace)
    image = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((16, 16, 3), np.uint8))).decode()
    body = {"image": image, "prompt": "move the red cup left", "best_of": 4}
    try:
        with TestClient(local_app(ServeRecipe(fdm=str(base), idm=str(base)))) as client:
            for seed, trace.is_on in ((1, False), (2, True)):  # the second request finds everything loaded
                client.post("/v1/images/edits", json={**body, "seed": seed}).raise_for_status()
            trace.is_on = False
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return trace


def main() -> int:
    """Print the counts and the names."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_random_base(base, words=("move", "the", "red", "cup", "left"), preset=TINY)
        trace = trace_edit(base)
    counts = {room: sum(file.startswith(f"{room}/") for file in trace.files) for room in ROOMS}
    print(json.dumps({"files": len(trace.files), **counts, "deepest_chain": len(trace.chain)}))
    print("files:", *trace.files, sep="\n  ")
    print("deepest chain:", *trace.chain, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
