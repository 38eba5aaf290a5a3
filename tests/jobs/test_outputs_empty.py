"""Every outcome of a stage opens by name: triplets or none, rejects or none, files without rows among others."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import jobs.annotate.job
import jobs.ingest.job
from jobs.annotate.annotator import Annotator
from jobs.annotate.decoder import Decoder
from jobs.annotate.shards import shard_table
from jobs.export import run as run_export
from jobs.ingest.job import Ingestor, IngestRecipe
from jobs.relabel import RelabelRecipe
from jobs.relabel import run as run_relabel
from jobs.select.job import run as run_select
from jobs.select.recipe import SelectRecipe
from tests.helpers.annotate_data import recipe as annotate_recipe
from tests.helpers.annotate_data import write_videos
from tests.helpers.export_data import recipe as export_recipe
from tests.helpers.output_tables import check_stage, check_table
from tests.helpers.triplet_files import picture, triplet, write_output
from wm.datasets.card import split_names, write_dataset_card
from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.images import encode_png
from wm.records import STAGE_TABLES, TRIPLET_SCHEMA
from wm.tables import fill_empty_tables, write_table


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's caches in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()


@pytest.mark.parametrize("rejects", [0, 2])
@pytest.mark.parametrize("triplets", [0, 5])
def test_both_tables_open_after_every_outcome(tmp_path: Path, triplets: int, rejects: int) -> None:
    out = tmp_path / "out"
    (out / "triplets").mkdir(parents=True)
    write_output(out, [triplet(number) for number in range(triplets)], 3, rejects)
    fill_empty_tables(out, STAGE_TABLES, "part-00000.parquet")
    card = write_dataset_card(out, title="x").read_text()
    check_stage(out, triplets, rejects)
    assert f"| `triplets` | {triplets} |" in card and f"| `rejects` | {rejects} |" in card
    assert ("Without rows: `triplets`" in card) == (not triplets)


def test_files_without_rows_stand_among_others(tmp_path: Path) -> None:
    """A shard of which every row was rejected: its empty row group stopped ``datasets``."""
    for number, rows in enumerate([[], [triplet(0), triplet(1)], [], [triplet(2)], []]):
        write_table(rows, tmp_path / "triplets" / f"part-{number:05d}.parquet", TRIPLET_SCHEMA)
    fill_empty_tables(tmp_path, STAGE_TABLES, "part-00000.parquet")
    write_dataset_card(tmp_path, title="x")
    check_stage(tmp_path, 3, 0)
    for number, row in enumerate(datasets.load_dataset(str(tmp_path), split="train")):
        np.testing.assert_array_equal(np.array(row["source_image"]), picture(2 * number))


@pytest.mark.slow
def test_ray_data_reads_tables_without_rows(tmp_path: Path, ray_session: None) -> None:
    import ray

    fill_empty_tables(tmp_path, STAGE_TABLES, "part-00000.parquet")
    table = ray.data.read_parquet(str(tmp_path / "triplets"))
    assert table.count() == 0 and table.schema().names == TRIPLET_SCHEMA.names


@pytest.mark.parametrize(("folder", "triplets", "rejects"), [("odd", 0, 4), ("wave", 1, 0), ("", 1, 4)])
def test_annotations_of_every_outcome_open(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, *, folder: str, triplets: int, rejects: int
) -> None:
    """``triplets``: at least so many; the number is the random model's."""

    def annotate(recipe: Any, stage: Any, listing: Any, pending: dict[int, tuple[int, int]]) -> dict[str, int]:
        decoder = Decoder(recipe.clip_settings(), recipe.download_settings(), recipe.dataset)
        annotator = Annotator(recipe.annotator_settings())
        if not rejects:
            annotator.idm.role.model.detokenize = lambda ids: "push it"
        for number, rows in pending.items():
            annotator(decoder(shard_table(listing, number, *rows)))
        decoder.reader.close()
        return {"block_bytes": 0, "moved_bytes": 0}

    monkeypatch.setattr(jobs.annotate.job, "_annotate", annotate)
    videos = write_videos(tmp_path / "videos") / folder
    counts = jobs.annotate.job.run(annotate_recipe(videos, tiny_base, tmp_path / "out"))["counts"]
    assert counts["triplets"] >= triplets and counts["filtered"] + counts["failed"] >= rejects
    check_stage(tmp_path / "out", counts["triplets"], counts["filtered"] + counts["failed"])
    for name in ("clips", "pairs"):
        table = datasets.load_dataset(str(tmp_path / "out"), name, split="train", streaming=True)
        assert len(list(table)) == counts[{"clips": "videos", "pairs": "pairs"}[name]]


