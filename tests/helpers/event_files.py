"""Read TensorBoard's event files without it: records of a length, its checksum, an event and its checksum."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Events:
    """Pairs of step and value by tag. A step that a later file did again counts as that file has it."""

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    histograms: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    images: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def read_events(folder: Path) -> Events:
    """Read all files of a folder, in the order they were made.

    TensorBoard's rule for restarts: an event of type START hides earlier events of its step and later ones.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    events = Events()
    kinds = (events.scalars, events.histograms, events.images, events.texts)
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                for kind in kinds:
                    for tag, entries in kind.items():
                        kind[tag] = [entry for entry in entries if entry[0] < event.step]
            for value in event.summary.value:
                _add(events, event.step, value)
    return events


def _add(events: Events, step: int, value: Any) -> None:
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        events.scalars.setdefault(value.tag, []).append((step, value.simple_value))
    elif kind == "histo":
        events.histograms.setdefault(value.tag, []).append((step, value.histo))
    elif kind == "image":
        events.images.setdefault(value.tag, []).append((step, value.image.encoded_image_string))
    elif kind == "tensor":
        text = b"".join(value.tensor.string_val).decode()
        events.texts.setdefault(value.tag.removesuffix("/text_summary"), []).append((step, text))


def _records(content: bytes) -> list[bytes]:
    records, start = [], 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        records.append(content[start + 12 : start + 12 + length])
        start += 12 + length + 4
    return records
