"""Make the models and images again that are installed with the package: base, inverse and forward model of the nano
world, trained, measured, packed. ``wm ship nano/shipped`` writes them below ``out/shipped``; in a checkout,
into=wm/nano/shipped replaces those of the package.

Stages have folders of their own below ``out``: the same command resumes.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import evaluate, ingest, pretrain, tabletop, train
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.ingest.recipe import IngestRecipe
from wm.buckets import prepare_buckets
from wm.cli import main as cli_main
from wm.config import Recipe
from wm.evaluation.rows import CEILING
from wm.files.mirror import fetch, publish
from wm.nano.packing import pack_base, pack_role, write_images
from wm.paths import OutputPath
from wm.training import TrainRecipe

Settings = dict[str, object]
"""Keys of another command's recipe, which that recipe checks."""

_ROLES = ("idm", "fdm")


class ShipRecipe(Recipe):
    """One table a stage, with that stage's own keys; paths between stages are set here."""

    out: OutputPath
    """Folder of the stages: base, world, train, test, idm, fdm, evaluate."""
    into: OutputPath = ""
    """Folder for base, idm, fdm and images, which are replaced; empty: ``out/shipped``."""
    tabletop: Settings = {}
    """Keys of wm tabletop."""
    pretrain: Settings = {}
    """Keys of wm pretrain."""
    ingest: Settings = {}
    """Keys of wm ingest."""
    idm: Settings = {}
    """Keys of wm train for the inverse model."""
    fdm: Settings = {}
    """Keys of wm train for the forward model."""
    evaluate: Settings = {}
    """Keys of wm evaluate."""


def run(recipe: ShipRecipe, *, dry_run: bool = False) -> dict[str, dict[str, float]]:
    """Train, measure and pack.

    Args:
        recipe: Settings of all stages.
        dry_run: Check all settings and print the stages.

    Returns:
        Measured figures of each role; empty on a dry run.

    Raises:
        InputError: A key of a table is wrong, or a folder holds another run.
    """
    out = Path(recipe.out)
    into = Path(recipe.into or out / "shipped")
    stages = _plan(recipe, out, into)
    if dry_run:
        print("\n".join(["ship: would run", *(f"  {name:9} {out / name}" for name in stages), f"and pack into {into}"]))
        return {}
    # 1. Train: a complete stage returns at once.
    for name, (run_stage, settings) in stages.items():
        if name == "evaluate":
            # 2. Pack what is to be measured: the figures are those of the stored weights, not of the trained ones.
            _pack(out, into, {role: {} for role in _ROLES})
        print(f"[{name}]")
        prepare_buckets(settings)
        run_stage(settings)
    # 3. Pack again with the figures.
    figures = read_figures(out / "evaluate")
    _pack(out, into, figures)
    print(f"ship: base, idm, fdm and images in {into}")
    return figures


def _plan(recipe: ShipRecipe, out: Path, into: Path) -> dict[str, tuple[Callable[..., object], Recipe]]:
    """Return every stage's function and recipe by the name of its folder, in order."""
    base, world = str(out / "base" / "model"), str(out / "world")
    plan: dict[str, tuple[Callable[..., object], Recipe]] = {}

    def add(name: str, run_stage: Callable[..., object], kind: type[Recipe], table: str, **fixed: object) -> None:
        keys: Settings = getattr(recipe, table)
        values = {**keys, **fixed, "out": str(out / name)}
        plan[name] = run_stage, kind.parse(values, f"table [{table}] for stage {name}")

    add("base", pretrain.run, pretrain.PretrainRecipe, "pretrain")
    add("world", tabletop.run, tabletop.TabletopRecipe, "tabletop")
    for split in ("train", "test"):
        source = {"root": f"{world}/supervised", "file": f"data/tabletop/{split}.json", "split": split, "codec": base}
        add(split, ingest.run, IngestRecipe, "ingest", **source)
    for role in _ROLES:
        triplets = [{"path": str(out / "train")}]
        add(role, train.run, TrainRecipe, role, task=role, base=base, triplets=triplets)
    models = {role: {"path": str(into / role), "role": role, "label": role} for role in _ROLES}
    add("evaluate", evaluate.run, EvaluateRecipe, "evaluate", triplets=f"{out}/test/triplets", models=models, idm="idm")
    return plan


def _pack(out: Path, into: Path, figures: dict[str, dict[str, float]]) -> None:
    # A stage may have been completed on another node.
    base, idm, fdm = (fetch(out / name) for name in ("base", *_ROLES))
    pack_base(base, into / "base")
    pack_role(idm, into / "idm", "idm", figures["idm"])
    pack_role(fdm, into / "fdm", "fdm", figures["fdm"])
    write_images(into / "images")
    publish(into)


def read_figures(evaluation: Path) -> dict[str, dict[str, float]]:
    """Read what the cards say from an evaluation of both roles.

    Args:
        evaluation: Output folder of wm evaluate.

    Returns:
        Figures by name, of ``idm`` and of ``fdm``.
    """
    tables: dict[str, Any] = json.loads((fetch(evaluation) / "tables.json").read_text())
    inverse = {
        "actions that give the true target": tables["idm"][0]["metrics"]["state_equivalent"]["mean"],
        "actions in the very words": tables["idm"][0]["metrics"]["exact_match"]["mean"],
        "pairs measured": tables["items"],
    }
    forward: dict[str, float] = {}
    for row in tables["fdm"]:
        # Of one sample there is nothing to choose; of several, the inverse model's choice is meant.
        if row["choice"] == "idm":
            name = "right, one sample" if row["k"] == 1 else f"right, best of {row['k']}"
            forward[name] = row["metrics"]["right"]["mean"]
        elif row["label"] == CEILING:
            forward["right, the true target through the codec"] = row["metrics"]["right"]["mean"]
    return {"idm": inverse, "fdm": {**forward, "pairs measured": tables["items"]}}


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(ShipRecipe, run, name="ship", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
