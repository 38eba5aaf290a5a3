"""Print what ``predict`` would do and has done. Knows nothing of how it is done."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.predict.recipe import PredictRecipe
from jobs.predict.rollout_image import name_parts
from wm.dynamics import Branch, Rollout
from wm.files.mirror import shown


def print_complete(recipe: PredictRecipe) -> None:
    """Print that nothing is left to do."""
    print(f"predict: already complete in {shown(recipe.out)}")


def print_plan(recipe: PredictRecipe, num_triplets: int) -> None:
    """Print what would be predicted.

    Args:
        recipe: As it was given.
        num_triplets: Triplets to predict for; not used where the source is an image.
    """
    work = f"{recipe.num_branches} images of a tree" if recipe.tree else f"{len(recipe.actions)} actions"
    source = f"{work} in {shown(recipe.image)}" if recipe.image else f"{num_triplets} triplets"
    print(f"predict: would predict {source}, best of {recipe.search.num_candidates}, into {shown(recipe.out)}")


def print_rollout(rollout: Rollout, counts: Mapping[str, int], out: Path) -> None:
    """Print each step's best candidate and where the storyboard is.

    Args:
        rollout: All steps.
        counts: As they are in ``run.json``.
        out: Folder of the run.
    """
    for number, (candidate, step) in enumerate(zip(rollout.best.candidates, rollout.steps, strict=True), 1):
        num_candidates = sum(len(prediction.candidates) for prediction in step.predictions)
        print(
            f"  step {number}: {step.action}: {candidate.score.mean_logprob:.3f} nats/token, "
            f"{candidate.unchanged_share:.0%} of {name_parts(candidate)} unchanged, best of {num_candidates}"
        )
    print(f"predict: {counts['steps']} steps, {counts['draws']} candidates: {shown(out / 'storyboard.png')}")


def print_tree(tree: Sequence[Sequence[Branch]], counts: Mapping[str, int], out: Path) -> None:
    """Print the paths of the tree with the score of each action, and where its image is.

    Args:
        tree: Branches of each level.
        counts: As they are in ``run.json``.
        out: Folder of the run.
    """
    leaves = [(len(tree) - 1, number) for number in range(len(tree[-1]))]
    # A path ends early where the forward model gave no image.
    leaves += [
        (depth, number)
        for depth, level in enumerate(tree[:-1])
        for number, branch in enumerate(level)
        if not branch.prediction.candidates
    ]
    for depth, number in leaves:
        # From the leaf back to the source.
        steps, index = [], number
        for level in reversed(tree[: depth + 1]):
            branch = level[index]
            steps.append(f"{branch.action} ({_describe(branch)})")
            index = branch.parent
        print("  " + " → ".join(reversed(steps)))
    images = sum(bool(branch.prediction.candidates) for level in tree for branch in level)
    print(f"predict: {images} images, {counts['draws']} candidates: {shown(out / 'tree.png')}")


def _describe(branch: Branch) -> str:
    prediction = branch.prediction
    if not prediction.candidates:
        return prediction.explain_failures()
    return f"{prediction.best.score.mean_logprob:.3f} nats/token"


def print_triplets(counts: Mapping[str, object], out: Path, parts: str = "tokens") -> None:
    """Print the counts of predictions for triplets.

    Args:
        counts: As they are in ``run.json``.
        out: Folder of the run.
        parts: What an unchanged share is a share of.
    """
    # Of no prediction there is no mean.
    means = ""
    if "draws_each" in counts:
        means = f"{counts['draws_each']:.2f} candidates each, {counts['unchanged_share']:.0%} of {parts} unchanged"
    print(f"predict: {counts['triplets']} triplets, {means or 'no image'}: {shown(out / 'predictions')}")
    withheld = counts.get("withheld")
    if isinstance(withheld, Mapping):
        reasons = ", ".join(f"{reason} {count}" for reason, count in withheld.items())
        print(
            f"  without an image: {sum(withheld.values())} candidates ({reasons}), all of "
            f"{counts['triplets_without_image']} triplets: {shown(out / 'rejects')}"
        )
