"""The tutorial runs, shows what the page shows, and its model does what is asked."""

import json

import numpy as np
import pytest
from PIL import Image

from docs.generate.notebook import TUTORIAL, read_cells, render, run_cells
from tests.helpers.doc_pages import PAGES, run_python
from wm.nano.world import read_states
from wm.nano.world.actions import parse_action


@pytest.fixture(scope="module")
def names():
    return {}


@pytest.fixture(scope="module")
def cells(names):
    return run_cells(read_cells(TUTORIAL), names)


def kinds(cells):
    """What each code cell gives, without its numbers."""
    return [
        [(output["output_type"], sorted(output.get("data", {}))) for output in cell["outputs"]]
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_the_stored_outputs_are_those_of_the_code(cells):
    stored = read_cells(TUTORIAL)
    assert kinds(stored) == kinds(cells)
    assert [cell["source"] for cell in stored] == [cell["source"] for cell in cells]
    # What was printed, the numbers apart, which differ from one processor to another.
    proposals = [cell["outputs"][0]["text"][0] for cell in (stored[8], cells[8])]
    assert proposals == ["move the red circle to the center\n"] * 2


def test_the_best_candidate_shows_what_the_action_says(names):
    prediction = names["prediction"]
    source, target = read_states(np.stack([np.asarray(prediction.source), np.asarray(prediction.image)]))
    assert parse_action(prediction.action).apply(source) == target
    assert prediction.best.logprob == max(candidate.logprob for candidate in prediction.candidates) > -2


def test_the_rollout_ends_where_all_actions_lead(names):
    rollout = names["rollout"]
    source, *states = read_states(np.stack([np.asarray(image) for image in (rollout.source, *rollout.images)]))
    for action, state in zip(rollout.actions, states, strict=True):
        source = parse_action(action).apply(source)
        assert state == source


def test_the_notebook_is_one(cells):
    notebook = json.loads(TUTORIAL.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    num_lines = sum(line.strip() != "" for cell in cells if cell["cell_type"] == "code" for line in cell["source"])
    assert 25 <= num_lines <= 40


def test_a_notebook_is_rendered_with_its_outputs():
    def code(source):
        return {"cell_type": "code", "source": [source], "outputs": [], "metadata": {}}

    cells = run_cells([{"cell_type": "markdown", "source": ["# A"]}, code("x = 2\nprint(x)\nx + 1"), code("x = 3")])
    code_1, code_2 = "```python\nx = 2\nprint(x)\nx + 1\n```", "```python\nx = 3\n```"
    assert render(cells) == f"# A\n\n{code_1}\n\n```text\n2\n```\n\n```text\n3\n```\n\n{code_2}\n"
    with pytest.raises(ZeroDivisionError):
        run_cells([code("1 / 0")])


def test_images_are_shown_as_images():
    class Shown:
        def _repr_png_(self):
            return b"png"

    cell = {"cell_type": "code", "source": ["shown"], "outputs": [], "metadata": {}}
    (result,) = run_cells([cell], {"shown": Shown()})
    assert result["outputs"][0]["data"] == {"image/png": "cG5n", "text/plain": ["<Shown>"]}
    assert 'src="data:image/png;base64,cG5n"' in render([result])


def test_the_python_of_the_quickstart_runs(capsys):
    names: dict[str, object] = {}
    run_python((PAGES / "quickstart.md").read_text(), names)
    assert isinstance(names["prediction"].image, Image.Image)
    assert "nats" in capsys.readouterr().out
