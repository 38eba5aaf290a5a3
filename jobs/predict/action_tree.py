"""Write what a tree of actions gives: an image a branch, ``tree.json``, and the tree as one image."""

from collections.abc import Sequence
from pathlib import Path

from jobs.predict.rollout_image import ImageWriter
from wm.dynamics import Branch
from wm.dynamics.observation import CodesRow
from wm.evaluation.paper.drawing import save_png
from wm.evaluation.paper.figures.action_tree import TREE_FILE, build_action_tree, load_action_tree
from wm.images import Pixels, encode_png
from wm.models import ImageCodec
from wm.runs import write_json

TREE_IMAGE = "tree.png"


def write_tree(
    tree: Sequence[Sequence[Branch]], source_N: CodesRow, source_HWC: Pixels, codec: ImageCodec, out: Path
) -> dict[str, int]:
    """Write the images, ``tree.json`` and ``tree.png``.

    Args:
        tree: Branches of each level.
        source_N: Codes of the source.
        source_HWC: uint8 RGB (side, side, 3), as read.
        codec: Decodes the branches.
        out: Folder to write into.

    Returns:
        Counts for ``run.json``: levels, branches, draws.
    """
    writer = ImageWriter(codec, out)
    (out / "source.png").write_bytes(encode_png(source_HWC))
    # As the models see it: what the codec loses is no mistake of theirs.
    writer.write(source_N, "source-codes.png")
    levels = [
        [_describe_branch(branch, writer, f"branches/{depth}-{number}.png") for number, branch in enumerate(level, 1)]
        for depth, level in enumerate(tree, 1)
    ]
    source = {"image": "source.png", "decoded": "source-codes.png", "codes": list(source_N)}
    write_json(out / TREE_FILE, {"source": source, "levels": levels})
    # Of the file itself: the paper's figure is read from it as well.
    (out / TREE_IMAGE).write_bytes(save_png(build_action_tree(load_action_tree(out))))
    # Branches that share a start share its candidates, which count once.
    predictions = {id(branch.prediction): branch.prediction for level in tree for branch in level}
    num_samples = sum(len(prediction.candidates) for prediction in predictions.values())
    return {"levels": len(tree), "branches": sum(map(len, tree)), "draws": num_samples}


def _describe_branch(branch: Branch, writer: ImageWriter, name: str) -> dict[str, object]:
    best = branch.prediction.best
    return {
        "parent": branch.parent,
        "action": branch.action,
        "image": writer.write(best.codes, name),
        "logprob": best.score.logprob,
        "mean_logprob": best.score.mean_logprob,
        "tokens": best.score.num_tokens,
        "unchanged_share": best.unchanged_share,
        "seed": best.seed,
        "candidate": best.index,
        "draws": len(branch.prediction.candidates),
        "codes": list(best.codes),
    }
