"""Held-out triplets: stored codes are used or made anew, rows are spread over the set."""

import pyarrow as pa
import torch

from tests.helpers.evaluate_data import ACTIONS, noise_pair, write_triplets
from wm.evaluation.heldout import read_held_out, spread_rows
from wm.models import load_codec
from wm.tables import write_table


def test_stored_codes_are_taken_only_from_this_codec(tiny_base, tmp_path):
    codec = load_codec(tiny_base)
    stored = read_held_out(write_triplets(tmp_path / "a", noise_pair, ACTIONS, codec=codec), codec)
    computed = read_held_out(write_triplets(tmp_path / "b", noise_pair, ACTIONS), codec)
    assert torch.equal(stored.source_codes, computed.source_codes)
    assert stored.change[3].tolist() == [3.0] * 4
    assert computed.change[3].tolist() != [3.0] * 4


def test_a_stage_folder_is_read_by_its_triplets(tiny_base, tmp_path):
    codec = load_codec(tiny_base)
    write_triplets(tmp_path / "annotated" / "triplets", noise_pair, ACTIONS)
    # A table of another kind beside them, as annotate writes.
    write_table([{"uri": "a.mp4"}], tmp_path / "annotated" / "clips" / "shard.parquet", pa.schema({"uri": pa.string()}))
    of_stage, of_triplets = (read_held_out(tmp_path / name, codec) for name in ("annotated", "annotated/triplets"))
    assert of_stage.ids == of_triplets.ids
    assert torch.equal(of_stage.target_codes, of_triplets.target_codes)


def test_limit_spreads_over_the_set():
    assert spread_rows(10, 4) == [0, 2, 5, 7]
    assert spread_rows(3, 8) == [0, 1, 2]
