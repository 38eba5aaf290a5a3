"""The data format says every column of every table, and its code reads what a stage writes."""

import re

import pandas as pd
import pytest
from PIL import Image

from docs.generate.tables import MEANINGS, SCHEMAS, list_columns
from tests.helpers.doc_pages import PAGES, run_python, tab_python
from tests.helpers.triplet_files import triplet, write_output
from wm.datasets.card import write_dataset_card
from wm.records import TRIPLET_SCHEMA

TEXT = (PAGES / "data-format.md").read_text()


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_has_its_meaning_and_type(table):
    assert list(MEANINGS[table]) == SCHEMAS[table].names
    assert list_columns(table).count("\n") == len(SCHEMAS[table].names) + 1
    assert f"<!-- generated: {table} -->" in TEXT


def test_types_are_named_as_their_readers_name_them():
    rows = dict(re.findall(r"`(\w+)` \| `([^`]+)`", list_columns("triplets")))
    assert rows["source_codes"] == "list<uint16>" and rows["change"] == "list<float32>"
    assert rows["source_image"] == "struct<bytes, path>" and rows["action_logprob"] == "float64"
    assert list(rows) == TRIPLET_SCHEMA.names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("format") / "annotated"
    write_output(out, [triplet(number) for number in range(6)])
    return out


def tab(name, folder):
    """The code of a tab of the page, on a real folder."""
    return tab_python(TEXT, name).replace("FOLDER", str(folder))


def test_pandas_reads_it(folder, capsys):
    names = {}
    exec(tab("pandas", folder), names)
    assert len(names["triplets"]) == 6 and isinstance(names["triplets"], pd.DataFrame)
    assert names["triplets"]["mean_logprob"].min() == (-1.5 - 4) / 3
    assert "time_out" in capsys.readouterr().out


def test_duckdb_reads_it(folder):
    # The leftover of a killed run must be no file of the table.
    names = {}
    exec(tab("DuckDB", folder), names)
    assert sum(number for _, number, _ in names["rows"]) == 6


def test_this_package_reads_it(folder):
    names = {}
    run_python(TEXT.replace("FOLDER", str(folder)), names)
    assert names["table"].column_names == ["action", "source_image"] and len(names["table"]) == 6
    assert isinstance(names["image"], Image.Image) and names["image"].size == (20, 12)


def test_datasets_reads_it(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    write_dataset_card(str(folder), title="t", rows={"triplets": 6, "rejects": 3})
    names = {}
    exec(tab("datasets", folder), names)
    assert len(names["triplets"]) == 6 and names["image"].size == (20, 12)
    assert names["rejects"]["outcome"].count("failed") == 2
