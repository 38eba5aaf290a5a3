"""Predict what an image looks like after one action or several, each prediction verified: image=FILE with actions=[…]
gives images and a storyboard, triplets=FOLDER a table of predictions.

With the models and images that are installed with the package:

  wm predict nano/predict
  wm predict nano/predict image=nano:images/three-squares.png actions='["remove the green square"]' out=runs/squares

With tree='[["…", "…"], ["…", "…"]]' instead of actions, each action of a level is done in every image of the level
before.
"""

from dataclasses import replace

import torch

from jobs.predict import report
from jobs.predict.action_tree import write_tree
from jobs.predict.recipe import PredictRecipe
from jobs.predict.rollout_image import write_rollout
from jobs.predict.sources import TripletSources, read_sources
from jobs.predict.triplet_storyboard import STORYBOARD, write_triplet_storyboard
from jobs.predict.triplets import count_parts, parts_of, predict_triplets
from jobs.shared.roles import check_roles, load_forward_codec, load_recipe_roles, show_steps
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.dynamics import StepDone, grow_tree, roll_out
from wm.dynamics.pairs import ModelPair
from wm.errors import InputError
from wm.files.mirror import fetch, shown
from wm.images import Pixels, decode_image
from wm.models import ImageCodec
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
    check_roles(recipe, recipe.search)
    inputs = {"fdm": digest_of(recipe.fdm), "idm": digest_of(recipe.idm)}
    inputs |= {name: digest_of(path) for name in ("base", "image", "triplets") if (path := getattr(recipe, name))}
    if recipe.pixels.base:
        inputs["pixels.base"] = digest_of(recipe.pixels.base)
    if recipe.triplets:
        inputs["seeds"] = SEED_SCHEME  # parts of another scheme would be mixed with new ones
    stage = Run(recipe.out, "predict", recipe, inputs)
    if stage.is_complete():
        report.print_complete(recipe)
        return read_run(recipe.out) or {}
    # 1. The source, whose mistakes must not wait for 7B weights.
    with stage.timed("read"):
        codec = load_forward_codec(recipe, recipe.search)
        if codec is not None and (recipe.image or recipe.storyboard_triplets):
            codec.check_decoder()
        source = _load_image(recipe.image) if recipe.image else None
        sources = None if recipe.image else read_sources(recipe.triplets, codec, limit=recipe.limit or None)
    if dry_run:
        report.print_plan(recipe, 0 if sources is None else len(sources))
        return {}
    # 2. The models.
    with stage.timed("load"):
        pair = load_recipe_roles(recipe, recipe.search, codec)
    # 3. The predictions.
    if source is not None and recipe.tree is not None:
        return _predict_tree(recipe, stage, source, pair)
    if source is not None:
        return _predict_image(recipe, stage, source, pair)
    assert sources is not None
    return _predict_triplets(recipe, stage, sources, codec, pair)


def _predict_image(recipe: PredictRecipe, stage: Run, image_HWC: Pixels, pair: ModelPair) -> RunRecord:
    source_HWC = pair.frame(image_HWC)
    pair.check_actions(recipe.actions)  # before the folder is made
    stage.start()
    with stage.timed("predict"), progress_bar(len(recipe.actions), "step", "predict") as bar:

        def report_step(step: StepDone) -> None:
            bar.set_postfix_str(f"{step.num_candidates} candidates")
            bar.update()

        pair = show_steps(pair, bar)

        with torch.inference_mode():
            rollout = roll_out(
                pair.forward, pair.inverse, [pair.observe(source_HWC)], [recipe.actions], search=recipe.search,
                sampling=recipe.sampling, seed=recipe.seed, batch_size=recipe.resources.batch_size,
                on_step=report_step,
            )[0]  # fmt: skip
    with stage.timed("write"):
        rollout = replace(rollout, source=pair.to_codes(rollout.source))
        counts = write_rollout(rollout, source_HWC, stage.out, num_return=recipe.search.num_return)
    record = stage.finish(counts, **pair.describe())
    report.print_rollout(rollout, counts, stage.out)
    return record


def _predict_tree(recipe: PredictRecipe, stage: Run, image_HWC: Pixels, pair: ModelPair) -> RunRecord:
    levels = recipe.tree or []
    source_HWC = pair.frame(image_HWC)
    source = pair.observe(source_HWC)
    pair.check_actions(action for level in levels for action in level)
    stage.start()
    with stage.timed("predict"), progress_bar(recipe.num_branches, "image", "predict") as bar, torch.inference_mode():
        pair = show_steps(pair, bar)
        tree = grow_tree(
            pair.forward, pair.inverse, source, levels, search=recipe.search, sampling=recipe.sampling,
            seed=recipe.seed, batch_size=recipe.resources.batch_size, on_level=lambda level: bar.update(len(level)),
        )  # fmt: skip
    # Paths that end are named in the file; without any image there is nothing to write.
    if not any(branch.prediction.candidates for branch in tree[0]):
        raise InputError(f"tree: {tree[0][0].prediction.explain_failures()}")
    with stage.timed("write"):
        counts = write_tree(tree, pair.to_codes(source), source_HWC, stage.out)
    record = stage.finish(counts, **pair.describe())
    report.print_tree(tree, counts, stage.out)
    return record


def _predict_triplets(
    recipe: PredictRecipe, stage: Run, sources: TripletSources, codec: ImageCodec | None, pair: ModelPair
) -> RunRecord:
    # Every action before the first prediction: one that is too long would else fail after hours.
    pair.check_actions(sources.actions)
    stage.start()
    with stage.timed("predict"), torch.inference_mode(), progress_bar(len(sources), "triplet", "predict") as bar:
        for count in predict_triplets(
            show_steps(pair, bar), sources, stage.out, search=recipe.search, sampling=recipe.sampling,
            seed=recipe.seed, batch_size=recipe.resources.batch_size,
        ):  # fmt: skip
            bar.update(count)
    # Counted from the files, parts of an earlier attempt included.
    files = [path for path, _ in parts_of(sources, stage.out)]
    counts = count_parts(files, len(sources))
    if recipe.storyboard_triplets:
        write_triplet_storyboard(sources, files, codec, stage.out, recipe.storyboard_triplets)
    record = stage.finish(counts, **pair.describe())
    report.print_triplets(counts, stage.out, "blocks" if codec is None else "tokens")
    if recipe.storyboard_triplets:
        print(f"  storyboard: {shown(stage.out / STORYBOARD)}")
    return record


def _load_image(path: str) -> Pixels:
    file = fetch(path)
    if not file.is_file():
        raise InputError(f"image = {path!r}: no such file")
    return decode_image(file.read_bytes(), f"image {shown(path)}")


def main() -> int:
    """Run the command line; return its exit status."""
    return cli_main(PredictRecipe, run, name="predict", description=__doc__ or "")
