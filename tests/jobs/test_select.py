"""The selection job, from annotated triplets to ids."""

import itertools
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jobs.select.files
import jobs.select.reading
import jobs.select.spills
from jobs.select.job import main, run
from jobs.select.recipe import SelectRecipe
from wm.datasets.selection.algorithm import SELECTION_SCHEMA, select_top_k
from wm.datasets.selection.rows import COLUMNS
from wm.errors import InputError, OtherRunError
from wm.images import encode_png
from wm.records import TRIPLET_SCHEMA, triplet_row
from wm.runs import read_run, write_json
from wm.tables import read_table, write_table

IMAGE = {"bytes": encode_png(np.zeros((2, 2, 3), np.uint8)), "path": None}


def triplets(folder: Path, **changes: Any) -> Path:
    rows = [
        triplet_row(
            triplet_id=f"t{number:02d}",
            dataset="d",
            split="train",
            class_label=["run", "jump", None][number % 3],
            source_image=IMAGE,
            target_image=IMAGE,
            action="x",
            **({"origin": "idm", "action_logprob": -1.0 - number // 6, "action_tokens": 2} | changes),
        )
        for number in range(20)
    ]
    for part in range(2):
        write_table(rows[part::2], folder / f"part-{part}.parquet", TRIPLET_SCHEMA)
    return folder


def recipe(tmp_path: Path, **changes: Any) -> SelectRecipe:
    return SelectRecipe(triplets=str(tmp_path / "triplets"), out=str(tmp_path / "out"), **({"k": 7} | changes))


def test_from_triplets_to_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    triplets(tmp_path / "triplets")
    assert run(recipe(tmp_path), dry_run=True) == {} and not (tmp_path / "out").exists()
    assert "would choose" in capsys.readouterr().out
    record = run(recipe(tmp_path))
    selected = read_table(tmp_path / "out" / "selection", SELECTION_SCHEMA)
    assert selected.equals(select_top_k(read_table(tmp_path / "triplets", columns=COLUMNS), 7))
    # Six rows share each score: the lower id goes first, and classes take turns in the order of their names.
    assert selected.column("triplet_id").to_pylist() == ["t02", "t01", "t00", "t05", "t04", "t03", "t08"]
    assert selected.column("score").to_pylist() == [-0.5] * 6 + [-1.0]
    counts = record["counts"]
    assert (counts["triplets"], counts["chosen"]) == (20, 7)
    assert counts["by_class"]["jump"] == {"triplets": 7, "chosen": 2, "lowest": -0.5, "highest": -0.5}
    assert "7 of 20 triplets" in capsys.readouterr().out
    before = (tmp_path / "out" / "run.json").stat().st_mtime_ns
    assert run(recipe(tmp_path)) == record
    assert (tmp_path / "out" / "run.json").stat().st_mtime_ns == before
    with pytest.raises(OtherRunError, match="recipe k = 7 there, 8 here"):
        run(recipe(tmp_path, k=8))


def test_fewer_rows_than_k_and_a_bound(tmp_path: Path) -> None:
    triplets(tmp_path / "triplets")
    record = run(recipe(tmp_path, k=100, score="sum", min_score=-2.0))
    assert record["counts"]["chosen"] == 12


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or folder: .*triplets"):
        run(recipe(tmp_path))
    triplets(tmp_path / "triplets", origin="human", action_logprob=None, action_tokens=None)
    with pytest.raises(InputError, match="t00 has no action_logprob"):
        run(recipe(tmp_path))
    with pytest.raises(InputError, match="k = 0: "):
        SelectRecipe.load(None, ["triplets=x", "out=y", "k=0"])
    assert not (tmp_path / "out").exists()


PAIR_FIELDS = [("source_hash", pa.uint64()), ("target_hash", pa.uint64()), ("outcome", pa.string())]


def columns_of(rows: list[dict[str, Any]], names: list[str]) -> pa.Table:
    """What selection reads of triplets (the images are never opened)."""
    return pa.Table.from_pylist(rows, pa.schema([TRIPLET_SCHEMA.field(name) for name in names]))


def annotation(folder: Path, rows: list[dict[str, Any]], cuts: list[int]) -> Path:
    """The rows in several files of one folder."""
    (folder / "triplets").mkdir(parents=True)
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(columns_of(rows[start:stop], COLUMNS), folder / "triplets" / f"shard-{number:06d}.parquet")
    return folder


def chosen_of(out: Path) -> pa.Table:
    return read_table(out / "selection", SELECTION_SCHEMA).sort_by("order")


def made_rows(count: int, seed: int = 0, classes: int = 9) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    labels = [None, "", "a+b", "Ä/ö", *(f"class {number}" for number in range(classes))]
    return [
        {
            "triplet_id": f"{number:024x}",
            "class_label": labels[int(rng.zipf(1.4)) % len(labels)],
            "action_logprob": -float(rng.integers(1, 30)) / 4,
            "action_tokens": int(rng.integers(1, 5)),
        }
        for number in rng.permutation(count)
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 120), st.integers(1, 150)),
    st.tuples(st.sampled_from(["mean", "sum"]), st.sampled_from([None, -0.5, -3.0])),
    st.tuples(st.lists(st.integers(0, 120), max_size=5), st.integers(1, 40), st.integers(1, 30)),
)
def test_any_files_give_the_selection_of_one_table(
    tmp_path: Path,
    seed: int,
    counts: tuple[int, int],
    wanted: tuple[str, float | None],
    sizes: tuple[list[int], int, int],
) -> None:
    count, k = counts
    position = tmp_path / uuid.uuid4().hex
    rows = made_rows(count, seed)
    cuts, rows_per_part, batch_rows = sizes
    annotation(position / "a", rows, cuts)
    settings_ = {"k": k, "score": wanted[0], "min_score": wanted[1], "rows_per_part": rows_per_part}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.select.reading, "BATCH_ROWS", batch_rows)
        patch.setattr(jobs.select.spills, "SPILL_ROWS", batch_rows)
        patch.setattr(jobs.select.files, "GROUP_FILES", 2)
        run(SelectRecipe(triplets=str(position / "a"), out=str(position / "out"), **settings_))
    expected = select_top_k(columns_of(rows, COLUMNS), k, *wanted)
    assert chosen_of(position / "out").equals(expected)
    assert sorted(path.name for path in (position / "out").iterdir()) == ["README.md", "run.json", "selection"]


