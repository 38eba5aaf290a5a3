"""Define what the model servers return: plain data, so that the ingress can read it without torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NotRequired, TypeAlias, TypedDict

from wm.images import Pixels

if TYPE_CHECKING:
    from wm.dynamics import Candidate, SampleFailure


class Verification(TypedDict):
    """What a reply says of a candidate. The first four are None where nobody verified it."""

    logprob: float | None
    """Of the action, between source and candidate: nats, the end token included."""
    mean_logprob: float | None
    """Nats an action token."""
    tokens: int | None
    rank: int | None
    """0 is best."""
    seed: int
    index: int
    duplicate_of: int | None
    """Index of an equal candidate with a lower one."""
    unchanged_share: float
    """Share of the image's tokens that are the source's, 0 to 1."""


class Failure(TypedDict):
    """What a reply says of a candidate of which there is no image."""

    index: int
    reason: str
    """A word, such as safety_checker or black_image."""
    detail: str


# Of a candidate that nobody verified: the rest is filled in.
UNVERIFIED: Verification = {
    "logprob": None,
    "mean_logprob": None,
    "tokens": None,
    "rank": None,
    "seed": 0,
    "index": 0,
    "duplicate_of": None,
    "unchanged_share": 0.0,
}


def failures_of(failures: "Iterable[tuple[int, SampleFailure]]") -> list[Failure]:
    """Describe candidates without an image.

    Args:
        failures: Number of each, and why there is none.
    """
    return [{"index": index, "reason": item.reason, "detail": item.detail} for index, item in failures]


def verification_of(candidate: "Candidate") -> Verification:
    """Describe a ranked candidate."""
    score = candidate.score
    return {
        "logprob": score.logprob,
        "mean_logprob": score.mean_logprob,
        "tokens": score.num_tokens,
        "rank": candidate.rank,
        "seed": candidate.seed,
        "index": candidate.index,
        "duplicate_of": candidate.duplicate_of,
        "unchanged_share": candidate.unchanged_share,
    }


@dataclass(frozen=True)
class Preview:
    """The first candidate while it grows: what is not sampled yet is the source's."""

    pixels: Pixels
    progress: float
    """Share of its tokens that are sampled."""


def place_previews(count: int, tokens_per_image: int) -> list[int]:
    """List after how many tokens previews are due: the first at a sixteenth of the image, the others evenly from
    there.

    Args:
        count: Previews, at least 1.
        tokens_per_image: Of the model.
    """
    first = max(1, tokens_per_image // 16)
    # A set: an image of few tokens has fewer places than previews.
    return sorted({first + (tokens_per_image - first) * index // count for index in range(count)})


@dataclass(frozen=True)
class EditResult:
    """A verified prediction."""

    verifications: Sequence[Verification]
    """Of all candidates with an image: those that differ first, best first among them."""
    pixels: Sequence[Pixels]
    """(height, width, 3) each, of the first of them."""
    action_tokens: int | None
    """None of a model that counts none."""
    num_distinct: int
    stages_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    failures: Sequence[Failure] = ()


@dataclass(frozen=True)
class RolloutStep:
    """The best sequence's last observation after a step of a rollout."""

    step: int
    action: str
    verification: Verification
    pixels: Pixels
    num_sampled: int
    logprob: float
    """Sum over the sequence's actions so far, nats."""
    num_failed: int = 0
    """Of them, those without an image."""


@dataclass(frozen=True)
class BeamEnd:
    """A sequence that remained to the end."""

    logprob: float
    """Sum over its actions, nats."""
    mean_logprob: float
    """Nats an action token."""
    guarded: int
    """How many of its observations lie above the copy guard."""
    pixels: Pixels
    """Its last image."""


@dataclass(frozen=True)
class RolloutResult:
    """The best sequence of all steps, and how every sequence of the beam ends, best first."""

    steps: Sequence[RolloutStep]
    beam: Sequence[BeamEnd]
    action_tokens: int | None

    @property
    def num_sampled(self) -> int:
        """Candidates of all steps."""
        return sum(step.num_sampled for step in self.steps)


class BeliefEntry(TypedDict):
    """A token and its log-probability in nats, as :class:`wm.dynamics.idm.Belief`."""

    name: str
    text: str
    logprob: float


class TokenEntry(TypedDict):
    """A token of a proposed action, as :class:`wm.dynamics.idm.ActionToken`."""

    sample: int
    released: str
    chosen: BeliefEntry
    top: Sequence[BeliefEntry]
    finish: str | None


class ModelEntry(TypedDict):
    """What a server says of a model, for ``GET /v1/models``."""

    task: str
    kind: str
    """How it exchanges images: codes, pixels (reads them), editor (makes them)."""
    family: str
    """The pipeline's class, of an editor."""
    base: str
    codec: NotRequired[str]
    """Of its image codes, where it has any."""
    tokens_per_image: NotRequired[int]
    side_px: NotRequired[int]
    """Of the square images that it reads and writes, where it has a size of its own."""
    decoding: NotRequired[dict[str, object]]
    """How image codes are decoded, and the self-tests that this rests on."""


class AdapterEntry(TypedDict):
    """What a server says of an adapter in the recipe's folder."""

    id: str
    task: str
    created: int
    """When its folder was last changed, Unix time in seconds."""


# An image between two servers: codes (N,) of the codec that both have, or uint8 pixels (height, width, 3).
SentImage: TypeAlias = Sequence[int] | Pixels
# Log-probability of an action in nats, the end token included, and the number of its tokens.
Score = tuple[float, int]
