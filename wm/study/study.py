"""Define a study of people: its items and systems, as ``study.json`` holds them, and read and write that file.

The file says which image is of which system: it is never served. Not known here: pages, votes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wm.errors import InputError
from wm.files.atomic import replace_file
from wm.runs import parse_json

STUDY_FILE = "study.json"
IMAGES = "images"
"""Folder of the images, beside the file."""
STORE_FILE = "votes.sqlite"
"""The store of votes, beside the file unless another place is given."""
FORMAT = 1


@dataclass(frozen=True)
class StudyItem:
    """One page of the study.

    Attributes:
        item_id: Opaque name, of random letters and digits.
        triplet_id: Triplet whose target is predicted.
        subset: Subset of the bench.
        action: The instruction, as the page shows it.
        source: File name of the input image below ``images``.
        candidates: System → file name of its prediction below ``images``. Names are opaque.
        is_check: Whether it is an attention check, which counts in no figure.
        best: Of a check: the system that is known to be best; empty otherwise.
        worst: Of a check: the system that is known to be worst; empty otherwise.
    """

    item_id: str
    triplet_id: str
    subset: str
    action: str
    source: str
    candidates: Mapping[str, str]
    is_check: bool = False
    best: str = ""
    worst: str = ""

    def is_passed(self, best: str | None, worst: str | None) -> bool:
        """Return whether a choice on a check is the known one; a check may name its best or worst system alone.

        Args:
            best: The system that was chosen as the best one; None: none.
            worst: The system that was chosen as the worst one; None: none.
        """
        return self.best in ("", best) and self.worst in ("", worst)


@dataclass(frozen=True)
class Study:
    """What people are asked.

    Attributes:
        study_id: Random name; votes of another study are refused by it.
        title: Headline of its pages.
        consent: Text that a participant agrees to first.
        instructions: Text that says how to choose; paragraphs are separated by an empty line.
        systems: In the order of the tables.
        items: In the order of the bench; each participant sees them in an order of their own.
        num_participants: How many are planned.
        seed: Of the orders of items and systems that participants see.
        image_px: Width and height of every image.
        secret: Random text that no page shows. Orders depend on it: from seed and bench alone, which others may know,
            nobody can compute whose an image is.
    """

    study_id: str
    title: str
    consent: str
    instructions: str
    systems: tuple[str, ...]
    items: tuple[StudyItem, ...]
    num_participants: int
    seed: int
    image_px: int
    secret: str = ""

    def item(self, item_id: str) -> StudyItem:
        """Return an item by its name.

        Raises:
            InputError: No item has it.
        """
        for item in self.items:
            if item.item_id == item_id:
                return item
        raise InputError(f"study {self.study_id} has no item {item_id!r:.40}")


def write_study(study: Study, folder: Path) -> None:
    """Write ``study.json``, complete or not at all."""
    text = json.dumps({"format": FORMAT, **asdict(study)}, indent=1, ensure_ascii=False)
    with replace_file(folder / STUDY_FILE) as path:
        path.write_text(text + "\n", encoding="utf-8")


def load_study(folder: str | Path) -> Study:
    """Load a study.

    Args:
        folder: Output folder of ``wm study make``.

    Returns:
        The study.

    Raises:
        InputError: The folder holds no study, or a damaged one.
    """
    path = Path(folder) / STUDY_FILE
    if not path.is_file():
        raise InputError(f"study = {str(folder)!r:.300}: no {STUDY_FILE} there; wm study make writes one")
    values: Any = parse_json(path.read_bytes(), str(path))
    try:
        if values.pop("format") != FORMAT:
            raise InputError(f"{path} is of another version of wm: expected format {FORMAT}")
        items = tuple(StudyItem(**item) for item in values.pop("items"))
        return Study(**{**values, "systems": tuple(values["systems"]), "items": items})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no study of wm: {error}") from error
