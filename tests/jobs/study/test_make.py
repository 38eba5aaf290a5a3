"""``wm study make``: what the folder holds, pixel by pixel, after a kill too, and what is refused."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.study import make
from jobs.study.make import StudyMakeRecipe, run
from tests.helpers.study_files import PER_SUBSET, SIDE_PX, SUBSETS, image_of, square, write_bench, write_set
from tests.helpers.triplet_files import picture
from wm.errors import InputError
from wm.study.design import Design, SystemChoice
from wm.study.images import write_images
from wm.study.study import load_study

NUMBERS = range(3 * PER_SUBSET)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A bench and three prediction sets; ``GoT`` lacks triplet 0, ``square-FDM`` has a verifier and 3 candidates."""
    folder = tmp_path_factory.mktemp("data")
    write_bench(folder / "bench")
    write_set(folder / "got", "GoT", [*NUMBERS][1:])
    write_set(folder / "ft", "FT", NUMBERS)
    write_set(folder / "fdm", "square-FDM", NUMBERS, num_candidates=3)
    return folder


def recipe(data: Path, out: Path, **keys: object) -> StudyMakeRecipe:
    sets = [str(data / name) for name in ("got", "ft", "fdm")]
    values = {"predictions": sets, "triplets": str(data / "bench"), "per_subset": 2, "out": str(out)}
    return StudyMakeRecipe.parse(values | keys, "test")


def pixels(out: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO((out / "images" / name).read_bytes())))


def number_of(triplet_id: str) -> int:
    return int(triplet_id, 16)


def test_images_are_those_of_the_systems(data, tmp_path):
    record = run(recipe(data, tmp_path / "s", num_candidates=3))
    study = load_study(tmp_path / "s")
    assert study.systems == ("GoT", "FT", "square-FDM") and study.image_px == 12
    assert Counter(item.subset for item in study.items) == dict.fromkeys(SUBSETS, 2)
    for item in study.items:
        number = number_of(item.triplet_id)
        assert item.action == f'take the "cup" № {number // 2}\u2028🥤' and number > 0
        # The one square prediction crops the source and all others.
        expected = {item.source: picture(2 * number), item.candidates["GoT"]: image_of("GoT", number)}
        expected |= {item.candidates["FT"]: image_of("FT", number)}
        expected |= {item.candidates["square-FDM"]: image_of("square-FDM", number, 2)}
        for name, frame in expected.items():
            image = Image.fromarray(frame)
            if frame.shape[:2] != (12, 12):
                scale = 12 / min(frame.shape[:2])
                size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
                image = image.resize(size, Image.Resampling.LANCZOS)
            left = (image.width - 12) // 2
            np.testing.assert_array_equal(
                pixels(tmp_path / "s", name), np.asarray(image.crop((left, 0, left + 12, 12)))
            )
    assert record["counts"] == {
        "items": 6, "attention_checks": 0, "items_by_subset": dict.fromkeys(("magicbrush", "ag", "kubric"), 2),
        "bench": 12, "complete": 11, "missing": {"GoT": 1, "FT": 0, "square-FDM": 0}, "images": 24, "image_px": 12,
        "enlarged": {}, "items_with_equal_images": 0, "votes_planned": 84,
    }  # fmt: skip
    assert record["missing"] == {"GoT": ["0" * 24]}
    assert [row["num_candidates"] for row in record["systems"]] == [1, 1, 3]


def test_nothing_beside_the_pixels_says_whose_an_image_is(data, tmp_path):
    for name in ("first", "second"):
        run(recipe(data, tmp_path / name))
    first, second = (load_study(tmp_path / name) for name in ("first", "second"))
    names = [
        [name for item in study.items for name in (item.source, *item.candidates.values())] for study in (first, second)
    ]
    assert len({*names[0], *names[1]}) == 2 * 24 and all(len(name) == 28 for name in names[0])
    assert sorted(path.name for path in (tmp_path / "first" / "images").iterdir()) == sorted(names[0])
    files = [path.stat() for path in (tmp_path / "first" / "images").iterdir()]
    assert len({(file.st_size, file.st_mtime) for file in files}) == 1
    # The seed repeats the design, not the names.
    assert [item.triplet_id for item in first.items] == [item.triplet_id for item in second.items]
    assert first.study_id != second.study_id and len(first.secret) == 32 and first.secret != second.secret
    assert first.items[0].item_id != second.items[0].item_id
    other = recipe(data, tmp_path / "other", seed=1)
    run(other)
    assert [item.triplet_id for item in load_study(other.out).items] != [item.triplet_id for item in first.items]


