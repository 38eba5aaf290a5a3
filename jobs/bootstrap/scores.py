"""Plan what is made of the predicted images after the evaluation: judge, scores, the paper's tables and figures.

Runs nothing and reads no file.
"""

from collections.abc import Callable
from typing import NamedTuple

from jobs import judge, paper, score
from jobs.bootstrap.recipe import BootstrapRecipe, Settings
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.judge.recipe import NANO_JUDGE, JudgeRecipe
from jobs.paper.recipe import ITEMS, PaperRecipe
from jobs.score.recipe import ScoreRecipe
from wm.config import Recipe
from wm.errors import InputError

_IMAGES_PER_TASK = 512
"""Images of the nano world that are scored at a time: they are tiny, and each batch is a file."""
_NANO_ITEMS = [f"table {number}" for number in (2, 3, 4, 5, 6)] + [f"figure {number}" for number in (2, 4, 7, 11)]
"""Of the paper's tables and figures those that the nano world has a form of."""


_NANO_TITLE = "The paper's tables and figures in the toy world"


class ScoreStage(NamedTuple):
    """A stage after the evaluation; its name is that of its table in the recipe."""

    name: str
    run: Callable[..., object]
    kind: type[Recipe]
    keys: Settings
    fixed: Settings


def complete_evaluation(recipe: BootstrapRecipe) -> Settings:
    """Complete the user's keys of the evaluation: its images are kept where a later stage reads them.

    Args:
        recipe: Of the run.

    Returns:
        Keys of wm evaluate.

    Raises:
        InputError: The images are asked for, and dropped.
    """
    names = [name for name, value in recipe.scoring.model_dump().items() if _is_wanted(recipe, value)]
    if names and recipe.evaluate.get("keep_images") is False:
        raise InputError(f"scoring.{names[0]} = true needs the images that evaluate.keep_images = false drops")
    # Said, as a large bench's are not kept otherwise, and an evaluation of an earlier version has none.
    return {**recipe.evaluate, "keep_images": True} if names else recipe.evaluate


def list_score_stages(
    recipe: BootstrapRecipe, evaluation: EvaluateRecipe, triplets: str, evaluated: str
) -> list[ScoreStage]:
    """List the stages, all by the same subsets as the evaluation.

    Args:
        recipe: Of the run.
        evaluation: The evaluation's recipe.
        triplets: Folder of the bench.
        evaluated: Folder of the evaluation.

    Returns:
        The stages that are wanted, in order.
    """
    switches, is_nano = recipe.scoring, _is_nano(recipe)
    # Where the evaluation finds the column out by itself, the others go by their own, which is the paper's.
    subset: Settings = {} if evaluation.subset == "auto" else {"subset": evaluation.subset}
    data: Settings = {"predictions": [evaluated], "triplets": triplets}
    stages = []
    if _is_wanted(recipe, switches.judge):
        # All K of the evaluation: most choices are images that are judged already. At the largest both choose once.
        own: Settings = {"num_candidates": sorted({1, *evaluation.search.num_candidates})}
        own |= {"model": NANO_JUDGE} if is_nano else {}
        own |= {"limit": evaluation.limit}
        stages.append(ScoreStage("judge", judge.run, JudgeRecipe, {**own, **subset, **recipe.judge}, data))
    if _is_wanted(recipe, switches.score):
        own = {"images_per_task": _IMAGES_PER_TASK} if is_nano else {}
        stages.append(ScoreStage("score", score.run, ScoreRecipe, {**own, **subset, **recipe.score}, data))
    if _is_wanted(recipe, switches.paper):
        results = [evaluated, *(f"{recipe.out}/{stage.name}" for stage in stages)]
        # Under the paper's names what this run has trained.
        names = {"C-IDM": "IDM"} | ({"C-FDM w/o LW": "C-FDM, no weights"} if recipe.variants.unweighted else {})
        own = {"names": names}
        own |= {"items": [item for item in _NANO_ITEMS if item in ITEMS], "title": _NANO_TITLE} if is_nano else {}
        fixed: Settings = {"results": results, "triplets": triplets}
        stages.append(ScoreStage("paper", paper.run, PaperRecipe, {**own, **subset, **recipe.paper}, fixed))
    return stages


def _is_nano(recipe: BootstrapRecipe) -> bool:
    return recipe.data.supervised_root is None


def _is_wanted(recipe: BootstrapRecipe, value: bool | None) -> bool:
    """Return whether a stage is run: as asked, else by itself in the nano world, where it costs nothing."""
    by_itself = _is_nano(recipe) and recipe.evaluate.get("keep_images") is not False
    return by_itself if value is None else value
