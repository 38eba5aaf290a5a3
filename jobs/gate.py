"""Decide whether a new model replaces the one before, by the same held-out triplets for both.

``out/model`` is a link to the better one, from which the next stage continues. Not known here: how either was trained.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from jobs.shared.devices import DeviceSettings, check_device
from wm.cli import main as cli_main
from wm.config import Recipe
from wm.dynamics.pixel_inverse import load_pixel_inverse
from wm.errors import InputError
from wm.evaluation.gates import Gate, GateMetric, Role, gate, read_gate_set
from wm.evaluation.heldout import SubsetColumn
from wm.evaluation.pixel_gates import pixel_gate, read_pixel_gate_set
from wm.evaluation.sensitivity import SHUFFLED
from wm.files.mirror import shown, uri_of
from wm.models import copy_model, is_adapter, load_model, read_manifest
from wm.models.kinds import kind_of
from wm.paths import ModelPath, OutputPath, TablePath
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.tables import read_table, triplets_folder


class GateRecipe(Recipe):
    """Two models of one task, and the triplets that they are evaluated on."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "least_gain": "min_gain",
        "device": "resources.device",
        "batch_size": "resources.batch_size",
    }

    champion: ModelPath
    """Model folder in use until now: full weights or an adapter."""
    challenger: ModelPath
    """Model folder that replaces it if it is better."""
    role: Role
    """Inverse (idm) or forward (fdm) dynamics."""
    triplets: TablePath
    """Folder of held-out triplets, not those that the report uses; with image codes for models that read these."""
    out: OutputPath
    """Output folder; out/model leads to the promoted model: a link, or a copy if one of them is in a bucket."""
    metric: GateMetric = "nats"
    """nats: negative log-likelihood of the truth a token; preference: mean share of the truth preferred, over the
    probe's four kinds of negatives; sensitivity.shuffled: of a forward model, by how many nats an image token the true
    action makes the target likelier than another triplet's action does."""
    min_gain: float = Field(default=0.0, ge=0)
    """By how much the challenger must be better, in the metric's unit."""
    limit: int = Field(default=0, ge=0)
    """Use so many triplets, spread evenly over the set; 0: all."""
    subset: SubsetColumn = "dataset"
    """Negatives of the probe are taken from rows with the same value in this column: class_label for a bench of several
    tasks."""
    base: ModelPath = ""
    """Base folder of adapters; empty: the one their manifests name."""
    resources: DeviceSettings = DeviceSettings()
    """Where the models run."""


