"""What the method needs of a model, and no more: one that says which action is between two images, and one that makes
the next image.

Search, verification, rollouts, annotation, evaluation and the server know these two alone. Implementations: codes of
unified models in :mod:`wm.dynamics.code_models`, vision-language models that read pixels in
:mod:`wm.dynamics.pixel_inverse`, editors of diffusers in :mod:`wm.dynamics.editor_forward`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wm.dynamics.idm import ScoredAction
from wm.dynamics.observation import Observation
from wm.dynamics.settings import Search
from wm.models.kinds import ModelKind
from wm.sampling.noise import Sampling

__all__ = ["ForwardModel", "InverseModel", "ModelKind", "OnSamples", "SampleFailure", "Samples"]


@dataclass(frozen=True)
class SampleFailure:
    """Why a forward model gave no image for a candidate.

    Attributes:
        reason: A word for tables of rejects, such as ``safety_checker`` or ``black_image``.
        detail: The same in a sentence.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Samples:
    """What a forward model sampled for B rows.

    ``candidates``: an image, or why there is none, of each candidate, (B, K). ``passes``: passes of the model a row,
    all candidates together, where speculation makes their number vary, else None.
    """

    candidates: list[list[Observation | SampleFailure]]
    passes: list[int] | None = None


OnSamples: TypeAlias = Callable[[int, int], object]
"""Called while images are made, with the parts (tokens, denoising steps) that are done and their number."""


class Proposer(Protocol):
    """What annotation needs: something that proposes the action between two images, such as an endpoint."""

    @property
    def model_id(self) -> str:
        """Name for records: the fingerprint of its base, and the digest of the recipe that fine-tuned it."""

    def propose(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        max_new_tokens: int = 32,
        batch_size: int | None = None,
    ) -> list[ScoredAction]:
        """Propose one action a pair; neither order nor batch changes one, up to rounding.

        Args:
            sources: Images before.
            targets: Images after, as many.
            sampling: How a token is sampled; :data:`wm.sampling.texts.GREEDY`: the likeliest one.
            seeds: One a pair.
            max_new_tokens: Tokens after which an action is ended.
            batch_size: Bound on the rows of a pass; what memory holds without it.
        """


class InverseModel(Proposer, Protocol):
    """A model that says which action is between two images, and scores given ones."""

    @property
    def kind(self) -> ModelKind:
        """``codes`` or ``pixels``."""

    def check_action(self, action: str) -> None:
        """Raise :class:`wm.errors.InputError` if the model cannot read the action; to be called before any work."""

    def score(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        actions: Sequence[str],
        *,
        batch_size: int | None = None,
    ) -> list[ScoredAction]:
        """Score log p(actions[b] | sources[b], targets[b]) in nats; a source that rows share is read once.

        Args:
            sources: Images before.
            targets: Images after, as many.
            actions: As many.
            batch_size: Bound on the rows of a pass; what memory holds without it.

        Raises:
            InputError: An action is empty or holds a special token.
        """


class ForwardModel(Protocol):
    """A model that makes the image after an action."""

    @property
    def model_id(self) -> str:
        """Name for records."""

    @property
    def kind(self) -> ModelKind:
        """``codes`` or ``editor``."""

    def check_action(self, action: str) -> None:
        """Raise :class:`wm.errors.InputError` if the model cannot read the action; to be called before any work."""

    def check_search(self, search: Search, sampling: Sampling) -> None:
        """Raise :class:`wm.errors.InputError` for settings that the model does not have; to be called before any work.

        Args:
            search: How a prediction is searched for.
            sampling: How candidates are sampled.
        """

    def sample(
        self,
        sources: Sequence[Observation],
        actions: Sequence[str],
        *,
        candidates: range,
        sampling: Sampling,
        seeds: Sequence[int],
        num_draft_tokens: int = 0,
        batch_size: int | None = None,
        on_progress: OnSamples | None = None,
    ) -> Samples:
        """Sample images after each (source, action). Candidate k depends on (source, action, seed, k) alone.

        Args:
            sources: Images before.
            actions: As many.
            candidates: Numbers of the candidates.
            sampling: How they are sampled.
            seeds: One a row.
            num_draft_tokens: Codes drafted a pass; 0: one code a pass.
            batch_size: Bound on the candidate rows of a pass; what memory holds without it.
            on_progress: Called while images are made.
        """
