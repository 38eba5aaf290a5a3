"""What a stage writes opens in the tools people use, with the right values and the right pixels."""

import io
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.shared import ray_session as shared_ray_session
from tests.helpers.doc_pages import PAGES, tab_python
from tests.helpers.triplet_files import LABELS, picture, triplet, write_output
from wm.cards import license_lines, license_sentence
from wm.datasets.card import write_dataset_card
from wm.errors import InputError
from wm.tables import read_table

ROWS = [triplet(number) for number in range(10)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output(tmp_path_factory.mktemp("outputs") / "annotated", ROWS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's caches in the test's folder, and no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    assert datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()


def check_row(row: dict[str, Any], number: int) -> None:
    """A row of load_dataset: pictures decoded, all else as written."""
    for side, seed in (("source", 2 * number), ("target", 2 * number + 1)):
        image = row[f"{side}_image"]
        assert isinstance(image, Image.Image) and image.mode == "RGB"
        np.testing.assert_array_equal(np.array(image), picture(seed))
    for name, value in ROWS[number].items():
        if not name.endswith("_image"):
            assert row[name] == value, name


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("how", ["files", "folder"])
def test_load_dataset_decodes_images(out: Path, streaming: bool, how: str) -> None:
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    place = {"data_files": str(out / "triplets/*.parquet")} if how == "files" else {"data_dir": str(out / "triplets")}
    table = load_dataset("parquet", **place, split="train", streaming=streaming)
    assert table.features["source_image"] == table.features["target_image"] == ImageFeature()
    for number, row in enumerate(table):
        check_row(row, number)
    assert number == 9


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_on_the_folder_itself_finds_each_table(out: Path, streaming: bool) -> None:
    from datasets import get_dataset_config_names, load_dataset

    path = write_dataset_card(out, title="Ten\ntriplets", license="MIT", split="train", rows={"triplets": 10})
    assert path == out / "README.md" and not list(out.glob(".*.tmp"))
    text = path.read_text()
    assert "# Ten triplets\n" in text and "| `triplets` | 10 |" in text and "| `rejects` | 3 |" in text
    assert "license: mit" in text and "clips" not in text and str(out.parent) not in text
    assert get_dataset_config_names(str(out)) == ["triplets", "rejects"]
    table = load_dataset(str(out), split="train", streaming=streaming)
    for number, row in enumerate(table):
        check_row(row, number)
    assert number == 9
    rejects = list(load_dataset(str(out), "rejects", split="train", streaming=streaming))
    assert [row["outcome"] for row in rejects] == ["filtered", "failed", "failed"]
    assert rejects[0]["detail"] == "zu lang: 小さい" and rejects[0]["uri"] == "v 0.mp4"


def test_a_card_names_split_and_licence_or_refuses_a_folder(out: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData, RepoCard

    copy = write_output(tmp_path / "b", ROWS[:2], num_rejects=0)
    odd = 'CC: "by", #1\nZoë'
    clips = {"uri": ["a.mp4"], "motion": pa.array([[0.5, 1.5]], pa.list_(pa.float32())), "fallback": [None]}
    pairs = {"triplet_id": ["x"], "source_hash": pa.array([2**64 - 1], pa.uint64())}
    for name, columns in (("clips", clips), ("pairs", pairs)):
        (copy / name).mkdir()
        pq.write_table(pa.table(columns), copy / name / "shard-000000.parquet")
    card = RepoCard.load(write_dataset_card(copy, title="x", license=odd, split="validation"))
    assert card.data.license == "other" and card.data.license_name == odd
    configs = MetadataConfigs.from_dataset_card_data(DatasetCardData(**card.data.to_dict()))
    assert list(configs) == ["triplets", "clips", "pairs"]
    assert len(load_dataset(str(copy), split="validation")) == 2
    [clip] = load_dataset(str(copy), "clips", split="validation")
    assert clip == {"uri": "a.mp4", "motion": [0.5, 1.5], "fallback": None}
    [pair] = load_dataset(str(copy), "pairs", split="validation")
    assert pair["source_hash"] == 2**64 - 1
    write_dataset_card(copy, title="x", split="not a split!")
    assert "split: train" in (copy / "README.md").read_text()
    assert license_lines(["", " "]) == [] and license_lines(["CC0-1.0", ""]) == ["license: cc0-1.0"]
    assert license_lines(["mit", "apache-2.0"])[0] == "license: other"
    many = {f"CC {number}": number + 1 for number in range(25)} | {"": 2}
    assert license_lines(list(many)) == ["license: other", 'license_name: "25 licences, one in each row"']
    sentence = license_sentence(many)
    assert sentence.startswith("Licences: CC 24 (25), CC 23 (24),") and sentence.endswith(", CC 5 (6), and 6 more.")
    assert license_sentence({"a\nb": 1, "": 2000}) == "Licences: not given (2,000), a b (1)."
    with pytest.raises(InputError, match="none of the tables triplets, predictions, actions, answers, rejects"):
        write_dataset_card(tmp_path, title="x")
    (copy / "triplets" / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"bad\.parquet is not a readable Parquet file"):
        write_dataset_card(copy, title="x")


def test_duckdb_counts_joins_and_reads_image_bytes(out: Path) -> None:
    files = str(out / "triplets/*.parquet")
    counted = duckdb.sql(f"SELECT class_label, count(*) FROM '{files}' GROUP BY 1 ORDER BY 1").fetchall()
    assert counted == sorted((label, [3, 3, 2, 2][number]) for number, label in enumerate(LABELS))
    data, codes, change = duckdb.sql(
        f"SELECT source_image.bytes, source_codes, change FROM '{files}' WHERE triplet_id = '{4:024x}'"
    ).fetchall()[0]
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), picture(8))
    assert (codes, change) == ([1, 65535], [0.5, 1.0])
    mean = duckdb.sql(f"SELECT avg(action_logprob), count(motion) FROM '{files}' WHERE origin = 'idm'").fetchall()
    assert mean == [(-5.5, 5)]
    rejects = duckdb.sql(f"SELECT outcome, count(*) FROM '{out}/rejects/*.parquet' GROUP BY 1 ORDER BY 1").fetchall()
    assert rejects == [("failed", 2), ("filtered", 1)]


def test_pandas_reads_values_lists_and_nulls(out: Path) -> None:
    table = pd.concat([pd.read_parquet(file) for file in sorted((out / "triplets").glob("shard-*.parquet"))])
    whole = pd.read_parquet(out / "triplets").reset_index(drop=True)
    pd.testing.assert_frame_equal(table.reset_index(drop=True), whole)
    assert list(whole.triplet_id) == [row["triplet_id"] for row in ROWS]
    assert list(whole.action) == [row["action"] for row in ROWS]
    for number, row in whole.iterrows():
        np.testing.assert_array_equal(
            np.array(Image.open(io.BytesIO(row.target_image["bytes"]))), picture(2 * number + 1)
        )
    assert list(whole.source_codes[2]) == [1, 65535] and whole.source_codes[2].dtype == np.uint16
    assert whole.source_codes[3] is None and whole.source_image[0]["path"] is None
    assert np.isnan(whole.action_logprob[1]) and whole.action_logprob[2] == -3.5
    assert len(pd.read_parquet(out / "rejects")) == 3


@pytest.mark.slow
def test_ray_data_reads_it_in_parallel(out: Path, ray_session: None) -> None:
    import ray

    shared_ray_session.quiet_data()
    found = ray.data.read_parquet(str(out / "triplets")).take_all()
    by_id = {row["triplet_id"]: row for row in found}
    assert len(by_id) == len(found) == 10
    for number, row in enumerate(ROWS):
        read = by_id[row["triplet_id"]]
        np.testing.assert_array_equal(
            np.array(Image.open(io.BytesIO(read["source_image"]["bytes"]))), picture(2 * number)
        )
        assert read["action"] == row["action"] and read["license"] == row["license"]
        assert (list(read["source_codes"]) if read["source_codes"] is not None else None) == row["source_codes"]
    # As the documentation says it.
    names: dict[str, Any] = {}
    exec(tab_python((PAGES / "data-format.md").read_text(), "Ray Data").replace("FOLDER", str(out)), names)
    assert [sorted(row) for row in names["rows"]] == [["action", "source_codes", "target_codes"]] * 2


def test_the_features_in_the_files_speak_of_every_column(out: Path) -> None:
    """``datasets`` ignores the metadata of a file that lacks a column in it, and pictures become bytes."""
    schema = read_table(out / "triplets").schema
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