@pytest.mark.slow
def test_tasks_on_ray_write_the_same_files(tmp_path: Path, ray_session: None) -> None:
    rows = made_rows(3000)
    annotation(tmp_path / "a", rows, list(range(0, 3000, 250)))
    pairs(tmp_path / "a", [row | {"source_hash": n % 50, "target_hash": n % 40} for n, row in enumerate(rows)])
    for more in ({}, {"deduplicate": "exact"}):
        outs = [tmp_path / f"{where}{len(more)}" for where in ("here", "ray")]
        for out in outs:
            run(
                SelectRecipe(
                    triplets=str(tmp_path / "a"), out=str(out), k=1200, rows_per_part=100, run_on=out.name[:-1], **more
                )
            )
        files = [sorted((out / "selection").iterdir()) for out in outs]
        assert len(files[0]) > 1 and [file.name for file in files[0]] == [file.name for file in files[1]]
        for here, there in zip(*files, strict=True):
            assert pq.read_table(here).equals(pq.read_table(there))
    annotation(tmp_path / "twice", [*rows, rows[7] | {"action_logprob": -0.01}], [1000, 2000])
    bad = SelectRecipe(
        triplets=str(tmp_path / "twice"), out=str(tmp_path / "o"), k=3001, rows_per_part=100, run_on="ray"
    )
    with pytest.raises(InputError, match=f"triplet {rows[7]['triplet_id']} occurs twice"):
        run(bad)
    assert not (tmp_path / "o").exists()