@pytest.mark.parametrize(("good", "bad"), [(3, 0), (0, 3), (3, 2)])
def test_ingested_sets_of_every_outcome_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int, bad: int
) -> None:
    def ingest(recipe: IngestRecipe, stage: Any, num_rows: int) -> None:
        for number, start in enumerate(range(0, num_rows, recipe.shard_rows)):
            stop = min(num_rows, start + recipe.shard_rows)
            Ingestor(recipe)({"number": number, "start": start, "stop": stop})

    monkeypatch.setattr(jobs.ingest.job, "_ingest", ingest)
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").write_bytes(encode_png(picture(0)))
    rows = [{"instruction": "x", "input": "a.png", "output": "a.png"}] * good
    rows += [{"instruction": "x", "input": "a.png", "output": "gone.png"}] * bad
    (root / "rows.json").write_text(json.dumps(rows))
    jobs.ingest.job.run(IngestRecipe(root=str(root), file="rows.json", out=str(tmp_path / "out"), shard_rows=2))
    check_stage(tmp_path / "out", good, bad)


@pytest.mark.parametrize(("labels", "triplets", "rejects"), [("truth", 0, 3), ("shuffled", 3, 0)])
def test_relabelled_sets_of_every_outcome_open(tmp_path: Path, labels: Any, triplets: int, rejects: int) -> None:
    """Between two equal images of the tabletop there is no action."""
    from wm.nano.world.scenes import Camera, random_state, render

    rng = np.random.default_rng(0)
    image = {"bytes": encode_png(render(random_state(rng), Camera(), rng)), "path": None}
    write_output(tmp_path, [triplet(number, source_image=image, target_image=image) for number in range(3)])
    chosen = [
        {"triplet_id": f"{number:024x}", "class_label": "", "score": 0.0, "rank_in_class": 0, "order": number}
        for number in range(3)
    ]
    write_table(chosen, tmp_path / "selection" / "part-00000.parquet", SELECTION_SCHEMA)
    values = {"triplets": str(tmp_path / "triplets"), "selection": str(tmp_path / "selection"), "labels": labels}
    record = run_relabel(RelabelRecipe(**values, out=str(tmp_path / "out")))
    assert (record["counts"]["triplets"], record["counts"]["rejects"]) == (triplets, rejects)
    check_stage(tmp_path / "out", triplets, rejects)


@pytest.mark.parametrize(("bound", "chosen"), [(None, 4), (0.0, 0)])
def test_a_selection_opens_as_a_table_of_ids(tmp_path: Path, bound: float | None, chosen: int) -> None:
    write_output(tmp_path / "in", [triplet(2 * number) for number in range(5)])
    recipe = SelectRecipe(triplets=str(tmp_path / "in"), out=str(tmp_path / "out"), k=4, min_score=bound)
    assert run_select(recipe)["counts"]["chosen"] == chosen
    check_table(tmp_path / "out", None, SELECTION_SCHEMA.names, chosen)
    if chosen:
        rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
        assert rows["triplet_id"] == pd.read_parquet(tmp_path / "out" / "selection")["triplet_id"].tolist()


def test_an_aurora_export_opens_as_its_rows(tmp_path: Path) -> None:
    """Without a card the image files were taken for the rows; odd numbers have nulls in whole columns."""
    splits = ["train", "test", "über/al", "über al"]
    rows = [triplet(2 * number + (number % 4 == 1), split=splits[number % 4]) for number in range(9)]
    write_output(tmp_path, rows)
    run_export(export_recipe(tmp_path, tmp_path / "out", format="aurora"))
    for split, name in zip(splits, ("train", "test", "über_al", "über_al_2"), strict=True):
        expected = [row for row in rows if row["split"] == split]
        check_table(
            tmp_path / "out",
            None,
            list(datasets.load_dataset(str(tmp_path / "out"))[name].features),
            len(expected),
            name,
        )
        table = datasets.load_dataset(str(tmp_path / "out"), split=name)
        for found, row in zip(table, expected, strict=True):
            assert (found["instruction"], found["task"]) == (row["action"], row["class_label"])
            assert found["action_logprob"] == row["action_logprob"] and found["video_uri"] == row["video_uri"]
            assert (tmp_path / "out" / found["input"]).read_bytes() == row["source_image"]["bytes"]


def test_splits_get_names_that_a_card_may_use() -> None:
    names = split_names(["train", "a.b", "a b", "a/b", "a_b", "!", "!!"])
    assert names == ["train", "a.b", "a_b", "a_b_2", "a_b_3", "train_2", "train_3"]
    for name in names:
        datasets.NamedSplit(name)
