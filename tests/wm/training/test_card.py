"""A trained model's card: rows by origin as they were trained on, figures of the right step, failures."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.training_data import random_rows, write_triplets
from wm.models import load_model, save_model
from wm.models.card import DataSource, write_card
from wm.runs import write_json
from wm.training import TrainRecipe
from wm.training.card import describe_training
from wm.training.data.provenance import count_sources
from wm.training.data.sources import Source


@pytest.fixture
def data(tiny_base: Path, tmp_path: Path) -> Path:
    """Twelve rows of two data sets and licences, one of which is not usable."""
    rows = random_rows(tiny_base, 12, seed=1)
    for number, row in enumerate(rows):
        row |= {"dataset": "me/a" if number < 8 else "b", "license": "MIT" if number % 2 else None, "origin": "human"}
    rows[0]["status"] = "failed"
    return write_triplets(rows, tmp_path / "data")


def record_of(base: Path, data: Path, **summary: Any) -> dict[str, Any]:
    """The record of a run."""
    values = {"task": "fdm", "base": str(base), "triplets": str(data), "out": "x", "max_steps": 6}
    recipe = TrainRecipe.parse(values | {"eval": {"triplets": str(data), "every_steps": 3, "limit": 5}}, "test")
    counts = {"triplets": 11, "skipped": 1}
    return {"stage": "train", "recipe": recipe.model_dump(mode="json"), "counts": counts, "summary": summary}


LINE = {"step": 6, "nats": 2.5, "preference": 0.75, "sensitivity.shuffled": -0.01, "copies": 0.6}


def test_rows_are_counted_as_they_were_trained_on(data: Path) -> None:
    assert count_sources([Source(path=str(data))], seed=0) == [
        DataSource("me/a", "MIT", "human", 4),
        DataSource("me/a", "", "human", 3),
        DataSource("b", "", "human", 2),
        DataSource("b", "MIT", "human", 2),
    ]
    limited = count_sources([Source(path=str(data), limit=5), Source(path=str(data))], seed=0)
    assert sum(source.rows for source in limited) == 5 + 11


def test_figures_and_failures_are_those_of_the_model(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    save_model(load_model(tiny_base), folder, task="fdm", kind="full", recipe_digest="d")
    flags = {"has_collapsed": True, "ignores_action": True}
    facts = describe_training(folder, record_of(tiny_base, data, evaluation=LINE | flags))
    figures = {figure.name.split(":")[0] + figure.origin: (figure.value, figure.count) for figure in facts.figures}
    assert figures["negative log-likelihood of the truth, nats a tokentraining, held out, step 6"] == ("2.5000", 5)
    assert len(facts.figures) == 4 and facts.title == "run/model"
    assert facts.failures == [
        "It has collapsed into copying: 60% of the held-out sources come back unchanged.",
        "It ignores its action: the true image is no likelier under the true action than under another triplet's "
        "(-0.0100 nats an image token).",
        "Low coverage: it was trained on 11 triplets only.",
        "Low coverage: 1 of 12 rows of its data were left out.",
    ]
    assert facts.unknown == ["The licence of the rows whose licence is not given."]
    # The best model is of another step, whose line is in the run's folder.
    best = {"step": 3, "nats": 2.25}
    (folder.parent / "gates.jsonl").write_text(
        '{"step": 3, "nats": 2.25, "preference": 1.0}\n{"step": 6, "nats": 2.5}\n'
    )
    facts = describe_training(folder, record_of(tiny_base, data, evaluation=LINE | flags, best=best))
    assert [figure.value for figure in facts.figures] == ["2.2500", "1.0000"]
    assert not any("action" in text or "copying" in text for text in facts.failures)
    # The folder beside it has the model of the last step, whoever writes its card.
    folder.rename(last := folder.with_name("last"))
    facts = describe_training(last, record_of(tiny_base, data, evaluation=LINE | flags, best=best))
    assert facts.figures[0].value == "2.5000" and "copying" in facts.failures[0]
    last.rename(folder)
    facts = describe_training(folder, record_of(tiny_base, data, evaluation=LINE | flags, best=best))
    text = write_card(folder, facts).read_text()
    assert 'datasets:\n- "me/a"\n' in text and "| me/a | human | 4 | MIT |" in text and str(tmp_path) not in text


def test_tables_that_have_gone_are_not_guessed(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(load_model(tiny_base), folder, task="fdm", kind="full")
    record = record_of(tiny_base, data)
    for file in data.glob("**/*.parquet"):
        file.unlink()
    facts = describe_training(folder, record)
    assert facts.sources is None and facts.data_note == (
        "Trained on data; what rows and licences these had is not known: they cannot be read any more."
    )
    assert facts.figures == [] and len(facts.unknown) == 2
    write_json(tmp_path / "run.json", record)