def test_several_selections_of_one_annotation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_rows(400)
    source = annotation(tmp_path / "a", rows, [100, 150])
    common = {"triplets": str(source / "triplets")}
    run(SelectRecipe(**common, out=str(tmp_path / "one"), k=30))
    run(SelectRecipe(**common, out=str(tmp_path / "two"), k=100, score="sum", min_score=-4.0))
    record = run(SelectRecipe(**common, out=str(tmp_path / "three"), k=12, classes=["class 1", "a+b", ""]))
    assert chosen_of(tmp_path / "one").equals(select_top_k(columns_of(rows, COLUMNS), 30))
    assert chosen_of(tmp_path / "two").equals(select_top_k(columns_of(rows, COLUMNS), 100, "sum", -4.0))
    some = [row for row in rows if (row["class_label"] or "") in ("class 1", "a+b", "")]
    assert chosen_of(tmp_path / "three").equals(select_top_k(columns_of(some, COLUMNS), 12))
    assert record["counts"]["triplets"] == len(some) and set(record["counts"]["by_class"]) == {"class 1", "a+b", ""}
    capsys.readouterr()
    assert run(SelectRecipe(**common, out=str(tmp_path / "x"), k=30), dry_run=True) == {}
    counted = {label: actual["chosen"] for label, actual in run_counts(tmp_path / "one").items()}
    message = capsys.readouterr().out
    assert all(f"  {label or '(no class)':<24} {count:>7,} of" in message for label, count in counted.items())
    with pytest.raises(InputError, match="classes names 'nowhere', which no triplet in"):
        run(SelectRecipe(**common, out=str(tmp_path / "x"), k=1, classes=["nowhere"]))
    assert not (tmp_path / "x").exists()


def run_counts(out: Path) -> dict[str, Any]:
    return read_run(out)["counts"]["by_class"]  # type: ignore[index]


def pairs(folder: Path, rows: list[dict[str, Any]], filtered: list[dict[str, Any]] | None = None) -> None:
    """The annotation's table of pairs, in two files."""
    remaining = [{"outcome": "ok"} | row for row in rows] + [{"outcome": "filtered"} | row for row in filtered or []]
    schema = pa.schema([*(TRIPLET_SCHEMA.field(name) for name in COLUMNS), *PAIR_FIELDS])
    (folder / "pairs").mkdir(exist_ok=True)
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(remaining[part::2], schema), folder / "pairs" / f"shard-{part:06d}.parquet")


@pytest.mark.parametrize("rows_per_part", [7, 1000])
def test_equal_pictures_are_chosen_once(tmp_path: Path, rows_per_part: int) -> None:
    rng = np.random.default_rng(3)
    rows = made_rows(300, seed=5)
    hashed = [
        row | {"source_hash": 2**64 - int(rng.integers(1, 9)), "target_hash": int(rng.integers(9))} for row in rows
    ]
    annotation(tmp_path / "a", rows, [50, 200])
    pairs(tmp_path / "a", hashed, [hashed[0] | {"triplet_id": "f" * 24, "action_logprob": 0.0}])
    best: dict[tuple[int, int], dict[str, Any]] = {}
    for row in sorted(hashed, key=lambda row: (-row["action_logprob"] / row["action_tokens"], row["triplet_id"])):
        best.setdefault((row["source_hash"], row["target_hash"]), row)
    recipe_ = SelectRecipe(
        triplets=str(tmp_path / "a"), out=str(tmp_path / "out"), k=40, deduplicate="exact", rows_per_part=rows_per_part
    )
    record = run(recipe_)
    assert chosen_of(tmp_path / "out").equals(select_top_k(columns_of(list(best.values()), COLUMNS), 40))
    assert record["counts"]["repeats"] == 300 - len(best) and record["counts"]["triplets"] == 300


def test_deduplicate_needs_pairs_with_hashes(tmp_path: Path) -> None:
    rows = made_rows(20)
    annotation(tmp_path / "a", rows, [])
    recipe_ = SelectRecipe(triplets=str(tmp_path / "a"), out=str(tmp_path / "out"), k=4, deduplicate="exact")
    with pytest.raises(InputError, match=r"no such folder of Parquet files: .*pairs"):
        run(recipe_)
    pairs(tmp_path / "a", [row | {"source_hash": 1, "target_hash": None} for row in rows])
    with pytest.raises(InputError, match="pairs without perceptual hashes; deduplicate needs"):
        run(recipe_)
    pairs(tmp_path / "a", [row | {"source_hash": 1, "target_hash": 2} for row in rows[1:]])
    with pytest.raises(InputError, match="holds 19 pairs that became triplets, expected 20"):
        run(recipe_)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows_per_part", [1, 1000])
