"""Define the rows of ``tables.json`` and ``examples.json`` as types. Knows neither how they are made nor who reads
them.

Fields that evaluations of earlier versions lack are ``NotRequired``.
"""

from typing import NotRequired, TypeAlias, TypedDict

COPY, CEILING = "Copy", "True target through the codec"
"""Labels of what a bench measures without any model: its sources, and its targets as the codec shows them."""
REFERENCES = (COPY, CEILING)


def check_label(label: str) -> str:
    """Return the name of a system in tables.

    Args:
        label: The name.

    Raises:
        ValueError: It is empty, or that of a reference, whose rows it would be mixed with.
    """
    if not label.strip():
        raise ValueError("a system needs a name, which tables show")
    if label in REFERENCES:
        raise ValueError(f"{label!r} is what every bench measures of itself: give another name")
    return label


Choice: TypeAlias = tuple[str, str, int]
"""(label, choice, k) of a row."""


class Figure(TypedDict):
    """A measured figure with its spread."""

    mean: float
    std: float | None  # n - 1 in the denominator; None for one value, which has no spread
    n: int  # number of values that std is of
    over: str  # what they are: training seeds, or sampling seeds where there is one run only
    ci_low: float | None  # 95 % interval over the test items; None where items do not apply
    ci_high: float | None
    runs: dict[str, float]  # training seed → that run's value


class ForwardRow(TypedDict):
    """Metrics of one label, choice and k."""

    label: str
    choice: str  # none (references), greedy, idm (the verifier's) or oracle (the best by the true score)
    k: int
    metrics: dict[str, Figure]
    by_subset: dict[str, dict[str, float]]  # subset → metric → mean; empty for a single subset
    by_subset_std: NotRequired[dict[str, dict[str, float]]]  # spread over runs, where there are two or more
    macro: NotRequired[dict[str, float]]  # metric → mean of the subsets' means, each counting alike; as by_subset
    macro_std: NotRequired[dict[str, float]]


class InverseRow(TypedDict):
    """Metrics of one label's greedy actions."""

    label: str
    metrics: dict[str, Figure]
    notes: NotRequired[dict[str, str]]  # metric → by which tokens it was computed
    absent: NotRequired[dict[str, str]]  # metric → why it cannot be had


class ProbeRow(TypedDict):
    """One model against one kind of negative."""

    role: str
    label: str
    negative: str
    pairs: int
    ties: dict[str, int]  # training seed → number of ties among the pairs
    metrics: dict[str, Figure]


class AbsentRow(TypedDict):
    """A comparison of the probe that cannot be made, with the reason."""

    role: str
    label: str
    negative: str
    reason: str


class SubsetSensitivity(TypedDict):
    """The true action's lead over another one, of some triplets."""

    mean: float
    low: float | None  # 95 % interval of the mean, bootstrap over triplets; None for a single one
    high: float | None
    share: float  # of the triplets, how many are likelier under the true action; ties count half
    pairs: int


class SensitivityRow(SubsetSensitivity):
    """By how much one forward model's figure is higher under the true action than under another one."""

    label: str
    by: str  # likelihood (of the target) or verifier (of the action, between source and prediction)
    other: str  # shuffled, opposite or empty
    unit: str
    verdict: str  # heeds, ignores or unclear; of shuffled alone, else empty
    runs: dict[str, float]  # training seed → mean
    by_subset: dict[str, SubsetSensitivity]  # empty for a single subset


class SensitivityAbsence(TypedDict):
    """A comparison that cannot be made, with the reason."""

    label: str
    by: str
    other: str
    reason: str


class SensitivityTable(TypedDict):
    """Whether forward models heed their actions."""

    rows: list[SensitivityRow]
    absent: list[SensitivityAbsence]
    ignoring: list[str]  # a sentence for each model that ignores its action


class ItemDifference(TypedDict):
    """Mean of first - second over paired items."""

    mean: float
    ci_low: float | None  # its 95 % interval, Student's, which verdicts go by: it covers in small sets too
    ci_high: float | None
    items: int
    runs: list[list[int]]  # training seeds of the first and of the second
    bootstrap_low: NotRequired[float | None]  # its 95 % interval by the paired bootstrap over the items (BCa)
    bootstrap_high: NotRequired[float | None]
    p: NotRequired[float | None]  # Wilcoxon's signed-rank test over the items, two-sided
    std: NotRequired[float | None]  # over the differences of training seeds that both have; None for fewer than two


class DifferenceRow(ItemDifference):
    """The difference of two rows in one metric."""

    metric: str
    first: list[str | int]  # label, choice, k
    second: list[str | int]


class AdaptiveRow(TypedDict):
    """Metrics of one label for adaptive N at one minimum gain, or for a fixed N."""

    label: str
    margin: float | None  # the minimum gain, nats an action token; None for a fixed N
    metrics: dict[str, Figure]  # the mean number of candidates among them: draws
    fixed: NotRequired[dict[str, float]]  # metric → what a fixed N gives for as many candidates
    by_subset: NotRequired[dict[str, dict[str, float]]]  # as in ForwardRow
    by_subset_std: NotRequired[dict[str, dict[str, float]]]
    macro: NotRequired[dict[str, float]]
    macro_std: NotRequired[dict[str, float]]


class MeasuredTables(TypedDict):
    """The part of :class:`Tables` that follows from what the units gave."""

    items: int
    k: list[int]
    subsets: list[str]
    fdm: list[ForwardRow]
    idm: list[InverseRow]
    probe: list[ProbeRow]
    absent: NotRequired[list[AbsentRow]]
    sensitivity: NotRequired[SensitivityTable]
    differences: NotRequired[list[DifferenceRow]]


class Tables(MeasuredTables):
    """The content of ``tables.json``: what was measured, and the settings that a reader of it needs."""

    judge: str
    seeds: list[int]
    sampling: NotRequired[dict[str, object]]
    max_unchanged: NotRequired[float]
    adaptive: NotRequired[list[AdaptiveRow]]


class CandidateDict(TypedDict):
    """A distinct candidate of an example."""

    image: str  # path relative to the evaluation
    times: int  # how often it was sampled
    logprob: float | None  # the verifier's, nats; None without a verifier
    metrics: dict[str, float]


class ExampleModel(TypedDict):
    """Candidates of one forward model, best first."""

    label: str
    seed: int
    candidates: list[CandidateDict]
    chosen: int | None  # index of the verifier's choice


class Proposal(TypedDict):
    """The greedy action of one inverse model."""

    label: str
    text: str
    right: bool | None  # None where no judge can check it


class Example(TypedDict):
    """One triplet of ``examples.json``."""

    triplet_id: str
    subset: str
    action: str
    source: str  # path of the image, relative to the evaluation
    target: str
    change: list[float]  # squared feature distance of each image token
    proposed: list[Proposal]
    models: list[ExampleModel]
