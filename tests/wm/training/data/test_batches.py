"""Triplet tables to batches: what stands where in every family, which rows are used, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.models_families import write_emu3, write_janus, write_liquid
from tests.helpers.training_data import random_rows, write_triplets
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.nano.preset import TINY, NanoPreset, write_random_base
from wm.training import RecognitionWeights, Source, TokenSet, open_tokens, recognition_weights
from wm.training.data.order import SampleOrder


def opened(
    base: Path,
    root: Path,
    *sources: Source,
    task: str = "fdm",
    recognition: RecognitionWeights | None = None,
    seed: int = 0,
) -> TokenSet:
    return open_tokens(sources, load_model(base), task, recognition or RecognitionWeights(), root=root, seed=seed)


def ids_of(tokens: TokenSet, source: int) -> list[str]:
    numbers = np.arange(tokens.num_rows)
    return tokens.names(numbers[tokens.source_of(numbers) == source])


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name, write in (("liquid", write_liquid), ("emu3", write_emu3), ("janus", write_janus)):
        (root / name).mkdir()
        write(root / name)
    write_random_base(root / "slots", preset=NanoPreset(**(vars(TINY) | {"action_slot_tokens": 3})))
    return {"chameleon": tiny_base, **{name: root / name for name in ("liquid", "emu3", "janus", "slots")}}


@pytest.mark.parametrize("task", ["idm", "fdm"])
@pytest.mark.parametrize("family", ["chameleon", "slots", "liquid", "emu3", "janus"])
def test_every_row_is_its_layout_with_its_weights(
    families: dict[str, Path], tmp_path: Path, family: str, task: str
) -> None:
    base = families[family]
    rows = random_rows(base, 9)
    vlm = load_model(base)
    folder = write_triplets(rows, tmp_path / "triplets")
    if (family, task) == ("janus", "idm"):
        with pytest.raises(InputError, match="janus cannot serve as an inverse model"):
            opened(base, tmp_path / "tokens", Source(path=str(folder)), task=task)
        return
    # One family with equation 2's raw weights, the others with normalised ones.
    recognition = RecognitionWeights(floor=0.5, normalise=family != "slots")
    tokens = opened(base, tmp_path / "tokens", Source(path=str(folder)), task=task, recognition=recognition)
    assert len(tokens) == 9
    by_name = {row["triplet_id"]: row for row in rows}
    ids_BT, is_completion_BT, weight_BT = tokens.batch(np.arange(9))
    assert (ids_BT.dtype, is_completion_BT.dtype, weight_BT.dtype) == (torch.int64, torch.bool, torch.float32)
    names = tokens.names(np.arange(9))
    assert names == sorted(by_name)
    for number, name in enumerate(names):
        row = by_name[name]
        segments = vlm.layout(task, source=row["source_codes"], action=row["action"], target=row["target_codes"])
        ids = flatten(segments)
        assert ids_BT[number].tolist() == ids + [vlm.pad_id] * (ids_BT.shape[1] - len(ids))
        assert tokens.lengths(np.array([number])).tolist() == [len(ids)]
        learned = [segment.is_completion for segment in segments for _ in segment.ids]
        assert is_completion_BT[number, : len(ids)].tolist() == learned
        assert not is_completion_BT[number, len(ids) :].any()
        assert tokens.num_completion_tokens(np.array([number])) == sum(learned)
        weights = weight_BT[number][is_completion_BT[number]]
        if task == "fdm":
            expected = recognition_weights(torch.tensor([row["change"]]), recognition)[0]
            assert recognition.normalise or torch.equal(expected, 0.5 + 0.5 * torch.tensor(row["change"]))
            assert torch.equal(weights, expected)
        else:
            assert weights.tolist() == [1.0] * len(weights)
        assert (weight_BT[number][~is_completion_BT[number]] == 1).all()


def test_a_batch_has_its_rows_in_the_requested_order(tiny_base: Path, tmp_path: Path) -> None:
    first, second = random_rows(tiny_base, 6, seed=1), random_rows(tiny_base, 6, seed=2)
    sources = [Source(path=str(write_triplets(rows, tmp_path / name))) for name, rows in (("a", first), ("b", second))]
    tokens = opened(tiny_base, tmp_path / "tokens", *sources)
    batch = tokens.batch(np.arange(12))
    for rows in ([11, 0, 5, 6, 0], [7], [3, 2, 1]):
        index, length = np.array(rows), int(tokens.lengths(np.array(rows)).max())
        for result, wanted in zip(tokens.batch(index), batch, strict=True):
            assert torch.equal(result, wanted[index, :length])
        assert tokens.num_completion_tokens(index) == int(batch[1][index].sum())
        names = tokens.names(np.arange(12))
        assert tokens.names(index) == [names[row] for row in rows]
    assert tokens.source_of(np.arange(12)).tolist() == [0] * 6 + [1] * 6
    assert ids_of(tokens, 1) == sorted(row["triplet_id"] for row in second)


def test_rows_are_sorted_into_quantiles_by_their_change(tiny_base: Path, tmp_path: Path) -> None:
    rows = random_rows(tiny_base, 12)
    for number, row in enumerate(rows):
        row["change"] = [float(number)] * 4
    tokens = opened(tiny_base, tmp_path / "tokens", Source(path=str(write_triplets(rows, tmp_path / "t"))))
    numbers = np.arange(12)
    by_name = dict(zip(tokens.names(numbers), tokens.change_quantile_of(numbers).tolist(), strict=True))
    assert [by_name[row["triplet_id"]] for row in rows] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    # np.quantile's own definition, by hand: position (n - 1) q among the sorted
    assert tokens.change_edges.tolist() == [2.75, 5.5, 8.25]


def test_equal_images_weigh_one_and_share_a_quantile(tiny_base: Path, tmp_path: Path) -> None:
    rows = random_rows(tiny_base, 5)
    for row in rows:
        row["change"] = [0.0] * 4
    tokens = opened(tiny_base, tmp_path / "tokens", Source(path=str(write_triplets(rows, tmp_path / "t"))))
    assert (tokens.batch(np.arange(5))[2] == 1).all()
    assert set(tokens.change_quantile_of(np.arange(5)).tolist()) == {0}


def test_one_row_fills_every_batch(tiny_base: Path, tmp_path: Path) -> None:
    folder = write_triplets(random_rows(tiny_base, 1), tmp_path / "t")
    tokens = opened(tiny_base, tmp_path / "tokens", Source(path=str(folder)))
    rows = SampleOrder([1], [1.0], 0).batch(3, 4)
    ids_BT = tokens.batch(rows)[0]
    assert len(ids_BT) == 4 and (ids_BT == ids_BT[0]).all()


def test_sources_keep_their_order_limit_and_selection(tiny_base: Path, tmp_path: Path) -> None:
    first, second = random_rows(tiny_base, 10, seed=1), random_rows(tiny_base, 10, seed=2)
    write_triplets(first, tmp_path / "a" / "triplets")
    write_triplets(second, tmp_path / "b")
    selected = [row["triplet_id"] for row in second[:6]]
    pq.write_table(pa.table({"triplet_id": selected}), tmp_path / "selection.parquet")
    sources = (
        Source(path=str(tmp_path / "a"), limit=4),
        Source(path=str(tmp_path / "b"), selection=str(tmp_path / "selection.parquet")),
    )
    tokens = opened(tiny_base, tmp_path / "tokens", *sources)
    limited = ids_of(tokens, 0)
    # The draw itself, which a run of an earlier version must find again.
    sampled = np.random.default_rng([0, 0]).choice(10, 4, replace=False)
    assert limited == [sorted(row["triplet_id"] for row in first)[position] for position in sorted(sampled)]
    assert ids_of(tokens, 1) == sorted(selected)
    assert ids_of(opened(tiny_base, tmp_path / "other", *sources), 0) == limited
    assert ids_of(opened(tiny_base, tmp_path / "tokens", *sources, seed=1), 0) != limited


def test_many_files_of_small_row_groups_are_one_table(tiny_base: Path, tmp_path: Path) -> None:
    rows = random_rows(tiny_base, 23)
    single = opened(tiny_base, tmp_path / "1", Source(path=str(write_triplets(rows, tmp_path / "whole"))))
    table = pq.read_table(tmp_path / "whole")
    for number in range(4):
        (tmp_path / "parts").mkdir(exist_ok=True)
        pq.write_table(table.slice(6 * number, 6), tmp_path / "parts" / f"{number}.parquet", row_group_size=2)
    parts = opened(tiny_base, tmp_path / "2", Source(path=str(tmp_path / "parts")))
    for one, other in zip(single.batch(np.arange(23)), parts.batch(np.arange(23)), strict=True):
        assert torch.equal(one, other)


def test_rows_that_are_not_ok_are_skipped_and_counted(tiny_base: Path, tmp_path: Path) -> None:
    rows = random_rows(tiny_base, 3) + random_rows(tiny_base, 2, seed=1, status="dropped")
    tokens = opened(tiny_base, tmp_path / "tokens", Source(path=str(write_triplets(rows, tmp_path / "t"))))
    assert (tokens.num_rows, tokens.facts[0].num_skipped) == (3, 2)


def with_actions(rows: list[dict[str, Any]], *actions: str | None) -> list[dict[str, Any]]:
    """The rows, the first of them with these actions, as no writer of ours would let them through."""
    return [{**row, "action": action} for row, action in zip(rows, actions, strict=False)] + rows[len(actions) :]


def test_rows_with_unusable_actions_are_left_out_and_counted(tiny_base: Path, tmp_path: Path) -> None:
    rows = random_rows(tiny_base, 8)
    # 96 positions: 14 tokens stand around an inverse model's action, and the last token of a row is not read.
    fits, too_long = " ".join(["cup"] * (97 - 14)), " ".join(["cup"] * (98 - 14))
    folder = write_triplets(with_actions(rows, "", None, " ", "put <s>", fits, too_long), tmp_path / "t")
    tokens = opened(tiny_base, tmp_path / "tokens", Source(path=str(folder)), task="idm")
    assert tokens.facts[0].left_out == {
        "empty action": 3,
        "reserved token in the action": 1,
        "row too long for the model": 1,
    }
    assert tokens.names(np.arange(3)) == sorted(row["triplet_id"] for row in [rows[4], *rows[6:]])
    assert tokens.batch(np.arange(3))[0].shape[1] == 97
    only = write_triplets(with_actions(rows[:2], "", too_long), tmp_path / "only")
    with pytest.raises(InputError, match=r"no row to train on: the shortest has 98 tokens, the model reads 96"):
        opened(tiny_base, tmp_path / "tokens", Source(path=str(only)), task="idm")
    none = write_triplets(with_actions(rows[:2], "", ""), tmp_path / "none")
    with pytest.raises(InputError, match=r"none has no row to train on \(left out: 2 empty action\)"):
        opened(tiny_base, tmp_path / "tokens", Source(path=str(none)), task="idm")


def test_codes_of_another_codec_are_refused_with_both_names(tiny_base: Path, tmp_path: Path) -> None:
    folder = write_triplets(random_rows(tiny_base, 2, codec="codec-other"), tmp_path / "t")
    with pytest.raises(InputError, match=r"codec-other.*wm ingest") as error:
        opened(tiny_base, tmp_path / "tokens", Source(path=str(folder)))
    assert load_model(tiny_base).codec_id in str(error.value)
    assert not (tmp_path / "tokens").exists()


def test_rows_without_codes_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    bare = dict.fromkeys(("source_codes", "target_codes", "change", "codec"))
    folder = write_triplets(random_rows(tiny_base, 2) + random_rows(tiny_base, 1, seed=1, **bare), tmp_path / "t")
    with pytest.raises(InputError, match=r"1 of 3 triplets have no image codes.*wm ingest and codec"):
        opened(tiny_base, tmp_path / "tokens", Source(path=str(folder)))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("source_codes", [1, 2, 16, 0], r"source_codes of triplet {} holds 16, expected codes below 16"),
        ("change", [0.0, float("nan"), 0.0, 0.0], r"change of triplet {} holds nan, expected numbers from 0 up"),
        ("change", [0.0, 1.0, -1.0, 0.0], r"change of triplet {} holds -1.0, expected numbers from 0 up"),
        ("target_codes", [1, 2, 3], r"target_codes of length 3, expected 4"),
    ],
)
def test_damaged_rows_are_refused_by_name(
    tiny_base: Path, tmp_path: Path, column: str, value: list[float], message: str
) -> None:
    rows = random_rows(tiny_base, 3)
    rows[1][column] = value
    folder = write_triplets(rows, tmp_path / "t")
    with pytest.raises(InputError, match=message.format(rows[1]["triplet_id"])):
        opened(tiny_base, tmp_path / "tokens", Source(path=str(folder)))


def test_bad_tables_and_selections_are_named(tiny_base: Path, tmp_path: Path) -> None:
    folder = write_triplets(random_rows(tiny_base, 2), tmp_path / "t")
    pq.write_table(pa.table({"triplet_id": ["nobody"]}), tmp_path / "unknown.parquet")
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "columns.parquet")
    cut = tmp_path / "cut" / "part.parquet"
    write_triplets(random_rows(tiny_base, 300), cut.parent)
    data = cut.read_bytes()
    (tmp_path / "hole").mkdir()
    (tmp_path / "hole" / "part.parquet").write_bytes(data[:2000] + bytes(3000) + data[5000:])
    cut.write_bytes(data[:-100])
    for source, message in (
        (Source(path=str(tmp_path / "nowhere")), "nowhere"),
        (Source(path=str(folder), selection=str(tmp_path / "unknown.parquet")), "1 triplets that .* nobody"),
        (
            Source(path=str(folder), selection=str(tmp_path / "columns.parquet")),
            "lacks the column 'triplet_id'",
        ),
        (Source(path=str(tmp_path / "columns.parquet")), "columns.parquet lacks the column"),
        (Source(path=str(cut.parent)), r"cut/part.parquet is not a readable Parquet file"),
        (Source(path=str(tmp_path / "hole")), r"hole/part.parquet is damaged"),
    ):
        with pytest.raises(InputError, match=message):
            opened(tiny_base, tmp_path / "tokens", source)
    write_triplets(random_rows(tiny_base, 2, status="dropped"), tmp_path / "dropped")
    with pytest.raises(InputError, match=r"no row to train on \(2 rows, 2 not of status 'ok'\)"):
        opened(tiny_base, tmp_path / "tokens", Source(path=str(tmp_path / "dropped")))
    write_triplets([], tmp_path / "empty")
    with pytest.raises(InputError, match=r"no row to train on \(0 rows"):
        opened(tiny_base, tmp_path / "tokens", Source(path=str(tmp_path / "empty")))
    assert not (tmp_path / "tokens").exists()


def test_a_codebook_above_65536_keeps_its_codes(tiny_base: Path, tmp_path: Path) -> None:
    from wm.training.data.sources import CodecShape, read_chunks, select_rows

    write_triplets(random_rows(tiny_base, 3), tmp_path)
    table = pq.read_table(tmp_path / "part.parquet")
    wide = pa.array([[70_000 + row, 1, 2, 131_071] for row in range(3)], pa.list_(pa.uint32()))
    at = table.schema.get_field_index("source_codes")
    pq.write_table(table.set_column(at, "source_codes", wide), tmp_path / "part.parquet")
    source = Source(path=str(tmp_path))
    codec = CodecShape(table.column("codec")[0].as_py(), 4, 1 << 17)
    (chunk,) = read_chunks(source, select_rows(source, np.random.default_rng(0)), codec)
    assert chunk.source_PN.dtype == np.uint32 and chunk.source_PN.tolist() == wide.to_pylist()
    assert CodecShape("", 4, 32_768).code_type == CodecShape("", 4, 65_536).code_type == np.uint16
