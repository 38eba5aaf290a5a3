"""Import votes into a study: the JSON that Label Studio exports of tasks that wm study export made, or a CSV or Parquet
file of votes. Each row is a vote, or a reject that is named with its reason; the same file twice changes nothing.

  wm study import study=STUDY file=export.json
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wm import cli
from wm.config import Recipe
from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.files.mirror import publish, shown
from wm.paths import InputPath, OutputPath
from wm.runs import parse_json, write_text
from wm.study.imports import Imported, Row, check_rows
from wm.study.label_studio import iterate_answers
from wm.study.reading import find_store
from wm.study.store import VoteStore
from wm.study.study import Study, load_study
from wm.study.vote_files import iterate_csv, iterate_parquet

_NAMED: Final = 20
"""Rejects that are printed."""


class StudyImportRecipe(Recipe):
    """Which votes, into which study."""

    study: InputPath
    """Output folder of wm study make."""
    file: InputPath
    """The votes, by the ending of the name: .json of Label Studio, .csv or .parquet as wm study export writes them."""
    store: OutputPath = ""
    """File that the votes go into; empty: votes.sqlite in the study's folder."""
    rejects: OutputPath = ""
    """File for the rejects, a line of JSON each; empty: they are printed alone."""


def run(recipe: StudyImportRecipe, *, dry_run: bool = False) -> Imported:
    """Store the votes of a file, all of them or none.

    Args:
        recipe: Which votes.
        dry_run: Check all rows, store nothing.

    Returns:
        What became of every row.

    Raises:
        InputError: The study, the file or the store cannot be read, or no row is a vote of the study.
    """
    # 1. Read and check everything: a file that breaks off in the middle stores nothing.
    study = load_study(recipe.study)
    path = find_store(recipe.study, recipe.store)
    rows = list(_iterate(study, Path(recipe.file)))
    stored, withdrawn = list[Vote](), list[str]()
    if path.is_file():
        with VoteStore(path, read_only=True) as store:
            stored, withdrawn = store.list_votes(study.study_id), store.list_withdrawn(study.study_id)
    imported = check_rows(study, rows, stored, withdrawn)
    # Before a file without any vote is refused, whose rejects are looked for first of all.
    if recipe.rejects and not dry_run:
        _write_rejects(Path(recipe.rejects), imported)
    # Nothing at all is the wrong file, or the wrong study.
    if not imported.votes and not imported.num_before:
        first = imported.rejects[0] if imported.rejects else None
        why = f"; {first.place}: {first.reason} ({first.detail})" if first else ": it has no answer"
        raise InputError(f"{shown(recipe.file)}: no row is a vote of study {study.study_id}{why}")
    # 2. One transaction, which checks once more what another process may have stored meanwhile.
    if imported.votes and not dry_run:
        with VoteStore(path) as store:
            store.add_votes(imported.votes)
    _print(recipe, imported, dry_run)
    return imported


def _iterate(study: Study, path: Path) -> Iterator[Row]:
    """Read the rows of a file in the form that its ending names."""
    if not path.is_file():
        raise InputError(f"file = {shown(path)!r:.300}: no such file")
    ending = path.suffix.lower()
    if ending == ".json":
        return iterate_answers(study, parse_json(path.read_bytes(), shown(path)), shown(path))
    if ending == ".csv":
        return iterate_csv(study, path)
    if ending == ".parquet":
        return iterate_parquet(study, path)
    raise InputError(f"file = {shown(path)!r:.300}: expected a name that ends in .json, .csv or .parquet")


def _write_rejects(path: Path, imported: Imported) -> None:
    # An empty file too: it says that nothing was rejected.
    lines = [
        json.dumps({"place": row.place, "reason": row.reason, "detail": row.detail}, ensure_ascii=False)
        for row in imported.rejects
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))
    publish(path)


def _print(recipe: StudyImportRecipe, imported: Imported, dry_run: bool) -> None:
    verb = "would store" if dry_run else "stored"
    print(
        f"study import: {imported.num_rows:,} rows of {shown(recipe.file)}: {verb} {len(imported.votes):,} new votes, "
        f"{imported.num_before:,} were stored before, {len(imported.rejects):,} rejects"
    )
    # Named one by one as far as a screen goes.
    for row in imported.rejects[:_NAMED]:
        print(f"  {row.place}: {row.reason}" + (f" ({row.detail})" if row.detail else ""))
    if len(imported.rejects) > _NAMED:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in imported.count_reasons().items())
        where = f"all are in {shown(recipe.rejects)}" if recipe.rejects else "rejects=FILE keeps all"
        print(f"  and {len(imported.rejects) - _NAMED:,} more ({reasons}); {where}")


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(StudyImportRecipe, run, name="study import", description=__doc__ or "")
