"""What result folders hold, and what is refused: each in one line that names the folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.bench_files import write_bench
from tests.helpers.paper_results import IDS, judged, scored, write_collected, write_judging, write_scoring, write_stage
from wm.errors import InputError
from wm.evaluation.paper.sources import Sources, read_sources
from wm.evaluation.predictions import prediction_row, write_predictions

GREY = np.full((16, 24, 3), 128, np.uint8)


def read(*folders: Path, **more: object) -> Sources:
    return read_sources([str(folder) for folder in folders], **more)  # type: ignore[arg-type]


def test_results_are_found_by_stage_and_system(results: dict[str, Path], tmp_path: Path) -> None:
    collected = write_collected(tmp_path / "got", results["bench"], "GoT", GREY)
    sources = read(results["judge"], results["score"], collected, names={"SE": "mine"})
    assert [source.stage for source in sources.folders] == ["judge", "score", "collect"]
    assert sources.subset_order == ["magicbrush", "something", "kubric"] and list(sources.subsets) == IDS
    assert sources.label("SE") == "mine" and sources.title("mine") == "SE" and sources.label("GoT") == "GoT"
    assert sources.list_systems() == ["GoT", "Copy", "C-FT", "C-FDM", "C-FDM w/o LW", "mine"]
    assert sources.predicted_in == {"GoT": str(collected)} and not sources.is_toy
    assert {score.subset for score in sources.judgements} == {"magicbrush", "something", "kubric"}
    # Images of an editor that this package runs are a set like any other.
    edited = write_collected(tmp_path / "edited", results["bench"], "PixInst", GREY)
    write_stage(edited, "edit", {"triplets": str(results["bench"])})
    assert read(edited).predicted_in == {"PixInst": str(edited)}
    by_split = read(results["judge"], subset="split")
    assert set(by_split.subsets.values()) == {"test"} and {score.subset for score in by_split.judgements} == {"test"}


def test_no_result_is_no_bench() -> None:
    sources = read()
    assert sources.folders == () and sources.rows == () and sources.judgements == [] and not sources.is_toy


def test_copy_may_be_in_several_folders_and_is_taken_once(results: dict[str, Path], tmp_path: Path) -> None:
    rows = judged("Copy", [5] * 5) + judged("L-FT", [1] * 5)
    both = read(results["judge"], write_judging(tmp_path / "liquid", results["bench"], rows))
    copies = [score.final for score in both.judgements if score.system == "Copy"]
    assert copies == [0] * 5 and "L-FT" in both.judged_systems


def test_the_toy_world_is_recognised(results: dict[str, Path], tmp_path: Path) -> None:
    assert read(write_judging(tmp_path / "nano", results["bench"], judged("x", [1] * 5), "nano:oracle")).is_toy
    clips = write_stage(tmp_path / "clips", "annotate", {"dataset": "tabletop-videos"})
    assert read(clips).is_toy
    # A selection names no data set: its annotation does. A shipped model is the toy world's whatever it read.
    assert read(write_stage(tmp_path / "chosen", "select", {"triplets": f"{clips}/triplets"})).is_toy
    assert read(write_stage(tmp_path / "own", "annotate", {"dataset": "videos", "idm": "nano:idm"})).is_toy
    real = write_stage(tmp_path / "real", "annotate", {"dataset": "ucf101", "idm": "runs/c-idm"})
    assert not read(write_stage(tmp_path / "of-real", "select", {"triplets": str(real)})).is_toy


def test_bad_folders_are_named(results: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.unfinished.json").write_text("{}")
    again = write_judging(tmp_path / "again", results["bench"], judged("C-FT", [1] * 5))
    other = write_judging(tmp_path / "other", results["bench"], judged("x", [1] * 5), "another-judge")
    for folders, message in (
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path / "empty"], "is no result of wm: expected a folder with run.json"),
        ([unfinished], "is not complete"),
        (
            [results["judge"], again],
            "again both hold a system named 'C-FT', with other figures .15 and 5 rows.: give one of them, or judge",
        ),
        ([results["judge"], other], "judged by gpt-4o, .*other by another-judge: a table is of one judge"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read(*folders)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"names: SE = 'what'; systems of the results: .*C-FT"):
        read(results["judge"], names={"SE": "what"})


def test_a_name_hides_no_other_system(results: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="names: C-FT = 'mine', but the results hold a system named 'C-FT' too"):
        read(results["judge"], names={"C-FT": "mine"})
    # Exchanged names hide none.
    assert read(results["judge"], names={"C-FT": "C-FDM", "C-FDM": "C-FT"}).title("C-FT") == "C-FDM"


def test_results_of_two_benches_are_refused(results: dict[str, Path], tmp_path: Path) -> None:
    bench = write_bench(tmp_path / "b")
    # The same triplets in another folder are the same bench.
    read(results["judge"], write_judging(tmp_path / "same", bench, judged("x", [1] * 5)))
    other = write_bench(tmp_path / "c")
    (other / "triplets" / "part-00001.parquet").unlink()
    folder = write_scoring(tmp_path / "score", other, scored("x", [1] * 5)[:3])
    with pytest.raises(InputError, match=r"score is of another bench: .* share 3 triplets of 3 and 5"):
        read(results["judge"], folder)
    # Or a bench that is gone, and the results name triplets of another.
    rows = judged("x", [1] * 5)
    rows[0]["triplet_id"] = "f" * 24
    gone = write_judging(tmp_path / "gone", tmp_path / "nothing", rows)
    with pytest.raises(InputError, match=r"the bench .*nothing of .*gone is not there; give triplets=FOLDER"):
        read(gone)
    with pytest.raises(InputError, match="gone is of another bench: 1 of its triplets, 'ffff"):
        read(gone, triplets=str(bench))


def write_evaluation(folder: Path, bench: Path, share: float, *, extra: str = "", **recipe: object) -> Path:
    """An evaluation of the base, and of one more inverse model."""
    write_stage(folder, "evaluate", {"triplets": str(bench), **recipe})
    rows = [
        {"role": "idm", "label": "C-ZS", "negative": "copy", "pairs": 5, "metrics": {"share": {"mean": share}}},
        *({"role": "idm", "label": extra, "negative": "copy", "pairs": 5, "metrics": {}} for _ in range(bool(extra))),
    ]
    (folder / "tables.json").write_text(json.dumps({"items": 5, "fdm": [], "idm": [], "probe": rows}))
    return folder


def test_a_base_of_two_evaluations_is_taken_once(results: dict[str, Path], tmp_path: Path) -> None:
    """Its images, its actions, its rows: equal up to rounding, by whichever of the two."""
    bench = results["bench"]
    first = write_evaluation(tmp_path / "a", bench, 0.4, extra="C-IDM")
    second = write_evaluation(tmp_path / "b", bench, 0.4 + 1e-9, extra="L-IDM")
    for folder in (first, second):
        rows = [prediction_row(GREY, triplet_id=key, system="C-ZS", view="square", origin="wm") for key in IDS]
        write_predictions(rows, folder / "predictions" / "part-00000.parquet")
    judgings = [write_judging(tmp_path / name, bench, judged("C-ZS", [1, None, 2, 3, 4])) for name in ("j", "k")]
    sources = read(first, second, *judgings)
    assert [[row["label"] for row in tables["probe"]] for _, tables in sources.tables] == [["C-ZS", "C-IDM"], ["L-IDM"]]
    assert len(sources.predictions) == len(sources.judgements) == 5
    assert sources.list_systems() == ["C-ZS", "C-IDM", "L-IDM"]
    assert sources.shared.describe() == [
        f"C-ZS is in {one} and in {other} with equal figures, and is shown once."
        for one, other in ((first, second), judgings)
    ]
    # In another order another folder is named first, and the figures are the same.
    assert read(second, first).shared.describe()[0].startswith(f"C-ZS is in {second} and in {first}")


def test_a_base_with_other_figures_is_refused_with_a_way_out(results: dict[str, Path], tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", results["bench"], 0.4)
    second = write_evaluation(tmp_path / "b", results["bench"], 0.6)
    with pytest.raises(InputError) as error:
        read(first, second)
    assert str(error.value) == (
        f"{first} and {second} both hold a system named 'C-ZS', with other figures (of probe idm copy: share 0.4 and "
        "0.6): give one of them, or evaluate one of them with zero_shot=false, or under another zero_shot_label"
    )
    # Images that differ, though no table says so.
    second = write_evaluation(tmp_path / "c", results["bench"], 0.4)
    for folder, image in ((first, GREY), (second, GREY + 1)):
        rows = [prediction_row(image, triplet_id=IDS[0], system="C-ZS", view="square", origin="wm")]
        write_predictions(rows, folder / "predictions" / "part-00000.parquet")
    with pytest.raises(InputError, match=r"with other figures \(of [0-9a-f]{24} .*zero_shot=false"):
        read(first, second)


def test_two_models_of_one_label_are_refused(results: dict[str, Path], tmp_path: Path) -> None:
    folders = []
    for name, items in (("a", 5), ("b", 4)):
        folder = write_stage(tmp_path / name, "evaluate", {"triplets": str(results["bench"])})
        row = {"label": "C-IDM", "metrics": {}}
        (folder / "tables.json").write_text(json.dumps({"items": items, "fdm": [], "idm": [row], "probe": []}))
        folders.append(folder)
    with pytest.raises(
        InputError, match=r"named 'C-IDM', with other figures \(of triplets: 5 and 4\).*another label \(models"
    ):
        read(*folders)
    (folders[0] / "tables.json").unlink()
    with pytest.raises(InputError, match=r"tables\.json is missing, though its stage is complete"):
        read(folders[0])
