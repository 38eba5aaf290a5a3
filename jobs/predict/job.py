"""Predict what an image looks like after one action or several, each prediction verified: image=FILE with actions=[…]
gives images and a storyboard, triplets=FOLDER a table of predictions.

With the models and images that are installed with the package:

  wm predict nano/predict
  wm predict nano/predict image=nano:images/three-squares.png actions='["remove the green square"]' out=runs/squares

With tree='[["…", "…"], ["…", "…"]]' instead of actions, each action of a level is done in every image of the level
before.
"""

import torch

from jobs.predict import report
from jobs.predict.action_tree import write_tree
from jobs.predict.recipe import PredictRecipe
from jobs.predict.rollout_image import write_rollout
from jobs.predict.triplet_storyboard import STORYBOARD, write_triplet_storyboard
from jobs.predict.triplets import count_parts, parts_of, predict_triplets
from jobs.shared.roles import check_actions, check_roles, load_recipe_roles
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.dynamics import (
    CodeForward,
    CodeInverse,
    Observation,
    Roles,
    StepDone,
    check_draft_length,
    grow_tree,
    observe_codes,
    roll_out,
)
from wm.errors import InputError
from wm.evaluation.heldout import HeldOut, read_held_out
from wm.files.mirror import fetch, shown
from wm.images import Pixels, decode_image, fit_square
from wm.models import ImageCodec, load_codec
from wm.records import SEED_SCHEME
from wm.runs import Run, RunRecord, digest_of, read_run


def run(recipe: PredictRecipe, *, dry_run: bool = False) -> RunRecord:
    """Predict into ``recipe.out``.

    Args:
        recipe: Models, source and search.
        dry_run: Check everything, and print what would be predicted.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: Models, image, triplets or actions do not allow it.
    """
    check_roles(recipe)
    inputs = {"fdm": digest_of(recipe.fdm), "idm": digest_of(recipe.idm)}
    inputs |= {name: digest_of(path) for name in ("base", "image", "triplets") if (path := getattr(recipe, name))}
    if recipe.triplets:
        inputs["seeds"] = SEED_SCHEME  # parts of another scheme would be mixed with new ones
    stage = Run(recipe.out, "predict", recipe, inputs)
    if stage.is_complete():
        report.print_complete(recipe)
        return read_run(recipe.out) or {}
    # 1. The source, whose mistakes must not wait for 7B weights.
    with stage.timed("read"):
        codec = load_codec(recipe.base or recipe.fdm, recipe.resources.device)
        check_draft_length(recipe.search.num_draft_tokens, codec.tokens_per_image)
        if recipe.image or recipe.storyboard_triplets:
            codec.check_decoder()
        source = _load_image(recipe.image, codec) if recipe.image else None
        held_out = None if recipe.image else read_held_out(recipe.triplets, codec, limit=recipe.limit or None)
    if dry_run:
        report.print_plan(recipe, 0 if held_out is None else len(held_out))
        return {}
    # 2. The models.
    with stage.timed("load"):
        roles = load_recipe_roles(recipe, codec)
    # 3. The predictions.
    if source is not None and recipe.tree is not None:
        return _predict_tree(recipe, stage, source, codec, roles)
    if source is not None:
        return _predict_image(recipe, stage, source, codec, roles)
    assert held_out is not None
    return _predict_triplets(recipe, stage, held_out, codec, roles)


def _predict_image(recipe: PredictRecipe, stage: Run, source_HWC: Pixels, codec: ImageCodec, roles: Roles) -> RunRecord:
    source_1N = codec.encode(source_HWC[None])
    check_actions(roles, source_1N[0].tolist(), recipe.actions)  # before the folder is made
    stage.start()
    with stage.timed("predict"), progress_bar(len(recipe.actions), "step", "predict") as bar:

        def report_step(step: StepDone) -> None:
            bar.set_postfix_str(f"{step.num_candidates} candidates")
            bar.update()

        with torch.inference_mode():
            rollout = roll_out(
                CodeForward(roles.fdm, codec), CodeInverse(roles.idm, codec), observe_codes(source_1N.tolist(), codec),
                [recipe.actions], search=recipe.search, sampling=recipe.sampling, seed=recipe.seed,
                batch_size=recipe.resources.batch_size, on_step=report_step,
            )[0]  # fmt: skip
    with stage.timed("write"):
        counts = write_rollout(rollout, source_HWC, codec, stage.out, num_return=recipe.search.num_return)
    record = stage.finish(counts)
    report.print_rollout(rollout, counts, stage.out)
    return record


def _predict_tree(recipe: PredictRecipe, stage: Run, source_HWC: Pixels, codec: ImageCodec, roles: Roles) -> RunRecord:
    levels = recipe.tree or []
    source_1N = codec.encode(source_HWC[None])
    check_actions(roles, source_1N[0].tolist(), [action for level in levels for action in level])
    stage.start()
    with stage.timed("predict"), progress_bar(recipe.num_branches, "image", "predict") as bar, torch.inference_mode():
        tree = grow_tree(
            CodeForward(roles.fdm, codec), CodeInverse(roles.idm, codec),
            Observation.from_codes(source_1N[0].tolist(), codec), levels, search=recipe.search,
            sampling=recipe.sampling, seed=recipe.seed, batch_size=recipe.resources.batch_size,
            on_level=lambda level: bar.update(len(level)),
        )  # fmt: skip
    with stage.timed("write"):
        counts = write_tree(tree, tuple(source_1N[0].tolist()), source_HWC, codec, stage.out)
    record = stage.finish(counts)
    report.print_tree(tree, counts, stage.out)
    return record


def _predict_triplets(
    recipe: PredictRecipe, stage: Run, held_out: HeldOut, codec: ImageCodec, roles: Roles
) -> RunRecord:
    # Every action before the first prediction: one that is too long would else fail after hours.
    check_actions(roles, held_out.source_codes[0].tolist(), held_out.actions)
    stage.start()
    with stage.timed("predict"), torch.inference_mode(), progress_bar(len(held_out), "triplet", "predict") as bar:
        for count in predict_triplets(
            roles, held_out, stage.out, search=recipe.search, sampling=recipe.sampling,
            seed=recipe.seed, batch_size=recipe.resources.batch_size,
        ):  # fmt: skip
            bar.update(count)
    # Counted from the files, parts of an earlier attempt included.
    files = [path for path, _ in parts_of(held_out, stage.out)]
    counts = count_parts(files)
    if recipe.storyboard_triplets:
        write_triplet_storyboard(held_out, files, codec, stage.out, recipe.storyboard_triplets)
    record = stage.finish(counts)
    report.print_triplets(counts, stage.out)
    if recipe.storyboard_triplets:
        print(f"  storyboard: {shown(stage.out / STORYBOARD)}")
    return record


def _load_image(path: str, codec: ImageCodec) -> Pixels:
    file = fetch(path)
    if not file.is_file():
        raise InputError(f"image = {path!r}: no such file")
    return fit_square(decode_image(file.read_bytes(), f"image {shown(path)}"), codec.side_px)


def main() -> int:
    """Run the command line; return its exit status."""
    return cli_main(PredictRecipe, run, name="predict", description=__doc__ or "")
