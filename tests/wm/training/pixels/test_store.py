"""Images kept on disk: each once, in the order of ids, checked when they are written."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.pixel_training import pixel_rows
from tests.helpers.training_data import write_triplets
from wm.errors import InputError
from wm.images import decode_image, encode_png
from wm.training import Source
from wm.training.pixels.store import PairSurvey, open_pairs, survey_pairs

NO_IMAGE = {"bytes": None, "path": None}


def test_rows_are_those_of_the_table_and_images_are_kept_once(tmp_path: Path) -> None:
    rows = pixel_rows(6)
    # As of annotated videos: a key-frame is the target of one row and the source of the next.
    rows[3]["source_image"] = rows[2]["target_image"]
    source = Source(path=str(write_triplets(rows, tmp_path / "triplets")))
    survey = survey_pairs(tmp_path / "cache", source, 0, 0)
    assert isinstance(survey, PairSurvey) and not (tmp_path / "cache").exists()
    store = open_pairs(tmp_path / "cache", source, 0, 0)
    ordered = sorted(rows, key=lambda row: row["triplet_id"])
    assert list(store.names) == [row["triplet_id"] for row in ordered]
    assert list(store.actions) == [row["action"] for row in ordered]
    for number, row in enumerate(ordered):
        for image, name in zip(store.images(number), ("source_image", "target_image"), strict=True):
            assert np.array_equal(image, decode_image(row[name]["bytes"], name))
    assert len(np.load(next((tmp_path / "cache").glob("*/image_ends.npy")))) == 11
    # A quarter of the image turns to 255 in one channel of three: grey values show how much.
    assert (store.change_R > 2).all()
    assert store.sizes_R4.tolist() == [[16, 16, 16, 16]] * 6
    assert sorted(survey.actions) == sorted(store.actions) and survey.sizes_R4.tolist() == store.sizes_R4.tolist()
    # Opened again, and surveyed from what is there.
    assert list(open_pairs(tmp_path / "cache", source, 0, 0).names) == list(store.names)
    assert survey_pairs(tmp_path / "cache", source, 0, 0).num_bytes == 0 < survey.num_bytes


def test_rows_without_images_are_refused_with_their_number(tmp_path: Path) -> None:
    rows = pixel_rows(5)
    rows[1]["source_image"], rows[4]["target_image"] = NO_IMAGE, None
    source = Source(path=str(write_triplets(rows, tmp_path / "triplets")))
    for read in (open_pairs, survey_pairs):
        with pytest.raises(InputError, match=r"triplets: 2 of 5 triplets have no source_image or no target_image"):
            read(tmp_path / "cache", source, 0, 0)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    rows = pixel_rows(3)
    good = encode_png(np.zeros((16, 16, 3), np.uint8))
    rows[2]["target_image"] = {"bytes": good[: len(good) // 2], "path": None}
    source = Source(path=str(write_triplets(rows, tmp_path / "triplets")))
    with pytest.raises(InputError, match=rf"target_image of triplet {rows[2]['triplet_id']} is no readable image"):
        open_pairs(tmp_path / "cache", source, 0, 0)
    assert not (tmp_path / "cache").exists()
