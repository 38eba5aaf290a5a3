"""Predict what an image looks like after one action or several, each prediction verified: image=FILE with actions=[…]
gives images and a storyboard, triplets=FOLDER a table of predictions."""

import sys
from pathlib import Path
from typing import Any

import torch

from jobs.predict.recipe import PredictRecipe
from jobs.predict.rollout_image import write_rollout
from jobs.predict.triplets import parts_of, predict_triplets
from jobs.shared.roles import need_actions, need_roles, read_roles
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.dynamics import Roles, StepDone, check_draft_length, roll_out
from wm.errors import InputError
from wm.evaluation.heldout import HeldOut, read_held_out
from wm.images import Pixels, decode_image, fit_square
from wm.models import ImageCodec, load_codec
from wm.records import SEED_SCHEME
from wm.runs import Run, digest_of, read_run


def run(recipe: PredictRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Predict and write; return the run's record (empty on a dry run)."""
    need_roles(recipe)
    inputs = {"fdm": digest_of(recipe.fdm), "idm": digest_of(recipe.idm)}
    inputs |= {name: digest_of(path) for name in ("base", "image", "triplets") if (path := getattr(recipe, name))}
    if recipe.triplets:
        inputs["seeds"] = SEED_SCHEME  # parts of another scheme would be mixed with new ones
    stage = Run(recipe.out, "predict", recipe, inputs)
    if stage.is_complete():
        print(f"predict: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    with stage.timed("read"):
        codec = load_codec(recipe.base or recipe.fdm, recipe.device)
        check_draft_length(recipe.search.num_draft_tokens, codec.tokens_per_image)
        if recipe.image:
            codec.need_decoder()
        source = _read_image(recipe.image, codec) if recipe.image else None
        held_out = None if recipe.image else read_held_out(recipe.triplets, codec, limit=recipe.limit or None)
    if dry_run:
        rows = f"{len(recipe.actions)} actions in {recipe.image}" if held_out is None else f"{len(held_out)} triplets"
        print(f"predict: would predict {rows}, best of {recipe.search.num_candidates}, into {recipe.out}")
        return {}
    # Models come last: a wrong recipe or image must not wait for 7B weights.
    with stage.timed("load"):
        roles = read_roles(recipe, codec)
    if source is not None:
        return _predict_image(recipe, stage, source, codec, roles)
    assert held_out is not None
    return _predict_triplets(recipe, stage, held_out, roles)


def _predict_image(
    recipe: PredictRecipe, stage: Run, source_HWC: Pixels, codec: ImageCodec, roles: Roles
) -> dict[str, Any]:
    source_1N = codec.encode(source_HWC[None])
    need_actions(roles, source_1N[0].tolist(), recipe.actions)  # before the folder is made
    stage.start()
    with stage.timed("predict"), progress_bar(len(recipe.actions), "step", "predict") as bar:

        def report_step(step: StepDone) -> None:
            bar.set_postfix_str(f"{step.draws} candidates")
            bar.update()

        with torch.inference_mode():
            rollout = roll_out(
                roles.fdm.model, roles.idm.model, source_1N, [recipe.actions], search=recipe.search,
                sampling=recipe.sampling, seed=recipe.seed, batch_size=recipe.batch_size, on_step=report_step,
                fdm_decoder=roles.fdm.decoder, idm_decoder=roles.idm.decoder,
            )[0]  # fmt: skip
    with stage.timed("write"):
        counts = write_rollout(rollout, source_HWC, codec, stage.out, top=recipe.search.num_return)
    record = stage.finish(counts)
    for number, candidate in enumerate(rollout.best.candidates, 1):
        count = sum(len(prediction.candidates) for prediction in rollout.steps[number - 1].predictions)
        print(
            f"  step {number}: {recipe.actions[number - 1]}: {candidate.score.mean_logprob:.3f} nats/token, "
            f"{candidate.unchanged_share:.0%} of tokens unchanged, best of {count}"
        )
    print(f"predict: {counts['steps']} steps, {counts['draws']} candidates: {stage.out / 'storyboard.png'}")
    return record


def _predict_triplets(recipe: PredictRecipe, stage: Run, held_out: HeldOut, roles: Roles) -> dict[str, Any]:
    # Every action before the first prediction: one that is too long would else fail after hours.
    need_actions(roles, held_out.source_codes[0].tolist(), held_out.actions)
    stage.start()
    with stage.timed("predict"), torch.inference_mode(), progress_bar(len(held_out), "triplet", "predict") as bar:
        for count in predict_triplets(
            roles, held_out, stage.out, search=recipe.search, sampling=recipe.sampling,
            seed=recipe.seed, batch_size=recipe.batch_size,
        ):  # fmt: skip
            bar.update(count)
    # Counted from the files, parts of an earlier attempt included.
    counts = count_parts([path for path, _ in parts_of(held_out, stage.out)])
    record = stage.finish(counts)
    print(
        f"predict: {counts['triplets']} triplets, {counts['draws_each']:.2f} candidates each, "
        f"{counts['unchanged_share']:.0%} of tokens unchanged: {stage.out / 'predictions'}"
    )
    return record


def count_parts(files: list[Path]) -> dict[str, Any]:
    """Count the best predictions: how many, mean candidates, mean log-likelihood a token, mean unchanged share."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["rank", "draws", "logprob", "action_tokens", "unchanged_share"]
    # Without partitioning: a folder such as runs/rank=8 is a name, not a column.
    table = pq.read_table(files, columns=columns, partitioning=None)
    best = table.filter(pc.equal(table["rank"], 0)).to_pandas()
    return {
        "triplets": len(best),
        "rows": table.num_rows,
        "draws": int(best["draws"].sum()),
        "draws_each": float(best["draws"].mean()),
        "mean_logprob": float((best["logprob"] / best["action_tokens"]).mean()),
        "unchanged_share": float(best["unchanged_share"].mean()),
    }


def _read_image(path: str, codec: ImageCodec) -> Pixels:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"image = {path!r}: no such file")
    return fit_square(decode_image(file.read_bytes(), f"image {path}"), codec.side_px)


def main() -> int:
    """Run the command line; return its exit status."""
    return cli_main(PredictRecipe, run, name="predict", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