def run(recipe: GateRecipe, *, dry_run: bool = False) -> RunRecord:
    """Evaluate both, decide, and link ``out/model`` to the better one.

    Args:
        recipe: The two models and the triplets.
        dry_run: Check everything and write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: A model was trained for another task, or a folder is missing.
    """
    check_device(recipe.resources.device)
    if recipe.metric == "sensitivity.shuffled" and recipe.role != "fdm":
        raise InputError(f"metric = {recipe.metric!r} is of a forward model; role = {recipe.role!r}")
    names = ("champion", "challenger", "triplets")
    stage = Run(recipe.out, "gate", recipe, {name: digest_of(getattr(recipe, name)) for name in names})
    is_complete = stage.is_complete()
    if not is_complete:
        _check_kinds(recipe)
    # A model of the other task would be compared by figures that mean nothing.
    for name in names[:2]:
        manifest = read_manifest(getattr(recipe, name))
        if manifest is not None and manifest.task not in (None, recipe.role):
            path = shown(getattr(recipe, name))
            raise InputError(f"{name} = {path} was trained as {manifest.task}, not as {recipe.role}")
        if manifest is not None and not is_complete and not manifest.reads_pixels:
            _check_codes(recipe, name, manifest.codec_id)
    if dry_run or is_complete:
        print(f"gate: {'already complete in' if is_complete else 'would decide in'} {shown(recipe.out)}")
        return (read_run(recipe.out) or {}) if is_complete else {}
    stage.start()
    gates: dict[str, Gate] = {}
    for name in names[:2]:
        with stage.timed(name):
            gates[name] = _evaluate(recipe, getattr(recipe, name))
    _check_tokens(recipe, stage, gates["champion"], gates["challenger"])
    # Both saw the same triplets, so that the error is that of their differences.
    gain, error = gain_of(gates["champion"], gates["challenger"], recipe.metric)
    # A model that copies its source has good likelihoods of what does not change: it never replaces one.
    promoted = gain > recipe.min_gain and not gates["challenger"].has_collapsed
    winner = "challenger" if promoted else "champion"
    _place_model(Path(getattr(recipe, winner)), stage.out / "model")
    figures = {name: result.figures() for name, result in gates.items()}
    summary = {"promoted": winner, "gain": gain, "standard_error": error, "figures": figures}
    record = stage.finish({"triplets": len(gates["champion"].nats_B)}, summary=summary)
    for name, values in figures.items():
        print(f"  {name:<10} " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    if gates["challenger"].has_collapsed:
        print(f"  the challenger copies its source in {gates['challenger'].copies:.0%} of the triplets: not promoted")
    spread = "" if error is None else f" ± {error:.4f} (standard error over triplets)"
    for name, result in gates.items():
        if result.ignores_action:
            shuffled = result.sensitivity[SHUFFLED].describe("nats an image token")
            print(f"  the {name} ignores its action: true over shuffled {shuffled}")
    # A gain of less than nothing is a loss.
    gap = f"{'better' if gain > 0 else 'worse'} by {abs(gain):.4f}{spread}" if gain else "equal"
    print(f"gate: by {recipe.metric} the challenger is {gap}: the {winner} is used, {shown(stage.out / 'model')}")
    return record


def _check_kinds(recipe: GateRecipe) -> None:
    """Check that both can be compared by the metric, in their role."""
    kinds = {name: kind_of(getattr(recipe, name), recipe.base or None) for name in ("champion", "challenger")}
    for name, kind in kinds.items():
        if kind == "editor" or (kind == "pixels" and recipe.role == "fdm"):
            nature = "is an image editor" if kind == "editor" else "reads images and makes none"
            raise InputError(f"{name} = {getattr(recipe, name)} {nature}: it has no likelihoods as {recipe.role}")
    if recipe.base and not any(is_adapter(getattr(recipe, name)) for name in kinds):
        raise InputError(f"base = {recipe.base!r}, but neither champion nor challenger is an adapter; leave it out")
    # Tokens of two vocabularies are of other lengths.
    if len(set(kinds.values())) > 1 and recipe.metric == "nats":
        raise InputError(
            f"metric = 'nats': champion reads {kinds['champion']}, challenger {kinds['challenger']}, whose tokens "
            "differ; choose metric = 'preference'"
        )


def _check_tokens(recipe: GateRecipe, stage: Run, champion: Gate, challenger: Gate) -> None:
    # Models of codes have those of their codec in common, or are refused.
    if recipe.metric != "nats" or champion.tokens_B is None or challenger.tokens_B is None:
        return
    if not np.array_equal(champion.tokens_B, challenger.tokens_B):
        stage.abandon()
        raise InputError(
            "metric = 'nats': champion and challenger cut the actions into other tokens, so that nats a token do not "
            "compare; choose metric = 'preference'"
        )


def _check_codes(recipe: GateRecipe, name: str, codec_id: str) -> None:
    """Check before anything is made that the triplets have codes of a model's codec."""
    columns = ["codec", "class_label", recipe.subset]
    table = read_table(triplets_folder(recipe.triplets), columns=list(dict.fromkeys(columns)))
    for codec in table.column("codec").unique().to_pylist():
        if codec != codec_id:
            # Null: annotated by a model that reads pixels, without a codec.
            state = f"holds codes of codec {codec}" if codec else "has triplets without image codes"
            raise InputError(
                f"{recipe.triplets} {state}, {name} = {getattr(recipe, name)} reads codec "
                f"{codec_id}: make them by wm encode or wm ingest with codec=MODEL"
            )
    # As wm evaluate does: another task's actions are too easy to distinguish from the truth.
    num_subsets, num_labels = (len(table.column(column).unique()) for column in (recipe.subset, "class_label"))
    if name == "champion" and recipe.metric == "preference" and num_subsets == 1 and num_labels > 1:
        print(
            f"warning: subset = {recipe.subset!r} is one subset, but class_label has {num_labels} values: the probe's "
            "negatives cross them; is subset = 'class_label' meant?"
        )


def gain_of(champion: Gate, challenger: Gate, metric: GateMetric) -> tuple[float, float | None]:
    """Compute by how much the challenger is better.

    Args:
        champion: Figures of the model in use.
        challenger: Figures of the new model, on the same triplets in the same order.
        metric: ``nats`` (nats a token), ``preference`` (a share) or ``sensitivity.shuffled`` (nats an image token).

    Returns:
        The gain in the metric's unit, and for ``nats`` the standard error of its mean over triplets, else None.
    """
    # A preference is a share over pairs: a triplet has no value of its own. A triplet may have no other action.
    if metric != "nats":
        return challenger.value(metric) - champion.value(metric), None
    gain_B = champion.nats_B - challenger.nats_B
    error = float(gain_B.std(ddof=1) / np.sqrt(len(gain_B))) if len(gain_B) > 1 else None
    return float(gain_B.mean()), error


def _evaluate(recipe: GateRecipe, path: str) -> Gate:
    if kind_of(path, recipe.base or None) == "pixels":
        base = (recipe.base or None) if is_adapter(path) else None
        inverse = load_pixel_inverse(path, base=base, device=recipe.resources.device)
        pairs = read_pixel_gate_set(recipe.triplets, limit=recipe.limit, subset=recipe.subset)
        return pixel_gate(inverse.scorer, pairs, batch_size=recipe.resources.batch_size or 8)
    manifest = read_manifest(path)
    # A complete model takes no base.
    takes_base = manifest is not None and manifest.kind == "adapter"
    vlm = load_model(path, base=(recipe.base or None) if takes_base else None, device=recipe.resources.device)
    held_out = read_gate_set(recipe.triplets, vlm, limit=recipe.limit, subset=recipe.subset)
    if recipe.metric == "sensitivity.shuffled" and not held_out.has_other_actions:
        raise InputError(f"metric = {recipe.metric!r}: no subset of {recipe.triplets} has two different actions")
    return gate(vlm, recipe.role, held_out, batch_size=recipe.resources.batch_size)


def _place_model(model: Path, target: Path) -> None:
    """Make ``target`` lead to ``model``: a link, or a copy where one of them is in a bucket, which has no links."""
    if uri_of(model) is not None or uri_of(target) is not None:
        copy_model(model, target)
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    # Relative, so that the folder of all stages can be moved.
    temporary.symlink_to(os.path.relpath(model.resolve(), target.parent.resolve()))
    temporary.replace(target)


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(GateRecipe, run, name="gate", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
