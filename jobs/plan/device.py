"""Choose whether cores or GPUs measure exact motion, by their measured rates."""

from collections.abc import Callable, Mapping

from jobs.plan.recipe import PlanRecipe
from wm.datasets.planning import Estimate, Rates, rates_from
from wm.errors import InputError


def choose_device(
    recipe: PlanRecipe, measured: Mapping[str, float], on_cores: Rates, estimate: Callable[[Rates], Estimate]
) -> tuple[Rates, str]:
    """Compare the hours of an annotation with motion on its cores and on its GPUs.

    Args:
        recipe: With ``keyframes.motion=farneback``.
        measured: Rates by name.
        on_cores: The rates with motion on cores.
        estimate: Estimates the annotation by rates.

    Returns:
        The rates of the quicker way, and a note that names it; cores where there is nothing to compare.
    """
    if recipe.resources.annotate_on != "gpu":
        return on_cores, "keyframes.device = cpu: a plan whose annotators run on cores counts no GPU"
    # What was never measured is not chosen.
    try:
        on_gpus = rates_from(measured, recipe.keyframes.motion, recipe.shape, on_gpu=True)
    except InputError as error:
        return on_cores, f"keyframes.device = cpu: cuda is not compared, {str(error).partition('. There are')[0]}"
    core_hours, gpu_hours = estimate(on_cores).hours, estimate(on_gpus).hours
    if gpu_hours < core_hours:
        return on_gpus, f"keyframes.device = cuda: {gpu_hours:,.2f} h, with cpu {core_hours:,.2f} h"
    return on_cores, f"keyframes.device = cpu: {core_hours:,.2f} h, with cuda {gpu_hours:,.2f} h"
