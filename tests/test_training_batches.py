"""Triplet tables to training tensors: what stands where, and what is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_data import random_rows, write_triplets

from wm.errors import InputError
from wm.models import flatten, load_model
from wm.training import Rows, Source, TokenSet, Weights, read_sources, recognition_weights, tensorise
from wm.training.order import SampleOrder


def read(base: Path, *sources: Source, seed: int = 0) -> list[Rows]:
    vlm = load_model(base)
    return read_sources(sources, codec_id=vlm.codec_id, tokens_per_image=vlm.tokens_per_image, seed=seed)


def tokens_of(base: Path, folder: Path, task: str, weights: Weights) -> TokenSet:
    return tensorise(read(base, Source(path=str(folder))), load_model(base), task, weights)


@pytest.mark.parametrize("task", ["idm", "fdm"])
def test_every_row_is_its_layout_with_its_weights(tiny_base: Path, tmp_path: Path, task: str) -> None:
    rows = random_rows(tiny_base, 7)
    vlm = load_model(tiny_base)
    tokens = tokens_of(tiny_base, write_triplets(rows, tmp_path), task, Weights(floor=0.5))
    assert list(tokens.names) == sorted(row["triplet_id"] for row in rows)
    by_name = {row["triplet_id"]: row for row in rows}
    for number, name in enumerate(tokens.names):
        row = by_name[name]
        segments = vlm.layout(task, source=row["source_codes"], action=row["action"], target=row["target_codes"])
        ids, length = flatten(segments), int(tokens.length_R[number])
        assert tokens.ids_RT[number].tolist() == ids + [vlm.pad_id] * (tokens.ids_RT.shape[1] - len(ids))
        assert length == len(ids)
        learned = [segment.is_completion for segment in segments for _ in segment.ids]
        assert tokens.is_completion_RT[number, :length].tolist() == learned
        assert not tokens.is_completion_RT[number, length:].any()
        weights = tokens.weight_RT[number][tokens.is_completion_RT[number]]
        if task == "fdm":
            expected = recognition_weights(torch.tensor([row["change"]]), Weights(floor=0.5))[0]
            torch.testing.assert_close(weights, expected)
        else:
            assert weights.tolist() == [1.0] * len(weights)


def test_a_batch_is_its_rows_cut_to_the_longest(tiny_base: Path, tmp_path: Path) -> None:
    tokens = tokens_of(tiny_base, write_triplets(random_rows(tiny_base, 6), tmp_path), "idm", Weights())
    shortest = int(tokens.length_R.argmin())
    rows = SampleOrder([6], [1.0], 0).batch(0, 6)
    ids_BT, is_completion_BT, weight_BT = tokens.batch(rows)
    assert ids_BT.dtype == torch.int64 and ids_BT.tolist() == tokens.ids_RT[rows].tolist()
    assert tokens.num_completion_tokens(rows) == int(is_completion_BT.sum())
    one = rows[rows == shortest]
    assert tokens.batch(one)[0].shape == (1, int(tokens.length_R.min()))
    assert weight_BT.shape == ids_BT.shape


def test_sources_keep_their_order_limit_and_selection(tiny_base: Path, tmp_path: Path) -> None:
    first, second = random_rows(tiny_base, 10, seed=1), random_rows(tiny_base, 10, seed=2)
    write_triplets(first, tmp_path / "a" / "triplets")
    write_triplets(second, tmp_path / "b")
    chosen = [row["triplet_id"] for row in second[:6]]
    pq.write_table(pa.table({"triplet_id": chosen}), tmp_path / "selection.parquet")
    sources = (
        Source(path=str(tmp_path / "a"), limit=4),
        Source(path=str(tmp_path / "b"), selection=str(tmp_path / "selection.parquet")),
    )
    parts = read(tiny_base, *sources)
    ids = [part.table.column("triplet_id").to_pylist() for part in parts]
    assert len(ids[0]) == 4 and set(ids[0]) < {row["triplet_id"] for row in first}
    assert ids[1] == sorted(chosen)
    again = read(tiny_base, *sources)[0].table.column("triplet_id").to_pylist()
    other = read(tiny_base, *sources, seed=1)[0].table.column("triplet_id").to_pylist()
    assert again == ids[0] != other


def test_rows_that_are_not_ok_are_skipped_and_counted(tiny_base: Path, tmp_path: Path) -> None:
    rows = random_rows(tiny_base, 3) + random_rows(tiny_base, 2, seed=1, status="dropped")
    (part,) = read(tiny_base, Source(path=str(write_triplets(rows, tmp_path))))
    assert (part.table.num_rows, part.num_skipped) == (3, 2)


def test_codes_of_another_codec_are_refused_with_both_names(tiny_base: Path, tmp_path: Path) -> None:
    folder = write_triplets(random_rows(tiny_base, 2, codec="codec-other"), tmp_path)
    with pytest.raises(InputError, match=r"codec-other.*jobs\.ingest") as error:
        read(tiny_base, Source(path=str(folder)))
    assert load_model(tiny_base).codec_id in str(error.value)


def test_rows_without_codes_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    bare = dict.fromkeys(("source_codes", "target_codes", "change", "codec"))
    folder = write_triplets(random_rows(tiny_base, 2) + random_rows(tiny_base, 1, seed=1, **bare), tmp_path)
    with pytest.raises(InputError, match=r"1 of 3 triplets have no image codes.*jobs\.ingest"):
        read(tiny_base, Source(path=str(folder)))


def test_bad_tables_and_selections_are_named(tiny_base: Path, tmp_path: Path) -> None:
    folder = write_triplets(random_rows(tiny_base, 2), tmp_path / "t")
    pq.write_table(pa.table({"triplet_id": ["nobody"]}), tmp_path / "unknown.parquet")
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "columns.parquet")
    for source, message in (
        (Source(path=str(tmp_path / "nowhere")), "nowhere"),
        (Source(path=str(folder), selection=str(tmp_path / "unknown.parquet")), "1 triplets that .* nobody"),
        (
            Source(path=str(folder), selection=str(tmp_path / "columns.parquet")),
            "lacks the column 'triplet_id'",
        ),
        (Source(path=str(tmp_path / "columns.parquet")), "columns.parquet lacks the column"),
    ):
        with pytest.raises(InputError, match=message):
            read(tiny_base, source)
    write_triplets(random_rows(tiny_base, 2, status="dropped"), tmp_path / "empty")
    with pytest.raises(InputError, match="no row to train on"):
        read(tiny_base, Source(path=str(tmp_path / "empty")))
