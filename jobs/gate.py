"""Does a new model replace the one before? Both are asked about the same held-out triplets; ``out/model`` leads to the
better one, which the next stage goes on with."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from jobs.shared.devices import need_device
from wm.cli import main as cli_main
from wm.config import Recipe
from wm.errors import InputError
from wm.evaluation.gates import Gate, GateMetric, Role, gate, read_gate_set
from wm.evaluation.heldout import SubsetColumn
from wm.models import load_model, read_manifest
from wm.paths import InputPath, OutputPath
from wm.runs import Run, digest_of, read_run


class GateRecipe(Recipe):
    """Two models of one task, and what they are asked."""

    champion: InputPath
    """Model folder that stands until now: full weights or an adapter."""
    challenger: InputPath
    """Model folder that replaces it if it is better."""
    role: Role
    """Inverse (idm) or forward (fdm) dynamics."""
    triplets: InputPath
    """Folder of held-out triplets with image codes, not those that the report uses."""
    out: OutputPath
    """Output folder; out/model leads to the promoted model."""
    metric: GateMetric = "nats"
    """nats: negative log-likelihood of the truth a token; preference: mean share of the probe's four comparisons."""
    least_gain: float = Field(default=0.0, ge=0)
    """By how much the challenger must be better, in the metric's unit."""
    limit: int = Field(default=0, ge=0)
    """Use so many triplets, spread evenly over the set; 0: all."""
    subset: SubsetColumn = "dataset"
    """The probe's negatives come from rows with the same value in this column."""
    base: InputPath = ""
    """Base folder of adapters; empty: the one their manifests name."""
    batch_size: int | None = Field(default=None, ge=1)
    """Rows a forward pass; left out: as the memory allows."""
    device: str = "cpu"
    """Where the models run."""


def run(recipe: GateRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Ask both, decide, and lead ``out/model`` to the better one; returns the run's record."""
    need_device(recipe.device)
    names = ("champion", "challenger", "triplets")
    stage = Run(recipe.out, "gate", recipe, {name: digest_of(getattr(recipe, name)) for name in names})
    whole = stage.is_whole()
    for name in names[:2]:
        manifest = read_manifest(getattr(recipe, name))
        if manifest is not None and manifest.task not in (None, recipe.role):
            raise InputError(f"{name} = {getattr(recipe, name)} was trained as {manifest.task}, not as {recipe.role}")
    if dry_run or whole:
        print(f"gate: {'already whole in' if whole else 'would decide in'} {recipe.out}")
        return (read_run(recipe.out) or {}) if whole else {}
    stage.start()
    found: dict[str, Gate] = {}
    for name in names[:2]:
        with stage.timed(name):
            found[name] = _ask(recipe, getattr(recipe, name))
    gain, error = gain_of(found["champion"], found["challenger"], recipe.metric)
    promoted = gain > recipe.least_gain and not found["challenger"].has_collapsed
    chosen = "challenger" if promoted else "champion"
    _lead_to(Path(getattr(recipe, chosen)), stage.out / "model")
    figures = {name: asked.figures() for name, asked in found.items()}
    summary = {"promoted": chosen, "gain": gain, "standard_error": error, "figures": figures}
    record = stage.finish({"triplets": len(found["champion"].nats_B)}, summary=summary)
    for name, values in figures.items():
        print(f"  {name:<10} " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    if found["challenger"].has_collapsed:
        print(f"  the challenger copies its source in {found['challenger'].copies:.0%} of the triplets: not promoted")
    told = "" if error is None else f" ± {error:.4f} (standard error over triplets)"
    print(f"gate: {recipe.metric} better by {gain:.4f}{told}: the {chosen} goes on, {stage.out / 'model'}")
    return record


def gain_of(champion: Gate, challenger: Gate, metric: GateMetric) -> tuple[float, float | None]:
    """By how much the challenger is better; for ``nats`` also the standard error of the mean over triplets."""
    if metric == "preference":
        return challenger.value(metric) - champion.value(metric), None
    gain_B = champion.nats_B - challenger.nats_B
    error = float(gain_B.std(ddof=1) / np.sqrt(len(gain_B))) if len(gain_B) > 1 else None
    return float(gain_B.mean()), error


def _ask(recipe: GateRecipe, path: str) -> Gate:
    manifest = read_manifest(path)
    is_adapter = manifest is not None and manifest.kind == "adapter"
    vlm = load_model(path, base=(recipe.base or None) if is_adapter else None, device=recipe.device)
    held_out = read_gate_set(recipe.triplets, vlm, limit=recipe.limit, subset=recipe.subset)
    return gate(vlm, recipe.role, held_out, batch_size=recipe.batch_size)


def _lead_to(model: Path, link: Path) -> None:
    """A relative link, so that the folder of all stages can be moved; made aside and then renamed."""
    aside = link.with_name(f".{link.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(os.path.relpath(model.resolve(), link.parent.resolve()))
    aside.replace(link)


def main() -> int:
    """Command line."""
    return cli_main(GateRecipe, run, name="gate", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
