"""Tiny files in the benchmarks' released formats."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

RELATIONS = ("on/above", "below", "in front of", "behind", "left of", "right of")


def encode(number: int, format: str = "PNG") -> bytes:
    """Encode a random image of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def mqa_entry(number: int, **changes: object) -> dict[str, object]:
    """Build an entry as SpatialMQA's test.jsonl has them."""
    options = list(RELATIONS if number % 2 else RELATIONS[2:])
    entry = {
        "image": f"{number:012d}.jpg",
        "question": "move the cup",
        "options": options,
        "answer": options[number % 4],
    }
    return entry | changes


def write_spatialmqa(folder: Path, entries: Sequence[object], images: int = 8) -> Path:
    """Write test.jsonl, and images in the folder COCO2017; text entries are lines as they are."""
    (folder / "COCO2017").mkdir(parents=True)
    for number in range(images):
        (folder / "COCO2017" / f"{number:012d}.jpg").write_bytes(encode(number, "JPEG"))
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def embspatial_entry(number: int, **changes: object) -> dict[str, object]:
    """Build an entry as EmbSpatial-Bench's list has them."""
    entry: dict[str, object] = {
        "question_id": f"mp3d_{number}",
        "question": 'How are the door and the "heater" placed?',
        "answer_options": ["the cup", "the red cup", "the bowl", "the block"],
        "answer": number % 4,
        "relation": ("close", "far", "above")[number % 3],
        "data_source": ("mp3d", "scannet")[number % 2],
        "image": base64.b64encode(encode(number, "JPEG")).decode(),
    }
    return entry | changes


def write_embspatial(folder: Path, entries: Sequence[object], indent: int | None = None) -> Path:
    """Write embspatial_bench.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "embspatial_bench.json").write_text(json.dumps(list(entries), indent=indent), encoding="utf-8")
    return folder


def write_folder(folder: Path, entries: Sequence[object], images: int = 8) -> Path:
    """Write questions.jsonl, and images below images/."""
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        (folder / "images" / f"{number}.png").write_bytes(encode(number))
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder
