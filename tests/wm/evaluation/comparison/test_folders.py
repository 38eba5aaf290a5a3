"""What a text names, and which results are below a folder."""

import pytest

from wm.errors import InputError
from wm.evaluation.comparison.folders import Choice, SystemName, find_results, parse_system, split_choice
from wm.runs import write_json


def test_a_text_is_a_folder_a_label_or_both(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    assert parse_system(str(folder), []) == SystemName((str(folder),), "")
    assert parse_system(f"{folder}:C-FDM", []) == SystemName((str(folder),), "C-FDM")
    assert parse_system(f"{folder}:w/o: LW", []) == SystemName((str(folder),), "w/o: LW")
    assert parse_system("C-FDM", ["r"]) == SystemName(("r",), "C-FDM")
    assert parse_system("w/o LW", ["r"]).label == "w/o LW"
    assert parse_system(":C-FDM", []).label == "C-FDM"
    with pytest.raises(InputError, match="no such folder: 'runs/none'"):
        parse_system("runs/none:C-FDM", [])
    with pytest.raises(InputError, match="no such folder: 'runs/none'"):
        parse_system("runs/none", [])


def test_a_choice_is_behind_the_label():
    default = Choice(4)
    assert split_choice("A@8", ["A"], default) == ("A", Choice(8)) and str(Choice(8)) == "K = 8"
    assert split_choice("A@greedy", ["A"], default) == ("A", Choice(is_greedy=True))
    assert split_choice("me@home", ["me@home"], default) == ("me@home", default)
    for wrong in ("A@0", "A@", "A@all"):
        with pytest.raises(InputError, match="expected LABEL@greedy, or LABEL@K"):
            split_choice(wrong, ["A"], default)


def test_results_below_a_folder(tmp_path):
    stages = {"judge": "judge", "deep/er/score": "score", "train": "train", "superseded/judge-1": "judge"}
    for name, stage in (stages | {"evaluate": "evaluate"}).items():
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "run.json", {"stage": stage})
    # What was superseded is none, and neither is what has no values of items.
    names = [str(result.folder.relative_to(tmp_path)) for result in find_results([str(tmp_path)])]
    assert names == ["deep/er/score", "evaluate", "judge"]
    assert [result.stage for result in find_results([str(tmp_path / "evaluate")])] == ["evaluate"]
    assert len(find_results([str(tmp_path), str(tmp_path / "judge")])) == 3
    with pytest.raises(InputError, match="holds no result of single items"):
        find_results([str(tmp_path / "train")])
