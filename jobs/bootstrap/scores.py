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
from jobs.study import make as study_make
from jobs.study import report as study_report
from jobs.study import simulate as study_simulate
from jobs.tabletop import TabletopRecipe
from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import uri_of
from wm.study.study import STORE_FILE

_IMAGES_PER_TASK = 512
"""Images of the nano world that are scored at a time: they are tiny, and each batch is a file."""
_NANO_ITEMS = [f"table {number}" for number in (2, 3, 4, 5, 6)] + [f"figure {number}" for number in (2, 4, 7, 11)]
"""Of the paper's tables and figures those that the nano world has a form of."""

_NANO_STUDY_ITEMS = 25
"""As the paper's study has, of which the nano world's has one subset in place of five."""
_STUDY_NOISE = 3.0
"""Points of the judge by which people err, a guess."""
_NANO_TITLE = "The paper's tables and figures in the toy world"


class ScoreStage(NamedTuple):
    """A stage after the evaluation; its name is that of its table in the recipe, with dashes."""

    name: str
    run: Callable[..., object]
    kind: type[Recipe]
    keys: Settings
    fixed: Settings

    @property
    def table(self) -> str:
        """Name of its table."""
        return self.name.replace("-", "_")


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
    if switches.study:
        stages += _list_study_stages(recipe, evaluation, subset, data)
    if _is_wanted(recipe, switches.paper):
        # The study's own folder and its votes hold no figures.
        names_read = [stage.name for stage in stages if stage.name not in ("study", "study-votes")]
        results = [evaluated, *(f"{recipe.out}/{name}" for name in names_read)]
        # Under the paper's names what this run has trained.
        names = {"C-IDM": "IDM"} | ({"C-FDM w/o LW": "C-FDM, no weights"} if recipe.variants.unweighted else {})
        own = {"names": names}
        own |= {"items": [item for item in _NANO_ITEMS if item in ITEMS], "title": _NANO_TITLE} if is_nano else {}
        fixed: Settings = {"results": results, "triplets": triplets}
        stages.append(ScoreStage("paper", paper.run, PaperRecipe, {**own, **subset, **recipe.paper}, fixed))
    return stages


def _list_study_stages(
    recipe: BootstrapRecipe, evaluation: EvaluateRecipe, subset: Settings, data: Settings
) -> list[ScoreStage]:
    """List the stages of a study whose participants are simulated by the judge's scores."""
    if not _is_wanted(recipe, recipe.scoring.judge):
        raise InputError("scoring.study = true needs the scores of the judge, and scoring.judge = false drops them")
    if uri_of(recipe.out) is not None:
        raise InputError("scoring.study = true needs a local disk for its votes, and out is in a bucket")
    # The systems of the paper's study that a run has: forward models of the first round, and the base as it is.
    systems = ["C-FT", *(["C-FDM, no weights"] if recipe.variants.unweighted else []), "C-FDM"]
    own: Settings = {"systems": [evaluation.zero_shot_label, *systems] if evaluation.zero_shot else systems}
    if _is_nano(recipe):
        num_test = recipe.tabletop.get("test", TabletopRecipe.model_fields["test"].default)
        # Not more than there are predictions for.
        counts = [_NANO_STUDY_ITEMS, num_test, evaluation.limit]
        own["per_subset"] = min(count for count in counts if isinstance(count, int) and count)
    folders = {name: f"{recipe.out}/{name}" for name in ("study", "study-votes", "judge")}
    votes: Settings = {"study": folders["study"], "scores": folders["judge"]}
    store = f"{folders['study-votes']}/{STORE_FILE}"
    read: Settings = {"study": folders["study"], "store": store, "judge": folders["judge"]}
    voting: Settings = {"noise": _STUDY_NOISE, **recipe.study_votes}
    return [
        ScoreStage("study", study_make.run, study_make.StudyMakeRecipe, {**own, **subset, **recipe.study}, data),
        ScoreStage("study-votes", study_simulate.run, study_simulate.StudySimulateRecipe, voting, votes),
        ScoreStage("study-report", study_report.run, study_report.StudyReportRecipe, recipe.study_report, read),
    ]


def _is_nano(recipe: BootstrapRecipe) -> bool:
    return recipe.data.supervised_root is None


def _is_wanted(recipe: BootstrapRecipe, value: bool | None) -> bool:
    """Return whether a stage is run: as asked, else by itself in the nano world, where it costs nothing."""
    by_itself = _is_nano(recipe) and recipe.evaluate.get("keep_images") is not False
    return by_itself if value is None else value
