"""Figure 6: cells are the images of the sets, and a missing one says so."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.bench_files import TASKS, bench_pair, write_bench
from wm.errors import InputError
from wm.evaluation.bench_rows import read_bench_rows
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.drawing import save_png
from wm.evaluation.paper.figures.image_grid import build_image_grid, choose_triplets, read_image_grid
from wm.evaluation.paper.options import FigureOptions
from wm.evaluation.paper.sources import Sources, read_sources
from wm.evaluation.predictions import prediction_row, predictions_folder, write_predictions
from wm.runs import write_json


def image_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write_set(folder: Path, bench: Path, system: str, rows: list[dict[str, object]]) -> str:
    """Write a prediction set of one system; ``rows``: arguments of :func:`prediction_row`, the image as a number."""
    made = [
        prediction_row(image_of(row.pop("image")), system=system, view="square", origin="wm", **row) for row in rows
    ]
    write_predictions(made, predictions_folder(folder) / "part-0.parquet")
    write_json(folder / "run.json", {"stage": "collect", "recipe": {"triplets": str(bench)}, "counts": {}})
    return str(folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[Path, list[str], list[str]]:
    """Bench, folders of two sets, ids of the bench."""
    root = tmp_path_factory.mktemp("grid")
    bench = write_bench(root)
    ids = [row.triplet_id for row in read_bench_rows(bench)]
    sampled = [
        {"triplet_id": ids[0], "image": 5, "run": 1, "decoding": "sampled"},
        {"triplet_id": ids[0], "image": 3, "run": 0, "candidates": [1], "decoding": "sampled"},
        {"triplet_id": ids[0], "image": 4, "run": 0, "candidates": [2, 0], "decoding": "sampled"},
        {"triplet_id": ids[0], "image": 6, "run": 0, "decoding": "greedy"},
        {"triplet_id": ids[4], "image": 7, "decoding": "greedy"},
    ]
    others = [{"triplet_id": triplet_id, "image": 10 + number} for number, triplet_id in enumerate(ids)]
    folders = [write_set(root / "ours", bench, "my-fdm", sampled), write_set(root / "got", bench, "GoT", others)]
    return bench, folders, ids


def test_cells_are_the_sets_images(results):
    _, folders, ids = results
    options = FigureOptions(triplets=[ids[0], ids[3]])
    sources = read_sources(folders, names={"C-FDM": "my-fdm"}, options=options)
    data = read_image_grid(sources)
    assert data.columns == ("Input", "Output", "GoT", "C-FDM") and not data.is_toy
    assert [(row.subset, row.action) for row in data.rows] == [
        ("MagicBrush", "do 0"),
        ("Something", "do 3"),
        ("Kubric", "do 4"),
    ]
    for row, number, ours in zip(data.rows, (0, 3, 4), (4, None, 7), strict=True):
        source, target, got, own = (cell.pixels for cell in row.cells)
        pair = bench_pair(number)
        assert np.array_equal(source, pair[0]) and np.array_equal(target, pair[1])
        assert np.array_equal(got, image_of(10 + number))
        assert (own is None) if ours is None else np.array_equal(own, image_of(ours))
    figure = build_image_grid(data)
    drawn = [axes.get_images() for axes in figure.axes]
    assert len(drawn) == 12 and np.array_equal(drawn[0][0].get_array(), bench_pair(0)[0])
    assert drawn[7] == [] and [text.get_text() for text in figure.axes[7].texts] == ["no prediction"]
    assert save_png(figure) == save_png(build_image_grid(read_image_grid(sources)))


def test_the_choice_is_by_seed_and_subset():
    subsets = {f"{number}": TASKS[number % 5] for number in range(50)}
    chosen = choose_triplets(subsets, [], 0)
    assert [subsets[key] for key in chosen] == ["magicbrush", "something", "kubric"]
    assert chosen == choose_triplets(dict(reversed(subsets.items())), [], 0) != choose_triplets(subsets, [], 1)
    # One subset's wish leaves the others' choice as it is.
    wanted = choose_triplets(subsets, ["2", "7"], 0)
    assert wanted == [chosen[0], "2", "7", chosen[2]]
    with pytest.raises(InputError, match="triplets: 'x' is not of the bench of 50 triplets"):
        choose_triplets(subsets, ["x"], 0)


def test_without_a_set_it_is_absent():
    assert isinstance(read_image_grid(Sources(())), Absent)
