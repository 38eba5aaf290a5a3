"""An image editor of diffusers as a server uses it: its calls take turns in the model thread.

A call may take a minute, and nothing else is done in the thread meanwhile: it is heard of at every denoising step.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from serve_apps import metrics
from serve_apps.model_thread import ModelThread
from serve_apps.results import ModelEntry
from serve_apps.served_models import Samples
from wm.dynamics import ModelKind, SampleFailure, Sampling, Start
from wm.errors import InputError

if TYPE_CHECKING:
    from wm.dynamics.editor_forward import EditorForward


class EditorModel:
    """An image editor of diffusers.

    Args:
        forward: The pipeline as a forward model.
        side_px: Of the squares that it is given and makes.
        max_silence_s: How long a call may last without a denoising step before it is taken for stuck.
    """

    kind: ClassVar[ModelKind] = "editor"

    def __init__(self, forward: "EditorForward", side_px: int, max_silence_s: float) -> None:
        self.forward, self.side_px = forward, side_px
        self._max_silence_s = max_silence_s
        # When the call at work was last heard of; None between calls.
        self._heard_s: float | None = None

    def describe(self, task: str) -> ModelEntry:
        """Describe it for ``GET /v1/models``: its family is the pipeline's class, and it has neither codec nor tokens.

        Args:
            task: What it does here.
        """
        # What it has not is absent: a codec, tokens.
        family = type(self.forward.editor.pipeline).__name__
        return {
            "task": task, "kind": self.kind, "family": family, "base": self.forward.model_id, "side_px": self.side_px,
        }  # fmt: skip

    @property
    def is_working(self) -> bool:
        """Whether a call is at work: other work waits for it, for as long as a minute."""
        return self._heard_s is not None

    async def check_health(self, thread: ModelThread) -> None:
        """Touch the weights of each part, in its turn; raise what that raises.

        Args:
            thread: Of the models.
        """
        await thread.call(_touch_weights, self)

    def check_progress(self) -> None:
        """Raise TimeoutError if a call is at work, and has made no denoising step for too long."""
        # Read once: the model thread sets it anew meanwhile.
        heard_s = self._heard_s
        if heard_s is not None and time.monotonic() - heard_s > self._max_silence_s:
            raise TimeoutError(f"the pipeline has made no denoising step for {self._max_silence_s:g} s")

    def check_action(self, action: str) -> None:
        """Check that the pipeline reads all of an action; called in the model thread.

        Args:
            action: In words.

        Raises:
            InputError: It cannot, or would cut it.
        """
        self.forward.check_action(action)

    async def sample(self, thread: ModelThread, start: Start, candidates: range) -> Samples:
        """Edit the source once a candidate, in calls between which others have their turn.

        Args:
            thread: Of the models.
            start: Source, action and seed.
            candidates: Their numbers.

        Returns:
            An image of each, or why there is none.
        """
        is_left = threading.Event()
        # As many images as the pipeline makes in one call.
        step = self.forward.editor.batch_size
        samples: Samples = []
        try:
            for first in range(candidates.start, candidates.stop, step):
                turn = _Turn(start, range(first, min(first + step, candidates.stop)), is_left)
                # One call at a time: those of other requests are not waited for in a row.
                samples += await thread.batch(_edit, self, turn, max_items=1)
        finally:
            # A client that left frees the model at the next denoising step.
            is_left.set()
        for failure in (sample for sample in samples if isinstance(sample, SampleFailure)):
            metrics.record(metrics.FAILED, reason=failure.reason)
        return samples

    def hear(self, is_left: threading.Event) -> None:
        """Note that the call at work proceeds; called in the model thread.

        Args:
            is_left: Set once nobody waits for the images any more.

        Raises:
            InputError: Nobody does.
        """
        self._heard_s = time.monotonic()
        # An error is the only way to end a call from within.
        if is_left.is_set():
            raise InputError("nobody waits for these images any more")

    def rest(self) -> None:
        """Note that no call is at work."""
        self._heard_s = None


@dataclass(frozen=True)
class _Turn:
    """Candidates of a request that are made in one call. ``is_left``: set once nobody waits for them."""

    start: Start
    candidates: range
    is_left: threading.Event


def _edit(model: EditorModel, turns: Sequence[_Turn]) -> list[Samples]:
    results = []
    for turn in turns:
        start = turn.start
        try:
            model.hear(turn.is_left)
            samples = model.forward.sample(
                [start.source], [start.action], candidates=turn.candidates, sampling=Sampling(), seeds=[start.seed],
                on_progress=lambda *_, is_left=turn.is_left: model.hear(is_left),
            )  # fmt: skip
        finally:
            # However it ended: a health check must not take it for stuck.
            model.rest()
        results.append(samples.candidates[0])
    return results


@torch.no_grad()
def _touch_weights(model: EditorModel) -> None:
    # A full denoising would take as long as an edit; a number of each part says that its device answers.
    for part in model.forward.editor.pipeline.components.values():
        weight = next(part.parameters(), None) if isinstance(part, torch.nn.Module) else None
        if weight is not None:
            weight.flatten()[:1].float().sum().item()
