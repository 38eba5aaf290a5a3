"""Measure pixel-reading inverse models: what kept features and a shared source are worth, in CPU seconds.

Verification scores one action between a source and each of its candidates; annotation proposes an action for each two
neighbours of a clip's key-frames. Both are measured beside the plain way, in which the processor and the model read
both images of every pair anew. The model is a random Qwen3-VL in the real layout: costs depend on shapes, not weights.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from jobs.benchmark.harness import (
    CommonRecipe,
    Figures,
    check_out,
    print_ratios,
    spread,
    torch_threads,
    turns,
    write_record,
)
from jobs.benchmark.pixels_model import ACTIONS, PixelShape, write_qwen3_vl
from jobs.benchmark.scoring_data import made_image
from wm.dynamics.observation import Observation
from wm.dynamics.pixel_inverse import PixelInverse, load_pixel_inverse
from wm.errors import InputError
from wm.sampling.texts import GREEDY

PACKAGES = ("wm", "numpy", "pillow", "torch", "transformers")


class BenchmarkRecipe(CommonRecipe):
    """Sizes of model, images and work."""

    width: int = Field(default=512, ge=64, multiple_of=64)
    """Width of the decoder."""
    layers: int = Field(default=8, ge=1)
    """Layers of the decoder."""
    vision_width: int = Field(default=384, ge=64, multiple_of=64)
    """Width of the vision encoder."""
    vision_layers: int = Field(default=8, ge=1)
    """Layers of the vision encoder."""
    side_px: int = Field(default=256, ge=32, multiple_of=32)
    """Width and height of images; a token is 32 pixels."""
    candidates: int = Field(default=8, ge=2, le=64)
    """Candidates of a source."""
    frames: int = Field(default=9, ge=3)
    """Key-frames of a clip."""
    max_new_tokens: int = Field(default=8, ge=1)
    """Tokens of a proposed action: random weights rarely end one before."""
    rounds: int = Field(default=9, ge=1)
    """Turns of each kind of work."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure, write ``recipe.out``, and return the record.

    Args:
        recipe: Sizes, and where the record goes.
        dry_run: Print what would be measured; the record is empty.

    Raises:
        InputError: The record cannot be written.
    """
    check_out(recipe.out)
    if recipe.quick:
        small = {"width": 64, "layers": 2, "vision_width": 64, "vision_layers": 2, "side_px": 64, "rounds": 1}
        recipe = recipe.model_copy(update=small | {"candidates": 3, "frames": 3, "max_new_tokens": 2})
    if dry_run:
        print(f"benchmark pixels: would score {recipe.candidates} candidates, and propose for {recipe.frames} frames")
        return {}
    # One thread: CPU seconds of several depend on what else runs.
    with tempfile.TemporaryDirectory(prefix="wm-benchmark-") as name, torch_threads(1):
        shape = PixelShape(recipe.width, recipe.layers, recipe.vision_width, recipe.vision_layers)
        write_qwen3_vl(Path(name) / "model", shape, recipe.side_px)
        trial = Trial(recipe, load_pixel_inverse(Path(name) / "model"))
        seconds = turns(trial.work(), recipe.rounds)
    spreads = {name: spread(values) for name, values in seconds.items()}
    # Medians: one turn may fall into another process's burst.
    medians = {name: figures["median"] for name, figures in spreads.items()}
    ratios, num_pairs = compute_ratios(medians), recipe.frames - 1
    record = write_record(
        recipe.out,
        "pixels",
        PACKAGES,
        ratios=ratios,
        settings=recipe.settings(),
        parameters=trial.num_parameters,
        tokens=trial.count_tokens(),
        cpu_seconds=spreads,
        annotate_s_per_pair={name: round(medians[name] / num_pairs, 4) for name in ("annotate", "annotate_plain")},
    )
    print_ratios(ratios, spreads)
    return record


def compute_ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Compute the ratios of a record, by name.

    Args:
        medians: CPU seconds by kind of work.
    """
    return {
        "pixels_all_over_one": medians["all"] / medians["one"],
        "pixels_all_over_one_plain": medians["all_plain"] / medians["one_plain"],
        "pixels_all_over_one_large_source": medians["all_large_source"] / medians["one_large_source"],
        "pixels_plain_over_kept": medians["all_plain"] / medians["all"],
        "pixels_annotate_plain_over_kept": medians["annotate_plain"] / medians["annotate"],
    }


@dataclass(frozen=True)
class Trial:
    """Work of one model on made images."""

    recipe: BenchmarkRecipe
    inverse: PixelInverse

    def __post_init__(self) -> None:
        """Check that what is measured is used at all."""
        if not self.inverse.shortcuts.shares_prefix:
            raise InputError("this version of transformers does not let features be kept: nothing to measure")

    def work(self) -> dict[str, Callable[[], object]]:
        """Return the kinds of work by name: candidates of one source, the first alone, and a clip."""
        side_px, count = self.recipe.side_px, self.recipe.candidates
        images = [Observation.from_pixels(made_image(seed, side_px)) for seed in range(count + 1)]
        # A photograph beside the smaller images that editors make.
        large = Observation.from_pixels(made_image(1000, 2 * side_px))
        frames = [Observation.from_pixels(made_image(2000 + seed, side_px)) for seed in range(self.recipe.frames)]
        # Without shortcuts: what a script over transformers does.
        plain = PixelInverse(self.inverse.scorer)

        def verify(inverse: PixelInverse, source: Observation, candidates: list[Observation]) -> object:
            # A new source and new candidates, as every request has.
            self._forget()
            rows = len(candidates)
            return inverse.score([source] * rows, candidates, [ACTIONS[0]] * rows, batch_size=rows)

        def annotate(inverse: PixelInverse) -> object:
            self._forget()
            # All pairs of the clip in one batch, as the annotator does.
            pairs = len(frames) - 1
            return inverse.propose(
                frames[:-1], frames[1:], sampling=GREEDY, seeds=[0] * pairs, batch_size=pairs,
                max_new_tokens=self.recipe.max_new_tokens,
            )  # fmt: skip

        return {
            "one": lambda: verify(self.inverse, images[0], images[1:2]),
            "all": lambda: verify(self.inverse, images[0], images[1:]),
            "one_plain": lambda: verify(plain, images[0], images[1:2]),
            "all_plain": lambda: verify(plain, images[0], images[1:]),
            "one_large_source": lambda: verify(self.inverse, large, images[1:2]),
            "all_large_source": lambda: verify(self.inverse, large, images[1:]),
            "annotate": lambda: annotate(self.inverse),
            "annotate_plain": lambda: annotate(plain),
        }

    def count_tokens(self) -> dict[str, int]:
        """Count the tokens of an image and of the chat around two of them: what the ratios are made of."""
        reader = self.inverse.shortcuts.reader
        assert reader is not None  # __post_init__ has looked
        image = reader.store.read([Observation.from_pixels(made_image(0, self.recipe.side_px))])[0]
        words = len(self.inverse.scorer.processor.tokenizer(self.inverse.scorer.prefix)["input_ids"]) - 2
        return {"image": len(image.features), "chat": words, "action": len(ACTIONS[0].split()) + 1}

    @property
    def num_parameters(self) -> int:
        """Numbers of the model's weights."""
        return sum(parameter.numel() for parameter in self.inverse.scorer.model.parameters())

    def _forget(self) -> None:
        """Drop all kept features: every turn begins with images that nobody has seen."""
        reader = self.inverse.shortcuts.reader
        # The plain way keeps nothing.
        if reader is not None:
            reader.store.clear()
