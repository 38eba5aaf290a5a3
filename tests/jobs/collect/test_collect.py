"""Other systems' outputs become a prediction set: every row of the bench found or missing, nothing guessed."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs import collect
from jobs.collect import CollectRecipe
from tests.helpers.bench_files import TASKS, bench_pair, write_bench
from wm.errors import InputError
from wm.evaluation.bench_rows import read_bench_rows
from wm.evaluation.predictions import PREDICTION_SCHEMA, check_systems, list_predictions, pixels_digest
from wm.images import decode_image
from wm.records import REJECT_SCHEMA
from wm.tables import read_table

NUM_ROWS = len(TASKS)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("collect"))


def recipe_of(bench, tmp_path, **changes):
    values = {"system": "GoT", "triplets": str(bench), "out": str(tmp_path / "set"), "folder": str(tmp_path / "got")}
    return CollectRecipe.parse(values | changes, "test")


def write_outputs(folder, rows=range(NUM_ROWS), name="{task}/{row:03}.png"):
    """Write the source of each row as its prediction."""
    for number in rows:
        path = folder / name.format(task=TASKS[number], row=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bench_pair(number)[0]).save(path)


def reasons_of(out):
    return {row["uri"]: row["reason"] for row in read_table(out / "rejects", REJECT_SCHEMA).to_pylist()}


def test_rows_are_found_missing_or_rejects(bench, tmp_path, capsys):
    folder = tmp_path / "got"
    write_outputs(folder, rows=(0, 1, 2))
    Image.fromarray(bench_pair(0)[0][..., 0]).save(folder / "magicbrush/000.png")  # grey is converted
    (folder / "something/003.png").write_bytes(b"\x89PNG broken")
    (folder / "notes.txt").write_text("no image")
    recipe = recipe_of(bench, tmp_path, pattern="{task}/{row:03}.png", shard_rows=2)
    assert collect.run(recipe, dry_run=True) == {} and not (tmp_path / "set").exists()
    assert "files of no row: 1 (notes.txt)" in capsys.readouterr().out
    counts = collect.run(recipe)["counts"]
    rows = read_bench_rows(bench)
    assert "rows without a file: 1 (kubric/004.png)" in capsys.readouterr().out
    assert counts == {
        "rows": NUM_ROWS, "rejects_by_reason": {"missing_file": 1, "not_an_image": 1},
        "rows_with_images": 3, "rows_without_images": 2,
        "rows_without_images_by_class": {"kubric": 1, "something": 1},
        "images": 3, "distinct_images": 3, "runs": 1, "extra_files": 1, "extra_lines": 0,
        "stretched_images": 0,
    }  # fmt: skip
    assert reasons_of(tmp_path / "set") == {rows[4].triplet_id: "missing_file", "something/003.png": "not_an_image"}
    table = read_table(tmp_path / "set/predictions", PREDICTION_SCHEMA).to_pylist()
    assert [row["triplet_id"] for row in table] == [row.triplet_id for row in rows[:3]]
    for number, row in enumerate(table):
        source = bench_pair(number)[0]
        expected = np.repeat(source[..., :1], 3, axis=2) if number == 0 else source
        np.testing.assert_array_equal(decode_image(row["image"]["bytes"], "image"), expected)
        assert (row["width_px"], row["height_px"], row["decoding"], row["origin"]) == (24, 16, "unknown", "external")
        assert (row["system"], row["pixels_sha256"], row["view"]) == ("GoT", pixels_digest(expected), "full")
    # Killed before the second file, and started again.
    (tmp_path / "set/run.json").rename(tmp_path / "set/run.unfinished.json")
    with pytest.raises(InputError, match=r"prediction set .* is not complete: expected a folder with run\.json"):
        list_predictions(tmp_path / "set")
    (tmp_path / "set/predictions/part-00001.parquet").unlink()
    assert collect.run(recipe)["counts"] == counts
    assert read_table(tmp_path / "set/predictions", PREDICTION_SCHEMA).to_pylist() == table


def test_predictions_of_another_aspect_ratio_are_warned_of(bench, tmp_path, capsys):
    write_outputs(tmp_path / "got")
    # Targets have 24 x 16 pixels: a square, one row too many of 20 (5 %), and one of 48 (2 %).
    for number, size in ((0, (16, 16)), (1, (30, 21)), (2, (72, 49))):
        Image.new("RGB", size).save(tmp_path / "got" / TASKS[number] / f"{number:03}.png")
    counts = collect.run(recipe_of(bench, tmp_path, pattern="{task}/{row:03}.png"))["counts"]
    first = read_bench_rows(bench)[0].triplet_id
    assert counts["stretched_images"] == 2 and counts["images"] == NUM_ROWS
    assert (
        f"warning: 2 of 5 images have another aspect ratio than their targets, by more than 3% (16 x 16 pixels for "
        f"24 x 16 of triplet {first} the first): metrics of the full frame stretch them; if they show the centre "
        "square alone, collect them with view=square"
    ) in capsys.readouterr().out


def test_runs_and_equal_candidates_of_a_row(bench, tmp_path):
    folder = tmp_path / "got"
    for run, candidate, source in ((1, 0, 0), (1, 1, 0), (1, 2, 1), (12, 0, 0)):
        path = folder / f"run{run}" / f"{source}_{candidate:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bench_pair(source)[0]).save(path)
        Image.fromarray(bench_pair(0)[0]).save(folder / f"run{run}" / f"0_{candidate:02}.png")
    record = collect.run(recipe_of(bench, tmp_path, pattern="run{run}/{row}_{candidate}.png"))
    facts = list_predictions(tmp_path / "set")
    ids = [row.triplet_id for row in read_bench_rows(bench)]
    assert [(ids.index(row["triplet_id"]), row["run"], row["candidates"]) for row in facts] == [
        (0, 1, [0, 1, 2]), (0, 12, [0]), (1, 1, [2])
    ]  # fmt: skip
    assert (record["counts"]["images"], record["counts"]["distinct_images"], record["counts"]["runs"]) == (5, 3, 2)
    with pytest.raises(
        InputError, match=r"both hold a system named 'GoT'; give one of them another name .*zero_shot=false"
    ):
        check_systems([("a", facts), ("b", facts)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "{task}/{stem}.png"}, "names one file, magicbrush/first.png, .*differs.*{folder}, {row}"),
        ({"pattern": "{colour}.png"}, "unknown field 'colour'; expected a path below the folder"),
        ({"pattern": "{task/{row}.png"}, "pattern = .*unexpected '{' in field name; expected a path"),
        ({"pattern": "{run}.png"}, "no field of a row, so that all rows have one file"),
        ({"pattern": "../{row}.png"}, "leads out of the folder"),
        ({"pattern": "{row}_{run}_{run}.png"}, "{run} occurs twice"),
        ({"pattern": "{stem:>5}.png"}, "format '>5'; only row takes one"),
        ({"pattern": "{id}.png"}, "no {id} for triplet .*: give bench_file"),
        ({"pattern": "{row}.webp"}, "no file below .* fits pattern = .*expected 0.webp and the like, found kubric/004"),
        ({"folder": "/nowhere"}, "no such file or folder: /nowhere"),
        ({"system": "Copy"}, "system = 'Copy': 'Copy' is what every bench measures of itself: give another name"),
        ({"system": " "}, "a system needs a name"),
        ({"folder": ""}, "nothing to collect: give folder, actions or both"),
        ({"view": "oval"}, "view = 'oval'"),
    ],
)
def test_bad_recipes_are_one_line_and_write_nothing(bench, tmp_path, changes, message):
    write_outputs(tmp_path / "got")
    with pytest.raises(InputError, match=message) as caught:
        collect.run(recipe_of(bench, tmp_path, **changes))
    assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()


def test_files_that_fit_twice_are_refused(bench, tmp_path):
    folder = tmp_path / "got"
    write_outputs(folder, rows=(0,), name="{row}_3.png")
    write_outputs(folder, rows=(0,), name="{row}_03.png")
    with pytest.raises(InputError, match=r"0_03.png and 0_3.png are both run 0, candidate 3"):
        collect.run(recipe_of(bench, tmp_path, pattern="{row}_{candidate}.png"))


def test_hostile_files_are_rejects(bench, tmp_path):
    folder = tmp_path / "got"
    write_outputs(folder, rows=(0, 4))
    (tmp_path / "secret.png").write_bytes((folder / "kubric/004.png").read_bytes())
    (folder / "magicbrush/001.png").symlink_to(tmp_path / "secret.png")
    (folder / "something").mkdir()
    Image.new("1", (7000, 7000)).save(folder / "something/002.png")
    (folder / "something/003.png").symlink_to("003.png")
    collect.run(recipe_of(bench, tmp_path, pattern="{task}/{row:03}.png"))
    assert reasons_of(tmp_path / "set") == {
        "magicbrush/001.png": "unreadable_file", "something/002.png": "not_an_image",
        "something/003.png": "unreadable_file",
    }  # fmt: skip
    collect.run(recipe_of(bench, tmp_path, pattern="{task}/{row:03}.png", view="square", out=str(tmp_path / "square")))
    assert set(reasons_of(tmp_path / "square").values()) == {"not_square", "unreadable_file", "not_an_image"}


def test_actions_of_another_system(bench, tmp_path, capsys):
    rows = read_bench_rows(bench)
    lines = [
        {"row": 1, "action": " lift it "}, {"triplet_id": rows[0].triplet_id, "action": "öffne"},
        {"row": 5, "action": "of a row without a target"}, {"row": 1, "action": "", "run": 1},
    ]  # fmt: skip
    path = tmp_path / "actions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    recipe = recipe_of(bench, tmp_path, folder="", actions=str(path), bench_file=str(bench.parent / "test.json"))
    counts = collect.run(recipe)["counts"]
    assert counts["rows_with_actions"] == 2 and counts["extra_lines"] == 1
    assert counts["rows_without_actions"] == 3 and sum(counts["rows_without_actions_by_class"].values()) == 3
    shown = capsys.readouterr().out
    assert "2 rows with actions, 3 without" in shown and "lines of no row: 1 (line 3: row 5)" in shown
    assert f"rows without an action: 3 ({rows[2].triplet_id}, " in shown
    assert "warning: 3 of 5 rows have no actions; is it the file of this bench?" in shown
    assert counts["rejects_by_reason"] == {"missing_action": 3}
    actions = read_table(tmp_path / "set/actions", collect.job.ACTION_SCHEMA).to_pylist()
    assert [(row["triplet_id"], row["run"], row["action"]) for row in actions] == [
        (rows[0].triplet_id, 0, "öffne"), (rows[1].triplet_id, 0, "lift it"), (rows[1].triplet_id, 1, "")
    ]  # fmt: skip
    for line, message in (
        ('{"row": 1, "action": "again"}', "line 6: a second action for triplet"),
        ("[1]", r"line 6: \[1\]; expected"),
        ('{"row": 2, "action": 3}', "action = 3, run = 0; expected a text"),
        ('{"row": 2', "not valid JSON"),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(path.read_text() + line)
        with pytest.raises(InputError, match=message):
            collect.run(recipe_of(bench, tmp_path, folder="", actions=str(bad), out=str(tmp_path / "bad")))


def test_rows_are_numbered_by_the_benchs_own_list(bench):
    from wm.evaluation.bench_rows import add_list_rows

    rows = read_bench_rows(bench)
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    again = add_list_rows(read_bench_rows(bench / "triplets" / "part-00001.parquet"), bench.parent / "test.json")
    assert [(row.number, row.list_id, row.row) for row in again] == [(3, "s3", 0), (4, "s4", 1)]
    with pytest.raises(InputError, match="no such file: /nowhere"):
        add_list_rows(rows, "/nowhere")
