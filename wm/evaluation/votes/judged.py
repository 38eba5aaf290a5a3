"""Read a judge's final scores by system and triplet, to be held against votes. Knows no vote."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from wm.errors import InputError
from wm.runs import read_run


@dataclass(frozen=True)
class JudgeScores:
    """A judge's scores.

    Attributes:
        model: Name of the judge.
        finals: System → triplet → final score, the mean over training seeds, sampling seeds and repeats.
    """

    model: str
    finals: dict[str, dict[str, float]]


def read_judge(folder: str | Path) -> JudgeScores:
    """Read the final scores of single candidates, which is what people see.

    Args:
        folder: Output folder of ``wm judge``.

    Returns:
        The scores; triplets whose judgements all failed are absent.

    Raises:
        InputError: The folder is no finished judging, or holds no score at one candidate.
    """
    # Imports torch, which a report without a judge does not need.
    from wm.evaluation.judge.score_files import read_scores

    record = read_run(folder) or {}
    if record.get("stage") != "judge":
        raise InputError(f"judge = {str(folder)!r:.300}: expected the output folder of a finished wm judge")
    gathered: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    # At one candidate nothing is chosen.
    for score in read_scores(folder):
        if score.num_candidates == 1 and score.final is not None:
            gathered[score.system][score.triplet_id].append(score.final)
    if not gathered:
        raise InputError(f"judge = {str(folder)!r:.300} holds no score at num_candidates = 1")
    finals = {system: {key: mean(values) for key, values in by_id.items()} for system, by_id in gathered.items()}
    return JudgeScores(str(record.get("recipe", {}).get("model", "")), finals)
