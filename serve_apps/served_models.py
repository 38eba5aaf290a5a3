"""The models of a replica as its servers use them: those with image codes, and those that read pixels.

Each describes itself, says that it is well, and does its part of a request in the model thread. Image editors are in
:mod:`serve_apps.served_editor`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import Tensor

from serve_apps import metrics
from serve_apps.model_thread import ModelThread
from serve_apps.names import IDM
from serve_apps.results import ModelEntry
from wm.dynamics import (
    CodeInverse,
    ModelKind,
    Observation,
    Role,
    SampleFailure,
    Sampling,
    Start,
    observe_codes,
    speculate_observations,
)
from wm.dynamics.fdm import forward_prefix
from wm.models import ImageCodec
from wm.models.vlm import UnifiedVLM
from wm.sampling import ImageEngine, ImageRequest, ModelRunner, StepOutput

if TYPE_CHECKING:  # processors are for those who serve them
    from wm.dynamics.pixel_inverse import PixelInverse

# An image grows in so many parts at least, where it has as many tokens: requests join, and progress is reported,
# often enough for an early preview, seldom enough to cost nothing.
MIN_UPDATES = 16
# Given the first candidate's codes so far, int64 (n,).
OnTokens: TypeAlias = Callable[[Tensor], object]
# Of candidates: an image, or why there is none.
Samples: TypeAlias = list[Observation | SampleFailure]


@dataclass(frozen=True, eq=False)
class CodeModel:
    """A unified model, what decodes with it, and the codec of its images."""

    vlm: UnifiedVLM
    runner: ModelRunner
    codec: ImageCodec
    kind: ClassVar[ModelKind] = "codes"

    @cached_property
    def pool(self) -> ImageEngine:
        """The engine's scheduler, in which the images of all requests for this model grow together."""
        line_tokens = max(1, self.vlm.tokens_per_image // MIN_UPDATES)
        return ImageEngine(self.vlm, self.runner, line_tokens=line_tokens)

    @cached_property
    def inverse(self) -> CodeInverse:
        """The same as an inverse model."""
        return CodeInverse(Role(self.vlm, self.runner), self.codec)

    @property
    def side_px(self) -> int:
        """Of the square images that it reads and writes."""
        return self.codec.side_px

    def describe(self, task: str) -> ModelEntry:
        """Describe it for ``GET /v1/models``.

        Args:
            task: What it does here.
        """
        entry: ModelEntry = {
            "task": task,
            "kind": self.kind,
            "family": self.vlm.family,
            "base": self.vlm.base_id,
            "codec": self.vlm.codec_id,
            "tokens_per_image": self.vlm.tokens_per_image,
            "side_px": self.codec.side_px,
        }
        # Only what makes images decodes them; how depends on the machine of the replica.
        return entry if task == IDM else entry | {"decoding": self.runner.describe_decoding()}

    async def check_health(self, thread: ModelThread) -> None:
        """Decode a token, in its turn; raise what that raises.

        Args:
            thread: Of the models.
        """
        await thread.call(_decode_token, self)

    def check_action(self, action: str) -> None:
        """Raise :class:`wm.errors.InputError` if the model cannot read an action.

        Args:
            action: In words.
        """
        self.inverse.check_action(action)

    def count_tokens(self, action: str) -> int:
        """Count the tokens of an action.

        Args:
            action: In words.
        """
        return len(self.vlm.tokenize_action(action))

    async def sample(
        self,
        thread: ModelThread,
        start: Start,
        candidates: range,
        sampling: Sampling,
        *,
        num_draft_tokens: int = 0,
        on_tokens: OnTokens | None = None,
    ) -> Samples:
        """Sample images of codes after an action.

        Args:
            thread: Of the models.
            start: Source, which has codes of this model's codec, action and seed.
            candidates: Their numbers.
            sampling: How a code is sampled.
            num_draft_tokens: Codes drafted a pass; 0: one code a pass, and images join those of other requests.
            on_tokens: Given the first one's codes while it grows, where images grow token by token.
        """
        if num_draft_tokens:
            # Drafts are checked a request at a time: no scheduler, and no progress to report.
            codes_KN = await thread.call(_speculate, self, start, candidates, sampling, num_draft_tokens)
        else:
            # Else its images join those of other requests.
            (source,) = self.inverse.codes_of([start.source])
            request = ImageRequest(
                forward_prefix(self.vlm, source, start.action), len(candidates), sampling, start.seed, candidates.start
            )

            def report(grown: StepOutput) -> None:
                if on_tokens is not None and grown.candidates.start == candidates.start:
                    on_tokens(grown.codes[0])

            codes_KN = await thread.sample(self.pool, request, None if on_tokens is None else report)
        metrics.record(metrics.TOKENS, codes_KN.numel())
        return list(observe_codes(codes_KN.tolist(), self.codec))


@dataclass(frozen=True, eq=False)
class PixelModel:
    """A vision-language model that reads pixels."""

    inverse: "PixelInverse"
    kind: ClassVar[ModelKind] = "pixels"

    def describe(self, task: str) -> ModelEntry:
        """Describe it for ``GET /v1/models``: it has neither a codec nor a size of its own.

        Args:
            task: What it does here.
        """
        family = str(self.inverse.scorer.model.config.model_type)
        return {"task": task, "kind": self.kind, "family": family, "base": self.inverse.model_id}

    def check_action(self, action: str) -> None:
        """Raise :class:`wm.errors.InputError` if the model cannot read an action.

        Args:
            action: In words.
        """
        self.inverse.check_action(action)

    async def check_health(self, thread: ModelThread) -> None:
        """Read a token, in its turn; raise what that raises.

        Args:
            thread: Of the models.
        """
        await thread.call(_read_token, self)


@torch.no_grad()
def _decode_token(model: CodeModel) -> None:
    _, last_PH = model.runner.prefill([[model.vlm.bos_id]])
    model.runner.image_logits(last_PH)


@torch.no_grad()
def _read_token(model: PixelModel) -> None:
    network = model.inverse.scorer.model
    ids_11 = torch.tensor([[model.inverse.scorer.processor.tokenizer.eos_token_id]], device=network.device)
    # On to the host: a device that is lost says so there.
    network(input_ids=ids_11, use_cache=False).logits.sum().item()


def _speculate(model: CodeModel, start: Start, candidates: range, sampling: Sampling, num_draft_tokens: int) -> Tensor:
    speculation = speculate_observations(
        model.vlm,
        model.inverse.codes_of([start.source]),
        [start.action],
        num_draft_tokens=num_draft_tokens,
        num_candidates=len(candidates),
        first_candidate=candidates.start,
        sampling=sampling,
        seed=start.seed,
        runner=model.runner,
    )
    if speculation.examined.any():
        metrics.record(metrics.ACCEPTED, float(speculation.confirmed.sum() / speculation.examined.sum()))
    return speculation.codes[0]
