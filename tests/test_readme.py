"""README: short, its Python runs, links lead somewhere. Its commands are held by tests/docs/test_commands.py."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.doc_pages import ROOT, run_python, wm_commands

TEXT = (ROOT / "README.md").read_text()


def test_it_is_read_in_five_minutes() -> None:
    assert len(TEXT.split()) <= 1000
    commands = {words[0] for words in wm_commands(TEXT)}
    assert commands >= {"look", "ingest", "train", "annotate", "select", "serve"}


def test_its_links_lead_to_files_of_the_repository() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    # Pages of recipes are made when the documentation is built.
    missing = [link for link in links if not (ROOT / link).exists()]
    assert len(links) > 10
    assert missing == []


def test_its_files_to_read_exist() -> None:
    names = re.findall(r"^\d\. `([^`]+)`", TEXT, re.MULTILINE)
    assert len(names) == 8
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_its_python_predicts_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    run_python(TEXT, names)
    assert names["model"].propose(names["image"], names["prediction"].image).text == "remove the blue square"
    assert Image.open("next.png").size == Image.open("after-two-steps.png").size == (48, 48)
    assert names["rollout"].actions == ("remove the blue square", "move the red circle to the center")
