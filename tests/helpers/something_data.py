"""A tiny release of Something-Something v2: webm videos of marked frames, labels and the list of classes."""

import json
from pathlib import Path

from tests.helpers.video_files import marked_frame, write_video

FPS = 12
NUM_FRAMES = {"101": 20, "7": 9, "33": 14}
ROWS: list[object] = [
    {
        "id": "101",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {"id": "7", "label": "closing a door", "template": "Closing [something]", "placeholders": ["a door"]},
    {"id": "404", "label": "closing a box", "template": "Closing [something]", "placeholders": ["a box"]},
    {"id": "9", "label": "closing a book", "template": "Closing [something]", "placeholders": ["a book"]},
]
CLASSES = {"Closing something": "0", "Holding something next to something": "1"}


def write_release(root: Path, rows: object = ROWS, classes: object = CLASSES) -> Path:
    """Write ``root/20bn-something-something-v2`` and ``root/labels/*.json``; return the labels for training.

    Video 9 is broken, 404 is not there, 33 has no label.
    """
    folder = root / "20bn-something-something-v2"
    for video_id, num_frames in NUM_FRAMES.items():
        frames = [marked_frame(index + int(video_id) % 50) for index in range(num_frames)]
        options = {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "0"}
        write_video(folder / f"{video_id}.webm", frames, fps=FPS, codec="libvpx-vp9", options=options)
    (folder / "9.webm").write_bytes(b"\x1aE\xdf\xa3 no video")
    labels = root / "labels"
    labels.mkdir()
    (labels / "something-something-v2-labels.json").write_text(json.dumps(classes))
    path = labels / "something-something-v2-train.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path
