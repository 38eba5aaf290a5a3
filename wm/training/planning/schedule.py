"""The learning rate of a step, and which parts of a run's schedule its length does not reach.

Not known here: rows, models, optimisers.
"""

import math

from wm.config import Recipe
from wm.training.recipe import TrainRecipe

LONG_WARMUP = 0.2
"""A warm-up of more than this share of a run is reported; 3 to 10 % are usual."""
SUGGESTED_RATIO = 0.05


def learning_rate(step: int, *, peak: float, num_steps: int, warmup_steps: int, floor: float) -> float:
    """Return the rate of a step: linear up to ``peak`` over the warm-up, then half a cosine down.

    Args:
        step: Counted from 0.
        peak: Highest rate.
        num_steps: Length of the run in steps.
        warmup_steps: Steps of the warm-up; the last of them has the peak rate.
        floor: Rate at the end as a fraction of the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    # The last step of the run is one before the end of the cosine.
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def peak_share(recipe: TrainRecipe, num_steps: int) -> float:
    """Return the highest learning rate that a run reaches.

    Args:
        recipe: The schedule.
        num_steps: Length of the run.

    Returns:
        Fraction of ``optim.lr``.
    """
    warmup_steps = recipe.num_warmup_steps(num_steps)
    return 1.0 if num_steps >= warmup_steps else num_steps / warmup_steps


def schedule_warnings(recipe: TrainRecipe, num_steps: int) -> list[str]:
    """Return a line, with its remedy, for each part of the schedule that a run does not reach.

    Args:
        recipe: The schedule.
        num_steps: Length of the run.
    """
    return [*_warmup_warnings(recipe, num_steps), *_interval_warnings(recipe, num_steps), *_scale_warnings(recipe)]


def warmup_warning(warmup_steps: int, num_steps: int, peak: float, *, name: str, remedy: str) -> str:
    """Return what is wrong with a warm-up for a run of so many steps, or an empty text.

    Args:
        warmup_steps: Steps of the warm-up.
        num_steps: Length of the run in steps.
        peak: Highest rate that the run reaches, as a fraction of the peak that its recipe asks for.
        name: How the warm-up is given, such as ``optim.warmup_steps = 500``.
        remedy: What to give instead.
    """
    # A warm-up of one step has the peak at once: there is nothing that a shorter one would gain.
    if warmup_steps <= max(1, LONG_WARMUP * num_steps):
        return ""
    if warmup_steps > num_steps:
        return (
            f"{name} is longer than the run of {num_steps:,} steps: the learning rate gets no further than "
            f"{_percent(peak)} of its peak; give {remedy}"
        )
    return f"{name} takes {warmup_steps / num_steps:.0%} of the run's {num_steps:,} steps; give {remedy}"


def _percent(share: float) -> str:
    """Write a share of less than 1 so that it reads neither 0 nor 100 %."""
    # Below .05 % one digit after the point would be a false zero, above 99.95 % a false 100 %.
    return f"{share:.1%}" if 0.0005 <= share < 0.9995 else f"{100 * share:.{12 if share > 0.5 else 2}g}%"


def _warmup_warnings(recipe: TrainRecipe, num_steps: int) -> list[str]:
    warmup_steps = recipe.num_warmup_steps(num_steps)
    short = f"{math.ceil(SUGGESTED_RATIO * num_steps):,} of {num_steps:,} steps"
    # The remedy is given in the words in which the warm-up was given.
    if recipe.optim.warmup_ratio is None:
        name = f"optim.warmup_steps = {warmup_steps:,}"
        # Enough steps for the warm-up that was asked for to be a fifth of the run.
        enough = math.ceil(warmup_steps / LONG_WARMUP)
        remedy = (
            f"optim.warmup_steps=0 optim.warmup_ratio={SUGGESTED_RATIO:g} ({short}), or train for {enough:,} steps or "
            "more"
        )
    else:
        name = f"optim.warmup_ratio = {recipe.optim.warmup_ratio:g}"
        remedy = f"optim.warmup_ratio={SUGGESTED_RATIO:g} ({short})"
    peak = peak_share(recipe, num_steps)
    line = warmup_warning(warmup_steps, num_steps, peak, name=name, remedy=remedy)
    return [line] if line else []


def _scale_warnings(recipe: TrainRecipe) -> list[str]:
    """Warn of a loss whose scale is not that of a mean over tokens, for which the learning rate was chosen."""
    if recipe.task != "fdm" or not recipe.recognition.enabled or recipe.recognition.normalise:
        return []
    # AdamW takes a constant factor out; clipping, and rows that count unequally, it does not.
    limit = recipe.optim.max_grad_norm
    clipping = f"optim.max_grad_norm = {limit:g} clips another share of the steps" if limit else "nothing is clipped"
    return [
        "recognition.normalise = false multiplies the loss and its gradients by the raw squared distances: the "
        f"effective learning rate is not that of optim.lr = {recipe.optim.lr:g} with normalised weights, and {clipping}"
    ]


def _interval_warnings(recipe: TrainRecipe, num_steps: int) -> list[str]:
    lines = []
    consequences = {
        "checkpoint.every_steps": "no checkpoint is written before the end: a killed run would start again at step 1",
        "eval.every_steps": "the only evaluation is the one at the end",
        "eval.sample_every_steps": "the only sample is the one at the end",
        "logging.every_steps": "metrics.jsonl and the progress bar move only at the end",
    }
    for name, consequence in consequences.items():
        table, _, key = name.partition(".")
        settings: Recipe = getattr(recipe, table)
        every: int = getattr(settings, key)
        # At a default that is no use for a short run, only what may be lost is worth a line.
        is_meant = key in settings.model_fields_set or table == "checkpoint"
        if is_meant and every >= num_steps > 1:
            lines.append(f"{name} = {every:,} is not reached before the end of {num_steps:,} steps: {consequence}")
    return lines