class KilledError(Exception):
    """Stands for a kill: nothing after it runs."""


def test_a_killed_run_resumes_with_its_names(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "s"
    written = []

    def write_some(folder, images):
        written.append(images)
        write_images(folder, dict([*images.items()][:2]) if len(written) == 3 else images)
        if len(written) == 3:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(make, "write_images", write_some)
        with pytest.raises(KilledError):
            run(recipe(data, out))
    assert not (out / "run.json").exists()
    before = load_study(out)
    files = {path.name: path.stat().st_ino for path in (out / "images").iterdir()}
    assert len(files) == 10
    record = run(recipe(data, out))
    assert load_study(out) == before
    after = {path.name: path.stat().st_ino for path in (out / "images").iterdir()}
    assert len(after) == record["counts"]["images"] == 24 and files.items() <= after.items()
    assert run(recipe(data, out)) == record and "already complete" in capsys.readouterr().out


def test_an_unfinished_study_of_other_texts_is_refused(data, tmp_path, monkeypatch):
    def stop(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(make, "write_images", stop)
        with pytest.raises(KilledError):
            run(recipe(data, tmp_path / "s"))
    monkeypatch.setattr(make, "INSTRUCTIONS", "other words of a later version")
    with pytest.raises(InputError, match="unfinished study of other items or texts"):
        run(recipe(data, tmp_path / "s"))


def test_checks_are_intact_damaged_and_noise(data, tmp_path):
    run(recipe(data, tmp_path / "s", attention_checks=3, image_px=SIDE_PX))
    study = load_study(tmp_path / "s")
    items, checks = study.items[:6], study.items[6:]
    assert not any(item.is_check for item in items) and all(item.is_check for item in checks)
    assert not {item.triplet_id for item in items} & {item.triplet_id for item in checks} and len(checks) == 3
    for check in checks:
        assert list(check.candidates) == ["check: intact", "check: damaged 1", "check: noise"]
        assert (check.best, check.worst) == ("check: intact", "check: noise")
        number = number_of(check.triplet_id)
        target = square(picture(2 * number + 1))
        shown = {system: pixels(tmp_path / "s", name) for system, name in check.candidates.items()}
        # The true target, which other items do not show, cropped as they are.
        np.testing.assert_array_equal(shown["check: intact"], target)
        np.testing.assert_array_equal(pixels(tmp_path / "s", check.source), square(picture(2 * number)))
        shares = [(shown[system] != target).any(axis=-1).mean() for system in check.candidates]
        assert shares[0] == 0 and 0.2 < shares[1] < 0.42 and shares[2] > 0.9
    assert "It has 9 pages" in study.consent and "3 images" in study.consent


def test_texts_are_ours_or_the_labs_own(data, tmp_path):
    (tmp_path / "consent.txt").write_text("We agree.\n\nAll of us.\n", encoding="utf-8-sig")
    run(recipe(data, tmp_path / "s", consent=str(tmp_path / "consent.txt"), title="Which cup?", participants=3))
    study = load_study(tmp_path / "s")
    assert (study.consent, study.title, study.num_participants) == ("We agree.\n\nAll of us.", "Which cup?", 3)
    # Rule, priority and the three criteria, each with what is good and what is bad.
    text = study.instructions
    assert text.index("1. Realism.") < text.index("2. Instruction followed.") < text.index("3. Over-editing.")
    assert text.count(" Good: ") == text.count(" Bad: ") == 3 and "as many of the criteria as possible" in text
    (tmp_path / "consent.txt").write_text("Other words.")
    with pytest.raises(InputError, match="another run"):
        run(recipe(data, tmp_path / "s", consent=str(tmp_path / "consent.txt"), title="Which cup?", participants=3))


def test_what_may_give_a_system_away_is_reported(data, tmp_path, capsys):
    write_set(tmp_path / "twin", "FT", NUMBERS)
    twin = recipe(data, tmp_path / "s", image_px=64, systems=["FT", "square-FDM"])
    assert run(twin, dry_run=True) == {} and not (tmp_path / "s").exists()
    text = capsys.readouterr().out
    assert "6 items, 2 systems, 14 participants: 84 votes; images of 64 px" in text
    assert (
        "warning: images smaller than 64 px are enlarged, and blur may say whose they are: 6 of FT, 6 of square-FDM"
        in text
    )
    run(recipe(data, tmp_path / "t", per_subset=1), dry_run=True)
    assert "GoT: run 0, sampling seed 0, first candidate; 1 of 12 triplets have none" in capsys.readouterr().out


def test_equal_images_are_counted(data, tmp_path, capsys):
    source = tmp_path / "copied"
    write_set(source, "FT", NUMBERS)
    rows = make.list_predictions(str(source))
    # The same pixels under another name: a system that copies.
    twins = [{**row, "system": "twin"} for row in rows]
    choices = make.choose_predictions([*rows, *twins], [row["triplet_id"] for row in rows], [], 1)
    bench = make.read_bench_rows(data / "bench")
    design = make.choose_rows(bench, choices, "class_label", 2, 0)
    study = make.assemble_study(design, choices, make._settings(recipe(data, tmp_path / "s"), 6, 2))
    counts = make.count_study(study, len(bench), design, choices)
    make.print_plan(study, counts, design, choices)
    assert counts["items_with_equal_images"] == 6
    assert "warning: in 6 items two systems show the very same image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"per_subset": 4}, r"subset 'kubric' has 3 of 4 \(GoT lacks 1\)$"),
        ({"systems": ["GoT", "FTT"]}, "did you mean 'FT'"),
        ({"systems": ["GoT"]}, "compare 1 systems"),
        ({"attention_checks": 7}, "attention_checks = 7: .* of which the bench has 6"),
        ({"subset": "dataset", "per_subset": 12}, "subset 'vidéos' has 11 of 12"),
        ({"consent": "no-such-file"}, "consent = 'no-such-file': No such file or directory"),
        ({"predictions": ["no-such-folder"]}, "does not exist"),
    ],
)
def test_what_cannot_be_made_is_one_line(data, tmp_path, keys, message):
    with pytest.raises(InputError, match=message) as error:
        run(recipe(data, tmp_path / "s", **keys))
    assert "\n" not in str(error.value) and not (tmp_path / "s").exists()


