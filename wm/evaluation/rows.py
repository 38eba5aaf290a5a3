"""Define the rows of ``tables.json`` and ``examples.json`` as types. Knows neither how they are made nor who reads
them.

Fields that evaluations of earlier versions lack are ``NotRequired``.
"""

from typing import NotRequired, TypeAlias, TypedDict

Choice: TypeAlias = tuple[str, str, int]
"""(label, choice, k) of a row."""


class Figure(TypedDict):
    """A measured figure.

    ``std`` (n - 1 in the denominator) is taken ``over`` runs of different training seeds, or over sampling seeds where
    there is one run only; it is None where there is one value only, because one value has no spread. ``ci_low``,
    ``ci_high``: 95 % interval over the test items; None where items do not apply. ``runs``: training seed → that run's
    value.
    """

    mean: float
    std: float | None
    n: int
    over: str
    ci_low: float | None
    ci_high: float | None
    runs: dict[str, float]


class ForwardRow(TypedDict):
    """Metrics of one label, choice and k.

    ``choice``: ``none`` (references), ``greedy``, ``idm`` (the verifier's) or ``oracle`` (the best by the true score).
    ``by_subset``: subset → metric → mean; empty for a single subset.
    """

    label: str
    choice: str
    k: int
    metrics: dict[str, Figure]
    by_subset: dict[str, dict[str, float]]


class InverseRow(TypedDict):
    """Metrics of one label's greedy actions.

    ``notes``: metric → by which tokens it was computed; ``absent``: metric → why it cannot be had.
    """

    label: str
    metrics: dict[str, Figure]
    notes: NotRequired[dict[str, str]]
    absent: NotRequired[dict[str, str]]


class ProbeRow(TypedDict):
    """One model against one kind of negative; ``ties``: training seed → number of ties among the ``pairs``."""

    role: str
    label: str
    negative: str
    pairs: int
    ties: dict[str, int]
    metrics: dict[str, Figure]


class AbsentRow(TypedDict):
    """A comparison of the probe that cannot be made, with the reason."""

    role: str
    label: str
    negative: str
    reason: str


class ItemDifference(TypedDict):
    """Mean of first - second over paired items, its 95 % interval, and the training seeds of the two sides."""

    mean: float
    ci_low: float | None
    ci_high: float | None
    items: int
    runs: list[list[int]]


class DifferenceRow(ItemDifference):
    """An :class:`ItemDifference` of one metric; ``first`` and ``second`` are ``[label, choice, k]``."""

    metric: str
    first: list[str | int]
    second: list[str | int]


class AdaptiveRow(TypedDict):
    """Metrics of one label at one margin, the mean number of candidates (``draws``) among them.

    ``margin``: None for a fixed number of candidates. ``fixed``: metric → what a fixed number gives for as many
    candidates; in rows with a margin only.
    """

    label: str
    margin: float | None
    metrics: dict[str, Figure]
    fixed: NotRequired[dict[str, float]]


class MeasuredTables(TypedDict):
    """The part of :class:`Tables` that follows from what the units gave."""

    items: int
    k: list[int]
    subsets: list[str]
    fdm: list[ForwardRow]
    idm: list[InverseRow]
    probe: list[ProbeRow]
    absent: NotRequired[list[AbsentRow]]
    differences: NotRequired[list[DifferenceRow]]


class Tables(MeasuredTables):
    """The content of ``tables.json``: what was measured, and the settings that a reader of it needs."""

    judge: str
    seeds: list[int]
    sampling: NotRequired[dict[str, object]]
    max_unchanged: NotRequired[float]
    adaptive: NotRequired[list[AdaptiveRow]]


class CandidateDict(TypedDict):
    """A distinct candidate: its image's path relative to the evaluation, how often it was sampled, its scores."""

    image: str
    times: int
    logprob: float | None
    metrics: dict[str, float]


class ExampleModel(TypedDict):
    """Candidates of one forward model, best first; ``chosen``: index of the verifier's choice, if there is one."""

    label: str
    seed: int
    candidates: list[CandidateDict]
    chosen: int | None


class Proposal(TypedDict):
    """The greedy action of one inverse model; ``right``: None where no judge can check it."""

    label: str
    text: str
    right: bool | None


class Example(TypedDict):
    """One triplet of ``examples.json``; ``change``: squared feature distance of each image token."""

    triplet_id: str
    subset: str
    action: str
    source: str
    target: str
    change: list[float]
    proposed: list[Proposal]
    models: list[ExampleModel]