def test_an_id_chosen_twice_is_refused(tmp_path: Path, rows_per_part: int) -> None:
    rows = made_rows(60)
    # Another class and another score: the two rows meet in no part.
    rows.append(rows[5] | {"class_label": "class 3", "action_logprob": -0.01})
    annotation(tmp_path / "a", rows, [30])
    with pytest.raises(InputError, match=f"triplet {rows[5]['triplet_id']} occurs twice"):
        run(SelectRecipe(triplets=str(tmp_path / "a"), out=str(tmp_path / "out"), k=61, rows_per_part=rows_per_part))
    assert not (tmp_path / "out").exists()


def test_a_killed_run_leaves_nothing_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made_rows(100)
    annotation(tmp_path / "a", rows, [])
    recipe_ = SelectRecipe(triplets=str(tmp_path / "a"), out=str(tmp_path / "out"), k=50, rows_per_part=10)
    choose = jobs.select.files.choose

    def broken(rows: pa.Table, plan: Any, part: int) -> pa.Table:
        if part == 2:
            raise OSError(28, "No space left on device")
        return choose(rows, plan, part)

    with monkeypatch.context() as patch:
        patch.setattr(jobs.select.files, "choose", broken)
        with pytest.raises(OSError, match="No space left"):
            run(recipe_)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "run.unfinished.json", "selection"]
    (tmp_path / "out" / "selection" / "part-00099.parquet").write_bytes(b"of a killed run")
    (tmp_path / "out" / ".work" / "candidates").mkdir(parents=True)
    run(recipe_)
    assert chosen_of(tmp_path / "out").equals(select_top_k(columns_of(rows, COLUMNS), 50))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "run.json", "selection"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    source = annotation(tmp_path / "a", made_rows(50), [20])
    bad = source / "triplets" / "shard-000001.parquet"
    complete = bad.read_bytes()
    recipe_ = SelectRecipe(triplets=str(source), out=str(tmp_path / "out"), k=4)
    bad.write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=rf"{bad} is not a readable Parquet file"):
        run(recipe_)
    pq.write_table(pq.read_table(source / "triplets" / "shard-000000.parquet").drop_columns("action_tokens"), bad)
    with pytest.raises(InputError, match=rf"{bad} lacks the column 'action_tokens'; columns found: triplet_id"):
        run(recipe_)
    pq.write_table(pa.table({name: pa.array([name]) for name in COLUMNS}), bad)
    with pytest.raises(InputError, match=rf"{bad} has action_logprob as string, expected double"):
        run(recipe_)
    bad.write_bytes(complete[:4] + bytes(range(200)) * 2 + complete[404:])
    with pytest.raises(InputError, match=rf"{bad} is damaged"):
        run(recipe_)
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_rows(900, classes=60)
    annotation(tmp_path / "a", rows, [])
    given = ["select", f"triplets={tmp_path / 'a'}", f"out={tmp_path / 'out'}", "k=300", 'classes=["class 1", ""]']
    monkeypatch.setattr(sys, "argv", given)
    assert main() == 0
    assert "triplets → " in capsys.readouterr().out
    assert main() == 0
    assert "already complete" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*given[:2], f"out={tmp_path / 'all'}", "k=300"])
    assert main() == 0
    assert "more classes" in capsys.readouterr().out


def coded(rows: list[dict[str, Any]], seed: int = 1) -> list[dict[str, Any]]:
    """The rows with image codes: in one of three nothing changes, in one of eleven there are none."""
    rng = np.random.default_rng(seed)
    with_codes = []
    for number, row in enumerate(rows):
        source = rng.integers(0, 2**16, 4).tolist()
        target = source[: number % 3] + [(code + 1) % 2**16 for code in source[number % 3 :]] if number % 3 else source
        codes = {"source_codes": source, "target_codes": target}
        with_codes.append(row | (codes if number % 11 else dict.fromkeys(codes)))
    return with_codes


def write_coded(folder: Path, rows: list[dict[str, Any]], cut: int = 70) -> None:
    names = [*COLUMNS, "source_codes", "target_codes"]
    (folder / "triplets").mkdir(parents=True)
    for part in (rows[:cut], rows[cut:]):
        pq.write_table(columns_of(part, names), folder / "triplets" / f"shard-{len(part):06d}.parquet")