def test_a_damaged_image_is_named_and_the_rest_resumes(data, tmp_path):
    write_set(tmp_path / "bad", "FT", NUMBERS)
    file = tmp_path / "bad" / "predictions" / "part-00000.parquet"
    table = pq.read_table(file)
    damaged = [{"bytes": b"no image", "path": None}] * table.num_rows
    column = pa.array(damaged, table.schema.field("image").type)
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", column), file)
    sets = [str(data / "got"), str(tmp_path / "bad")]
    with pytest.raises(
        InputError, match=r"prediction of FT for triplet \w+ in .*part-00000\.parquet is no readable image"
    ):
        run(recipe(data, tmp_path / "s", predictions=sets))
    # Not taken for complete, and no name is given twice.
    assert not (tmp_path / "s" / "run.json").exists()
    names = load_study(tmp_path / "s").items[0].candidates
    write_set(tmp_path / "bad", "FT", NUMBERS)
    run(recipe(data, tmp_path / "s", predictions=sets))
    assert load_study(tmp_path / "s").items[0].candidates == names


def test_a_triplet_without_an_action_is_no_page(data, tmp_path):
    # No stage writes such a triplet; a table of somebody else's may hold one.
    row = replace(make.read_bench_rows(data / "bench")[0], action=" ")
    choices = [SystemChoice(system, 0, 0, 1, {}) for system in ("GoT", "FT")]
    with pytest.raises(InputError, match=r"triplet \w+ in .*\.parquet has no action"):
        make.assemble_study(Design([row], [], {}, 1), choices, make._settings(recipe(data, tmp_path / "s"), 1, 2))


@pytest.mark.parametrize("text", [b"", b" \n", b"\xff\xfe", b"x" * 20_001])
def test_a_text_that_nobody_can_read_is_refused(data, tmp_path, text):
    (tmp_path / "consent.txt").write_bytes(text)
    with pytest.raises(InputError, match=r"consent = .*consent\.txt"):
        run(recipe(data, tmp_path / "s", consent=str(tmp_path / "consent.txt")))
