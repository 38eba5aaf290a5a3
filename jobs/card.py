"""Write the model card (README.md) of a model folder again, with figures of ``wm evaluate`` or the base's repository:
``wm card model=runs/fdm evaluation=runs/evaluate``.

``wm train`` and ``wm pretrain`` write one themselves; this adds what was not known then, or gives an older model one.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import field_validator

from wm.cards import CARD, is_repo_id, licenses_of, read_head
from wm.cli import main as cli_main
from wm.config import Recipe
from wm.errors import InputError
from wm.evaluation.card_figures import read_card_figures
from wm.files.mirror import publish, shown
from wm.models.base_facts import describe_base, find_base, name_of
from wm.models.card import CardFacts, CardFigure, list_licenses, write_card
from wm.models.manifest import fetch_model, is_model_folder
from wm.packaged import to_packaged_name
from wm.paths import ModelPath, OptionalInputPath
from wm.runs import read_run
from wm.training.card import describe_training


class CardRecipe(Recipe):
    """A model, and what its folder does not say."""

    model: ModelPath
    """Model folder, or that of the run that trained it; README.md is written into the model's."""
    evaluation: OptionalInputPath = None
    """Output folder of a wm evaluate that measured this model: its figures become part of the card."""
    base_model: str = ""
    """The base's repository on the hub, owner/name; empty: as its folder says."""
    license: str = ""
    """Licence that you give the model beside those of base and data, such as apache-2.0."""
    title: str = ""
    """Heading; empty: the name of the folder."""

    @field_validator("base_model")
    @classmethod
    def _check_repo(cls, value: str) -> str:
        if value and not is_repo_id(value):
            raise ValueError(f"{value!r:.100} is no repository of the hub; expected owner/name")
        return value


def run(recipe: CardRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Write the card.

    Args:
        recipe: The model and what is known of it.
        dry_run: Check everything and write nothing.

    Returns:
        ``card`` (path), ``licenses`` and ``failures``.

    Raises:
        InputError: There is no model, or the evaluation is not of it.
    """
    if not is_model_folder(recipe.model):
        raise InputError(f"model = {recipe.model!r}: no model folder (no config.json or adapter_config.json)")
    if (name := to_packaged_name(recipe.model)) != recipe.model:
        raise InputError(
            f"model = {name!r}: it comes with the package, whose files are not written; copy its folder first"
        )
    # Everything is read before the old card is written over.
    folder = fetch_model(recipe.model)
    figures, failures = read_card_figures(recipe.evaluation, recipe.model) if recipe.evaluation else ([], [])
    facts = _describe(recipe, folder, figures, failures)
    facts = replace(facts, title=recipe.title or facts.title)
    print(f"card: {'would write' if dry_run else 'wrote'} {shown(folder / CARD)}")
    print(f"  licences: {', '.join(list_licenses(facts)) or 'none given'}; {len(facts.figures)} figures")
    for text in facts.failures:
        print(f"  known failure: {text}")
    if not dry_run:
        write_card(folder, facts)
        publish(folder / CARD)
    return {"card": str(folder / CARD), "licenses": list_licenses(facts), "failures": list(facts.failures)}


def _describe(recipe: CardRecipe, folder: Path, figures: list[CardFigure], failures: list[str]) -> CardFacts:
    """Describe the model by its run's record, if there is one; else by its folder."""
    record = read_run(folder) or (read_run(folder.parent) if folder.name in ("model", "last") else None)
    # What a card names already stays, unless its owner says otherwise: base and data may have gone since.
    licenses = [recipe.license] if recipe.license else licenses_of(read_head(folder))
    if record is not None and record.get("stage") == "train":
        base = find_base(folder, record.get("recipe") or {}, repo_id=recipe.base_model)
        return describe_training(folder, record, licenses=licenses, base=base, figures=figures, failures=failures)
    # Without a record of a training only the folder speaks.
    settings: Mapping[str, object] | None = record.get("recipe") if record else None
    base = find_base(folder, None, repo_id=recipe.base_model)
    # A base itself is under its release's licence.
    own = describe_base(folder) if base is None and not licenses else None
    return CardFacts(
        title=name_of(folder),
        base=base,
        licenses=licenses or (own.licenses if own else []),
        data_note="What it was trained on is not known: there is no record of a training beside it.",
        recipe=settings,
        figures=figures,
        failures=failures,
    )


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(CardRecipe, run, name="card", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
