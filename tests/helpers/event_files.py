"""TensorBoard's event files, read without TensorBoard: records of a length, its checksum, an event and its checksum."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Events:
    """By tag: pairs of step and value. A step that a later file did again counts as that file has it."""

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    histograms: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    images: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def read_events(folder: Path) -> Events:
    """All files of a folder in the order they were made. TensorBoard's rule for restarts: an event of type START hides
    what was told before it of its step and later ones."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = Events()
    kinds = (found.scalars, found.histograms, found.images, found.texts)
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                for kind in kinds:
                    for tag, told in kind.items():
                        kind[tag] = [entry for entry in told if entry[0] < event.step]
            for value in event.summary.value:
                _note(found, event.step, value)
    return found


def _note(found: Events, step: int, value: Any) -> None:
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        found.scalars.setdefault(value.tag, []).append((step, value.simple_value))
    elif kind == "histo":
        found.histograms.setdefault(value.tag, []).append((step, value.histo))
    elif kind == "image":
        found.images.setdefault(value.tag, []).append((step, value.image.encoded_image_string))
    elif kind == "tensor":
        text = b"".join(value.tensor.string_val).decode()
        found.texts.setdefault(value.tag.removesuffix("/text_summary"), []).append((step, text))


def _records(content: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        found.append(content[at + 12 : at + 12 + length])
        at += 12 + length + 4
    return found
