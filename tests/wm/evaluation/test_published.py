"""The paper's printed numbers: those that follow from others do, and those that do not are named as contradictions."""

from statistics import mean

import pytest

from wm.evaluation.published import PublishedTable, list_contradictions, load_published, parse_row

TABLES = load_published()
SUBSETS = {"table-2": ["MagicBrush", "AG", "Something", "WhatsUp", "Kubric"], "table-3": ["MB", "AG", "ST", "WU", "KU"]}
SUBSETS |= {"table-2-v1": SUBSETS["table-2"], "table-4": SUBSETS["table-3"], "table-5": SUBSETS["table-3"]}
AVERAGES = {"table-2": "Avg.", "table-2-v1": "Avg.", "table-3": "Avg.", "table-4": "All", "table-5": "All"}


def value(table: PublishedTable, row: str, column: str) -> float:
    cell = table.cell(row, column)
    assert cell is not None
    return cell.value


@pytest.mark.parametrize("key", AVERAGES)
def test_averages_are_the_means_of_their_rows(key: str) -> None:
    table = TABLES[key]
    wrong = {}
    for column in table.columns:
        rows = mean(value(table, row, column) for row in SUBSETS[key])
        printed = value(table, AVERAGES[key], column)
        if abs(rows - printed) > 0.0101:
            wrong[column] = (printed, round(rows, 3))
    assert wrong == ({"L-FT": (4.04, 4.006)} if key == "table-2" else {})


def test_rows_of_votes_sum_to_zero() -> None:
    table = TABLES["table-5"]
    for row in table.rows:
        assert abs(sum(value(table, row, column) for column in table.columns)) <= 0.0201, row


@pytest.mark.parametrize("key", ["figure-2-forward", "figure-2-inverse"])
def test_shares_of_the_probe_are_of_248_pairs(key: str) -> None:
    cells = [cell for row in TABLES[key].rows.values() for cell in row.values()]
    assert len(cells) == 40
    for cell in cells:
        assert f"{100 * round(cell.value * 2.48) / 248:.1f}" == f"{cell.value:.1f}"
    # Many of them would not be of 250.
    assert sum(f"{100 * round(cell.value * 2.5) / 250:.1f}" == f"{cell.value:.1f}" for cell in cells) < 30


def test_legends_of_scatters_add_up_to_all_pairs() -> None:
    odd = []
    for key in ("figure-7-action", "figure-7-observation", "figure-8"):
        for row, cells in TABLES[key].rows.items():
            assert cells["Ref"].value + cells["Neg"].value == pytest.approx(100)
            if f"{100 * round(cells['Ref'].value * 2.48) / 248:.1f}" != f"{cells['Ref'].value:.1f}":
                odd.append((key, row, cells["Ref"].value))
    assert odd == [("figure-8", "Random act.", 73.2)]
    assert any("73.2" in text for text in list_contradictions("figure-8"))


def test_tables_that_repeat_each_other_agree() -> None:
    acl, v1, metrics = TABLES["table-2"], TABLES["table-2-v1"], TABLES["table-6"]
    for row in SUBSETS["table-2"]:
        for column in ("PixInst", "GoT", "SE", "C-ZS", "C-FT", "C-FDM"):
            assert value(acl, row, column) == pytest.approx(value(v1, row, column), abs=0.0051)
        for column in v1.columns:
            assert value(v1, row, column) == value(metrics, f"{row} GPT-4o", column)
    for column in v1.columns:
        assert value(v1, "Avg.", column) == value(metrics, "All GPT-4o", column)
    # The best of three is never worse than one of them.
    for row in v1.rows:
        assert value(v1, row, "C-FDM +Best-of-3") >= value(v1, row, "C-FDM")
    for column in ("BS", "R-1", "R-L", "BLEU"):
        assert value(TABLES["table-1"], "Chameleon IDM", column) == value(TABLES["table-1-v1"], "Chameleon IDM", column)


def test_known_contradictions_are_named_with_their_tables() -> None:
    table, criteria, ablations = TABLES["table-2"], TABLES["table-3"], TABLES["table-4"]
    # A mean of minima above the mean of one side.
    assert value(criteria, "MB", "Weighted ES") < value(table, "MagicBrush", "C-FDM")
    assert value(criteria, "AG", "Weighted ES") < value(table, "AG", "C-FDM")
    assert value(ablations, "All", "C-FDM") != value(table, "Avg.", "C-FDM")
    videos = TABLES["table-7"]
    hours = {row: cells["#Samples"].value * cells["Avg. length, s"].value / 3600 for row, cells in videos.rows.items()}
    assert {row: round(value, 1) for row, value in hours.items()} == {"MIT": 16.6, "UCF-101": 22.1, "Kinetics700": 67.5}
    triplets = {row: cells["#Samples"].value * cells["#Avg. APV"].value for row, cells in videos.rows.items()}
    assert {row: round(value / 1000, 1) for row, value in triplets.items()} == {
        "MIT": 20.6, "UCF-101": 21.9, "Kinetics700": 46.1,
    }  # fmt: skip
    for key, words in (("table-2", "4.04"), ("table-3", "3.73"), ("table-4", "3.43"), ("table-7", "67.5 h")):
        assert any(words in text for text in list_contradictions(key)), key
    assert list_contradictions("table-1") == ()


def test_bold_is_the_largest_of_a_row() -> None:
    table = TABLES["table-2"]
    for name, row in table.rows.items():
        bold = [column for column, cell in row.items() if cell.is_bold]
        assert bold == [max(row, key=lambda column: row[column].value)], name


def test_a_row_keeps_digits_marks_and_bold() -> None:
    cells = parse_row("*0.29*† - 19658 -0.03", ["a", "b", "c", "d"])
    assert (cells["a"].value, cells["a"].digits, cells["a"].is_bold, cells["a"].mark) == (0.29, 2, True, "†")
    assert "b" not in cells and cells["c"].digits == 0 and cells["d"].value == -0.03
    with pytest.raises(ValueError, match="3 cells for 2 columns"):
        parse_row("1 2 3", ["a", "b"])
    with pytest.raises(ValueError, match="expected a number"):
        parse_row("x", ["a"])
