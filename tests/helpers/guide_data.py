"""Tiny data in the forms that the guides name: videos, AURORA, EPIC-Kitchens, models, an image."""

import json
import shutil
from pathlib import Path

import numpy as np

from tests.helpers.models_roles import write_roles
from tests.helpers.training_data import random_rows, write_triplets
from tests.helpers.video_files import marked_frame, write_video
from wm.images import encode_png

SIDE_PX = 24
SUBSETS = ("ag", "magicbrush", "something", "kubric")
EPIC_TABLE = """\
narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb
P01_1_0,P01,P01_1,00:00:00.40,00:00:01.20,open the door,open
P01_1_1,P01,P01_1,00:00:00.80,00:00:01.60,turn on light,turn-on
"""


def write_guide_data(tiny_base: Path, root: Path) -> dict[str, str]:
    """Write everything below ``root``; return what each placeholder of the guides stands for."""
    roles = write_roles(tiny_base, root / "roles")
    write_video(root / "videos" / "wave" / "good.mp4", [marked_frame(number) for number in range(60)])
    (root / "videos" / "wave" / "broken.mp4").write_bytes(b"no video")
    kitchen = root / "epic" / "P01" / "videos" / "P01_1.MP4"
    kitchen.parent.mkdir(parents=True)
    shutil.copy(root / "videos" / "wave" / "good.mp4", kitchen)
    (root / "epic.csv").write_text(EPIC_TABLE)
    _write_aurora(root / "aurora")
    (root / "table.png").write_bytes(encode_png(_noise(99)))
    image = {"bytes": encode_png(_noise(98)), "path": None}
    rows = random_rows(roles / "base", 4, split="test", source_image=image, target_image=image)
    write_triplets(rows, root / "held_out" / "triplets")
    return {
        "MODEL": str(roles / "base"),
        "IDM": str(roles / "idm"),
        "FDM": str(roles / "fdm"),
        "VIDEOS": str(root / "videos"),
        "AURORA": str(root / "aurora"),
        "EPIC": str(root / "epic"),
        "EPIC_CSV": str(root / "epic.csv"),
        "IMAGE": str(root / "table.png"),
        "HELD_OUT": str(root / "held_out"),
    }


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)


def _write_aurora(root: Path) -> None:
    for number, name in enumerate(SUBSETS):
        folder = root / "data" / name
        folder.mkdir(parents=True)
        rows = []
        for row in range(3):
            pair = {"input": f"data/{name}/{row}_left.png", "output": f"data/{name}/{row}_right.png"}
            for side, path in enumerate(pair.values()):
                (root / path).write_bytes(encode_png(_noise(100 * number + 10 * row + side)))
            rows.append({"instruction": "put the red cup", "task": name, **pair})
        for file in ("train.json", "valid.json", "test.json"):
            (folder / file).write_text(json.dumps(rows))
