"""Say what identifies a row of a result, and what must be equal where two folders hold the same one."""

from wm.evaluation.image_scoring import Values
from wm.evaluation.judge.figures import ItemScore
from wm.evaluation.paper.shared_systems import Facts
from wm.evaluation.predictions import PredictionFacts


def facts_of_judgement(score: ItemScore) -> Facts:
    """Return what identifies a judgement, and its scores."""
    key = score.triplet_id, score.run, score.sampling_seed, score.num_candidates, score.repeat
    return key, (score.editing_success, score.minimal_editing, score.failure)


def facts_of_prediction(row: PredictionFacts) -> Facts:
    """Return what identifies a predicted image, and its pixels."""
    # By pixels: the same image may be encoded twice.
    key = row["triplet_id"], row["run"], row["sampling_seed"], row["decoding"], sorted(row["candidates"])
    return key, (row["pixels_sha256"], sorted(row["chosen_at"]))


def facts_of_values(row: Values) -> Facts:
    """Return what identifies a scored image, and its metrics."""
    names = ("triplet_id", "run", "sampling_seed", "decoding", "candidates")
    return tuple(row[name] for name in names), {name: value for name, value in row.items() if name not in names}
