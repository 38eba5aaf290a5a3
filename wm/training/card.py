"""Describe a trained model for its card by the record of its run: recipe, data, figures, failures.

Not known here: how a card looks (:mod:`wm.models.card`), and figures of later evaluations, which callers add.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wm.errors import InputError
from wm.models.base_facts import BaseFacts, find_base, name_of
from wm.models.card import CardFacts, CardFigure, DataSource, strip_paths
from wm.runs import parse_json
from wm.tables import read_footers, table_files, triplets_folder
from wm.training.data.provenance import count_sources
from wm.training.monitoring.evaluation import EVALUATIONS, LAST
from wm.training.recipe import TrainRecipe

FEW_TRIPLETS = 1000
"""Fewer are named as a failure: an adapter of rank 16 has more parameters than they have tokens."""
MAX_SKIPPED = 0.05
"""A larger share of rows that were left out is named: the rest may be another sample."""
_FIGURE_NAMES = {
    "nats": "negative log-likelihood of the truth, nats a token",
    "preference": "truth preferred (mean of the probe's kinds)",
    "copies": "predictions that copy the source",
    "unchanged_share": "image tokens left as they are",
    "true_unchanged_share": "the same of the true targets",
    "sensitivity.shuffled": "action sensitivity: true over shuffled, nats an image token",
    "sensitivity.opposite": "action sensitivity: true over opposite, nats an image token",
    "sensitivity.empty": "action sensitivity: true over empty, nats an image token",
}
"""Figures of an evaluation while training, in the order of a card."""


def describe_training(
    folder: Path,
    record: Mapping[str, Any],
    *,
    licenses: Sequence[str] = (),
    base: BaseFacts | None = None,
    figures: Sequence[CardFigure] = (),
    failures: Sequence[str] = (),
) -> CardFacts:
    """Describe a model that ``wm train`` made.

    Args:
        folder: The model's.
        record: Of its run: ``recipe``, ``counts`` and ``summary``.
        licenses: Those that the model's owner has chosen for it.
        base: The base, where the caller knows more than the folder says.
        figures: Of later evaluations.
        failures: That those have shown.

    Returns:
        What its card says.
    """
    recipe = record.get("recipe") or {}
    # 1. What the run's record and the tables say.
    sources, note = _count_data(recipe)
    line = _find_evaluation(folder, record.get("summary") or {})
    trained = _list_figures(recipe, line)
    # 2. What they do not say: a reader must not take silence for a good figure.
    unknown = []
    if not trained and not figures:
        unknown += ["How good it is: it was not evaluated while it trained (eval.every_steps)."]
    if recipe.get("task") == "fdm" and not any("shuffled" in figure.name for figure in (*trained, *figures)):
        unknown += ["Whether it heeds its action: wm evaluate measures its action sensitivity."]
    if any(source.license.strip() == "" for source in sources or ()):
        unknown += ["The licence of the rows whose licence is not given."]
    return CardFacts(
        title=name_of(folder),
        base=base or find_base(folder, recipe),
        sources=sources,
        data_note=note,
        licenses=licenses,
        recipe=recipe,
        figures=[*trained, *figures],
        failures=[*_list_failures(record, line), *failures],
        unknown=unknown,
    )


def _count_data(recipe: Mapping[str, Any]) -> tuple[list[DataSource] | None, str]:
    """Count the rows by origin; where the tables are no longer there, say so."""
    try:
        parsed = TrainRecipe.model_validate(recipe)
        return count_sources(parsed.triplets, parsed.seed), ""
    # The card is worth having without: tables may have been moved since.
    except (InputError, ValueError, OSError):
        paths = [entry.get("path") for entry in recipe.get("triplets") or [] if isinstance(entry, dict)]
        names = ", ".join(str(strip_paths(f"./{path}")) for path in paths) or "no table that is known"
        return None, f"Trained on {names}; what rows and licences these had is not known: they cannot be read any more."


def _find_evaluation(folder: Path, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the evaluation of the very model: the last one, or that of the best step where that is kept."""
    last = summary.get("evaluation") or {}
    best = summary.get("best") or {}
    # Beside the best model, the folder ``last`` has that of the last step.
    if folder.name == LAST or not best or best["step"] == last.get("step"):
        return last
    path = folder.parent / EVALUATIONS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    parsed = [parse_json(line, str(path)) for line in lines if line.strip()]
    # Of another step's model the figures would be wrong: then the one that it was chosen by is all that is known.
    return next((line for line in parsed if line.get("step") == best["step"]), best)


def _list_figures(recipe: Mapping[str, Any], line: Mapping[str, Any]) -> list[CardFigure]:
    """List the figures of an evaluation while training."""
    # A figure without its n says little.
    count = _count_held_out(recipe.get("eval") or {})
    return [
        CardFigure(name, f"{line[key]:.4f}", count, f"training, held out, step {line['step']:,}")
        for key, name in _FIGURE_NAMES.items()
        if isinstance(line.get(key), int | float)
    ]


def _count_held_out(settings: Mapping[str, Any]) -> int | None:
    """Count the triplets that an evaluation read; None where they are no longer there."""
    try:
        footers = read_footers(table_files(triplets_folder(str(settings["triplets"]))))
    except (InputError, KeyError, OSError):
        return None
    rows = sum(int(footer.num_rows) for footer in footers)
    return min(rows, int(settings.get("limit") or rows))


def _list_failures(record: Mapping[str, Any], line: Mapping[str, Any]) -> list[str]:
    """List how the model fails, as far as its run and the evaluation ``line`` have shown."""
    recipe, counts = record.get("recipe") or {}, record.get("counts") or {}
    failures = []
    # What makes predictions useless first, then what makes them doubtful.
    if line.get("has_collapsed"):
        failures += [
            f"It has collapsed into copying: {line['copies']:.0%} of the held-out sources come back unchanged."
        ]
    if line.get("ignores_action"):
        failures += [
            "It ignores its action: the true image is no likelier under the true action than under another triplet's "
            f"({line['sensitivity.shuffled']:+.4f} nats an image token)."
        ]
    triplets, skipped = int(counts.get("triplets") or 0), int(counts.get("skipped") or 0)
    if 0 < triplets < FEW_TRIPLETS:
        failures += [f"Low coverage: it was trained on {triplets:,} triplets only."]
    if skipped > MAX_SKIPPED * (triplets + skipped):
        failures += [f"Low coverage: {skipped:,} of {triplets + skipped:,} rows of its data were left out."]
    if recipe.get("task") == "fdm" and not (recipe.get("recognition") or {}).get("enabled", True):
        failures += ["Trained without recognition weights: such models tend to copy their source."]
    return failures
