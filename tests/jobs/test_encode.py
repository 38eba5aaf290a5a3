"""Codes for triplets that have none, or another codec's: all else of a row stays."""

import pyarrow as pa
import pytest

from jobs import encode
from jobs.encode import EncodeRecipe, run
from tests.helpers.evaluate_data import ACTIONS, ITEMS, noise_pair, write_triplets
from wm.errors import InputError
from wm.evaluation.counterfactuals import read_counterfactual_column
from wm.evaluation.heldout import read_held_out
from wm.models import load_codec
from wm.packaged import resolve_packaged
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA
from wm.tables import read_table, write_table

CODES = ("codec", "source_codes", "target_codes", "change")


def rows_of(folder, schema=TRIPLET_SCHEMA):
    return sorted(read_table(folder, schema).to_pylist(), key=lambda row: row.get("triplet_id") or row["reject_id"])


def recipe_of(triplets, codec, out, **more):
    return EncodeRecipe.parse({"triplets": str(triplets), "codec": str(codec), "out": str(out)} | more, "test")


def test_codes_are_those_of_the_codec_and_the_rest_stays(tiny_base, tmp_path):
    triplets = write_triplets(tmp_path / "set", noise_pair, ACTIONS)
    record = run(recipe_of(triplets, tiny_base, tmp_path / "out", resources={"batch_size": 4}))
    codec = load_codec(tiny_base)
    held_out = read_held_out(triplets, codec)  # encodes by itself
    rows = rows_of(tmp_path / "out" / "triplets")
    assert record["counts"]["triplets"] == len(rows) == ITEMS and record["counts"]["rejects"] == 0
    for row, before, source, target, change in zip(
        rows, rows_of(triplets), held_out.source_codes, held_out.target_codes, held_out.change, strict=True
    ):
        assert (row["codec"], row["source_codes"], row["target_codes"]) == (
            codec.codec_id, source.tolist(), target.tolist(),
        )  # fmt: skip
        assert row["change"] == pytest.approx(change.tolist(), rel=1e-4)
        assert {name: row[name] for name in row if name not in CODES} == {
            name: before[name] for name in before if name not in CODES
        }
    # Those of another codec replace them; back again they are the same.
    run(recipe_of(tmp_path / "out", resolve_packaged("nano:base"), tmp_path / "nano"))
    assert {row["codec"] for row in rows_of(tmp_path / "nano" / "triplets")} != {codec.codec_id}
    run(recipe_of(tmp_path / "nano", tiny_base, tmp_path / "back", resources={"batch_size": 4}))
    assert rows_of(tmp_path / "back" / "triplets") == rows


def test_a_damaged_image_is_a_reject_and_a_killed_run_resumes(tiny_base, tmp_path, monkeypatch, capsys):
    triplets = write_triplets(tmp_path / "set", noise_pair, ACTIONS[:3])
    broken = read_table(triplets, TRIPLET_SCHEMA).to_pylist()
    broken[1]["triplet_id"], broken[1]["target_image"] = "broken", {"bytes": b"no image", "path": None}
    write_table(broken[1:2], triplets / "part-1.parquet", TRIPLET_SCHEMA)
    one, direct, files = recipe_of(triplets, tiny_base, tmp_path / "out"), encode._encode_file, []

    def stop_at_the_second(recipe, codec, file, name):
        if files:
            raise KeyboardInterrupt
        files.append(file.name)
        direct(recipe, codec, file, name)

    monkeypatch.setattr(encode, "_encode_file", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(one)
    monkeypatch.setattr(encode, "_encode_file", lambda *given: files.append(given[2].name) or direct(*given))
    counts = run(one)["counts"]
    assert files == ["part-0.parquet", "part-1.parquet"]
    assert (counts["rows"], counts["triplets"], counts["rejects_by_reason"]) == (4, 3, {"not_an_image": 1})
    (reject,) = rows_of(tmp_path / "out" / "rejects", REJECT_SCHEMA)
    assert reject["uri"] == "broken" and "target_image of triplet broken" in reject["detail"]
    assert run(one)["counts"] == counts and "already complete" in capsys.readouterr().out


def test_bad_input_is_named_before_anything_is_written(tiny_base, tmp_path, capsys):
    triplets = write_triplets(tmp_path / "set", noise_pair, ACTIONS)
    assert run(recipe_of(triplets, tiny_base, tmp_path / "out"), dry_run=True) == {}
    assert f"would give {ITEMS} triplets the codes of codec" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    write_table([], tmp_path / "none" / "part-0.parquet", TRIPLET_SCHEMA)
    for folder, codec, message in (
        (triplets, tmp_path / "nowhere", "nowhere"),
        (tmp_path / "none", tiny_base, "no triplet in"),
    ):
        with pytest.raises(InputError, match=message):
            run(recipe_of(folder, codec, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_columns_of_the_users_own_and_equal_names_stay(tiny_base, tmp_path):
    """A bench's opposite actions are a column, and several exports in one folder have files of one name."""
    schema = TRIPLET_SCHEMA.append(pa.field("counterfactual_action", pa.string()))
    (row, *_) = read_table(write_triplets(tmp_path / "set", noise_pair, ACTIONS[:1]), TRIPLET_SCHEMA).to_pylist()
    for part in "ab":
        named = row | {"triplet_id": part, "counterfactual_action": f"no {part}"}
        write_table([named], tmp_path / "sets" / part / "part-0.parquet", schema)
    counts = run(recipe_of(tmp_path / "sets", tiny_base, tmp_path / "out"))["counts"]
    assert counts["triplets"] == 2 and read_counterfactual_column(tmp_path / "out") == {"a": "no a", "b": "no b"}
    names = sorted(file.name for file in (tmp_path / "out" / "triplets").iterdir())
    assert names == ["a__part-0.parquet", "b__part-0.parquet"]
