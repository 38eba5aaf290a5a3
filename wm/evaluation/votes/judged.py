"""Read a judge's final scores by system and triplet, to be held against votes. Knows no vote."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from wm.errors import InputError
from wm.runs import read_run


@dataclass(frozen=True)
class ShownImages:
    """Which of a system's images a study shows: of one training run and sampling seed, the choice among ``k``."""

    run: int
    sampling_seed: int
    k: int

    def __str__(self) -> str:
        return f"run {self.run}, sampling seed {self.sampling_seed}, num_candidates {self.k}"


@dataclass(frozen=True)
class JudgeScores:
    """A judge's scores.

    Attributes:
        model: Name of the judge.
        finals: System → triplet → final score, the mean over repeats of the question.
    """

    model: str
    finals: dict[str, dict[str, float]]


def read_judge(folder: str | Path, images: Mapping[str, ShownImages] | None = None) -> JudgeScores:
    """Read the final scores of the images that people saw.

    Args:
        folder: Output folder of ``wm judge``.
        images: System → which of its images the study shows; None, or a system that is not among them: those at one
            candidate, averaged over training and sampling seeds.

    Returns:
        The scores; triplets whose judgements all failed are absent.

    Raises:
        InputError: The folder is no finished judging, or holds no score of these images.
    """
    # Imports torch, which a report without a judge does not need.
    from wm.evaluation.judge.score_files import read_scores

    # Half a judging would leave systems out in silence.
    record = read_run(folder) or {}
    if record.get("stage") != "judge":
        raise InputError(f"judge = {str(folder)!r:.300}: expected the output folder of a finished wm judge")
    gathered: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    scores = read_scores(folder)
    for score in scores:
        own = (images or {}).get(score.system)
        is_shown = (
            score.num_candidates == 1
            if own is None
            else (score.run, score.sampling_seed, score.num_candidates) == (own.run, own.sampling_seed, own.k)
        )
        # Another image's score says nothing of what people saw. Repeats of the question are averaged.
        if is_shown and score.final is not None:
            gathered[score.system][score.triplet_id].append(score.final)
    if not gathered:
        expected = "; ".join(f"{name}: {of}" for name, of in (images or {}).items()) or "num_candidates = 1"
        raise InputError(f"judge = {str(folder)!r:.300} holds no score of the images that were shown ({expected:.300})")
    finals = {system: {key: mean(values) for key, values in by_id.items()} for system, by_id in gathered.items()}
    return JudgeScores(str(record.get("recipe", {}).get("model", "")), finals)
