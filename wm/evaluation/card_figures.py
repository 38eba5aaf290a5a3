"""Take a model's figures for its card from the tables of ``wm evaluate``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm.errors import InputError
from wm.evaluation.rows import Figure, Tables
from wm.evaluation.sensitivity_table import describe_figures
from wm.models import model_folder
from wm.models.card import CardFigure
from wm.runs import parse_json, read_run

COLLAPSED_COPIES = 0.5
"""A forward model whose predictions are copies so often has collapsed, as :mod:`wm.evaluation.gates` has it."""
_FORWARD = ("final", "right", "copied", "l1", "unchanged_tokens")
_INVERSE = ("state_equivalent", "exact_match", "rougeL", "bleu")


def read_card_figures(evaluation: str | Path, model: str | Path) -> tuple[list[CardFigure], list[str]]:
    """Read the figures of one model.

    Args:
        evaluation: Output folder of ``wm evaluate``.
        model: One of the models that it evaluated.

    Returns:
        The figures, and what they show of its failures.

    Raises:
        InputError: It is no complete evaluation, or the model is none of its.
    """
    folder = Path(evaluation)
    record = read_run(folder)
    if record is None or record.get("stage") != "evaluate":
        raise InputError(f"evaluation = {str(evaluation)!r}: expected the folder of a complete wm evaluate")
    entry = _find_entry(record, model, str(evaluation))
    tables: Tables = parse_json((folder / "tables.json").read_bytes(), str(folder / "tables.json"))
    by = f"wm evaluate, judge {tables['judge']}, {len(tables['seeds'])} sampling seeds"
    items, label = tables["items"], entry["label"]
    # An inverse model has actions, a forward model images; one role an entry.
    if entry["role"] == "idm":
        rows = [row["metrics"] for row in tables["idm"] if row["label"] == label]
        return _list_metrics(rows[0], _INVERSE, "proposed actions", items, by) if rows else [], []
    # Whether it heeds its action comes first: a model that does not is no world model.
    figures, failures = [], []
    for row in tables["sensitivity"]["rows"] if "sensitivity" in tables else []:
        if row["label"] == label:
            name = f"action sensitivity: true over {row['other']}, {row['unit']}"
            figures.append(CardFigure(name, describe_figures(row), row["pairs"], by))
    failures += [
        text
        for text in (tables["sensitivity"]["ignoring"] if "sensitivity" in tables else [])
        if text.startswith(f"{label} ignores")
    ]
    for forward in tables["fdm"]:
        # The oracle's choice is no prediction that anybody can have.
        if forward["label"] == label and forward["choice"] != "oracle":
            name = (
                "greedy"
                if forward["choice"] == "greedy"
                else f"best of {forward['k']}"
                if forward["k"] > 1
                else "one sample"
            )
            figures += _list_metrics(forward["metrics"], _FORWARD, name, items, by)
            copied = forward["metrics"].get("copied")
            if copied is not None and copied["mean"] >= COLLAPSED_COPIES:
                failures.append(f"It copies its source in {copied['mean']:.0%} of {items:,} predictions ({name}).")
    return figures, failures


def _find_entry(record: Mapping[str, Any], model: str | Path, where: str) -> dict[str, Any]:
    """Find the model among those of an evaluation's recipe, by its folder."""
    recipe = record.get("recipe") or {}
    entries = dict(recipe.get("models") or {})
    if recipe.get("base") and recipe.get("zero_shot", True):
        entries["base"] = {"path": recipe["base"], "role": "fdm", "label": recipe.get("zero_shot_label", "C-ZS")}
    own = model_folder(model).resolve()
    for entry in entries.values():
        # A folder that has been moved since is no model to compare with.
        try:
            if model_folder(entry["path"]).resolve() == own:
                return dict(entry)
        except InputError:
            continue
    paths = ", ".join(str(entry["path"]) for entry in entries.values())
    raise InputError(f"evaluation = {where!r} did not evaluate {model}; its models are {paths}")


def _list_metrics(
    metrics: Mapping[str, Figure], names: tuple[str, ...], title: str, items: int, by: str
) -> list[CardFigure]:
    figures = []
    for name in names:
        if name in metrics:
            figure = metrics[name]
            low, high = figure["ci_low"], figure["ci_high"]
            interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
            figures.append(CardFigure(f"{name}, {title}", f"{figure['mean']:.3f}{interval}", items, by))
    return figures