@pytest.mark.parametrize(("bound", "rows_per_part"), [(0, 1000), (1, 1000), (1, 7), (3, 1000)])
def test_rows_whose_codes_do_not_change_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, rows_per_part: int
) -> None:
    monkeypatch.setattr(jobs.select.reading, "CODE_BATCH_ROWS", 32)
    rows = coded(made_rows(200, seed=2))
    write_coded(tmp_path / "a", rows)

    def changes(row: dict[str, Any]) -> bool:
        codes = row["source_codes"], row["target_codes"]
        return codes[0] is None or sum(a != b for a, b in zip(*codes, strict=True)) >= bound

    rest = [row for row in rows if changes(row)]
    assert len(rest) < len(rows) or not bound
    more = {} if bound == 1 else {"min_changed_codes": bound}  # 1 is the default
    recipe_ = SelectRecipe(
        triplets=str(tmp_path / "a"), out=str(tmp_path / "out"), k=90, rows_per_part=rows_per_part, **more
    )
    counts = run(recipe_)["counts"]
    assert chosen_of(tmp_path / "out").equals(select_top_k(columns_of(rest, COLUMNS), 90))
    assert counts["triplets"] == 200
    without = sum(row["source_codes"] is None for row in rows)
    looked_at = {"unchanged_codes": 200 - len(rest), "without_codes": without}
    assert {name: counts[name] for name in looked_at if name in counts} == (looked_at if bound else {})


def test_a_pair_that_does_not_change_displaces_no_equal_one(tmp_path: Path) -> None:
    codes = {"source_codes": [1, 2], "target_codes": [1, 2]}
    row = {"class_label": "a", "action_tokens": 1, "source_hash": 1, "target_hash": 2}
    rows = [
        row | codes | {"triplet_id": "copy", "action_logprob": -0.1},
        row | codes | {"triplet_id": "edit", "action_logprob": -0.5, "target_codes": [1, 3]},
        row | codes | {"triplet_id": "worse", "action_logprob": -0.9, "target_codes": [1, 3]},
    ]
    write_coded(tmp_path / "a", rows, cut=2)
    pairs(tmp_path / "a", [{name: one[name] for name in row | {"triplet_id": "", "action_logprob": 0}} for one in rows])
    position = {"triplets": str(tmp_path / "a"), "out": str(tmp_path / "out")}
    counts = run(SelectRecipe(**position, k=3, deduplicate="exact"))["counts"]
    assert chosen_of(tmp_path / "out").column("triplet_id").to_pylist() == ["edit"]
    assert (counts["unchanged_codes"], counts["repeats"], counts["triplets"]) == (1, 1, 3)


def test_an_annotation_that_filtered_itself_is_believed(tmp_path: Path) -> None:
    """Its codes are not read (here they would contradict), unless more is asked for than it left out."""
    rows = coded(made_rows(200, seed=2))
    write_coded(tmp_path / "a", rows)
    record = {"stage": "annotate", "recipe": {"filters": {"unchanged": "on", "min_changed_codes": 1}}}
    write_json(tmp_path / "a" / "run.json", record)
    position = {"triplets": str(tmp_path / "a" / "triplets"), "out": str(tmp_path / "out")}
    counts = run(SelectRecipe(**position, k=200))["counts"]
    assert (counts["chosen"], counts["unchanged_codes"]) == (200, 0)
    counts = run(SelectRecipe(**position | {"out": str(tmp_path / "more")}, k=200, min_changed_codes=2))["counts"]
    same = sum(row["source_codes"] is not None and row["source_codes"] == row["target_codes"] for row in rows)
    assert (counts["chosen"], counts["unchanged_codes"]) == (200 - same, same)


def test_codes_of_another_type_are_named(tmp_path: Path) -> None:
    row = {"triplet_id": "a", "class_label": "a", "action_logprob": -1.0, "action_tokens": 1}
    (tmp_path / "triplets").mkdir()
    table = pa.Table.from_pylist([row | {"source_codes": "1 2", "target_codes": "1 2"}])
    pq.write_table(table, tmp_path / "triplets" / "a.parquet")
    with pytest.raises(InputError, match="source_codes as string, expected list<"):
        run(recipe(tmp_path))
