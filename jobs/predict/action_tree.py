"""Write what a tree of actions gives: an image a branch, ``tree.json``, and the tree as one image."""

from collections.abc import Sequence
from pathlib import Path

from jobs.predict.rollout_image import ImageWriter, describe_codes, describe_failures
from wm.dynamics import Branch, Observation
from wm.evaluation.paper.drawing import save_png
from wm.evaluation.paper.figures.action_tree import TREE_FILE, build_action_tree, load_action_tree
from wm.images import Pixels
from wm.runs import write_json

TREE_IMAGE = "tree.png"


def write_tree(tree: Sequence[Sequence[Branch]], source: Observation, source_HWC: Pixels, out: Path) -> dict[str, int]:
    """Write the images, ``tree.json`` and ``tree.png``.

    Args:
        tree: Branches of each level.
        source: As the models are given it.
        source_HWC: uint8 RGB (H, W, 3), as read.
        out: Folder to write into.

    Returns:
        Counts for ``run.json``: levels, branches, draws; ``withheld`` where an editor gave no image.
    """
    writer = ImageWriter(out)
    description = writer.write_source(source, source_HWC)
    levels = [
        [_describe_branch(branch, writer, f"branches/{depth}-{number}.png") for number, branch in enumerate(level, 1)]
        for depth, level in enumerate(tree, 1)
    ]
    write_json(out / TREE_FILE, {"source": description, "levels": levels})
    # Of the file itself: the paper's figure is read from it as well.
    (out / TREE_IMAGE).write_bytes(save_png(build_action_tree(load_action_tree(out))))
    # Branches that share a start share its candidates, which count once.
    predictions = {id(branch.prediction): branch.prediction for level in tree for branch in level}
    withheld = sum(len(prediction.failures) for prediction in predictions.values())
    num_samples = withheld + sum(len(prediction.candidates) for prediction in predictions.values())
    counts = {"levels": len(tree), "branches": sum(map(len, tree)), "draws": num_samples}
    return counts | ({"withheld": withheld} if withheld else {})


def _describe_branch(branch: Branch, writer: ImageWriter, name: str) -> dict[str, object]:
    record: dict[str, object] = {"parent": branch.parent, "action": branch.action}
    if not branch.prediction.candidates:
        return record | {"image": None, **describe_failures(branch.prediction)}
    best = branch.prediction.best
    return record | {
        "image": writer.write(best.observation, name),
        "logprob": best.score.logprob,
        "mean_logprob": best.score.mean_logprob,
        "tokens": best.score.num_tokens,
        "unchanged_share": best.unchanged_share,
        "seed": best.seed,
        "candidate": best.index,
        "draws": len(branch.prediction.candidates) + len(branch.prediction.failures),
        **describe_failures(branch.prediction),
        **describe_codes(best.observation),
    }
