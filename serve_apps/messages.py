"""What the deployments say to each other: plain data, so that the ingress needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from serve_apps.recipe import FDM, IDM
from wm.images import Pixels


@dataclass(frozen=True)
class Question:
    """What is to be predicted. ``source``: uint8 (height, width, 3), square, of the model's size. ``actions``: one, or
    a rollout's. ``search``, ``sampling``: settings of ``wm.dynamics.Search`` and ``wm.sampling.Sampling`` by name."""

    source: Pixels
    actions: tuple[str, ...]
    seed: int
    search: Mapping[str, Any]
    sampling: Mapping[str, Any]
    verify: bool = True
    """False: ``best_of`` draws, as they come."""
    num_pictures: int | None = 1
    """How many of the best candidates are decoded to pixels; None: all that differ."""
    num_previews: int = 0
    model: str = FDM
    verifier: str = IDM


@dataclass(frozen=True)
class WhatHappened:
    """Which action lies between two images. ``images``: uint8 (2, height, width, 3), source and target, square, of the
    model's size. ``settings``, ``sampling``: of ``wm.dynamics.idm.ProposalStream`` and ``wm.sampling.Sampling``, by
    name."""

    images: Pixels
    settings: Mapping[str, Any]
    sampling: Mapping[str, Any]
    model: str = IDM


ScoresAsked: TypeAlias = tuple[Sequence[int], str, Sequence[Sequence[int]]]
"""Codes of a source (N,), an action, codes of candidates (K, N): how likely is the action to lead to each?"""


@dataclass(frozen=True)
class Preview:
    """The first candidate while it grows: what is not drawn yet is the source's. ``progress``: share of its tokens."""

    pixels: Pixels
    progress: float


@dataclass(frozen=True)
class Found:
    """A verified prediction. ``entries``: what the reply says of each candidate, those that differ first, best first
    among them; ``pixels``: (K, height, width, 3), of the first K. ``num_drawn``, ``num_distinct``: of candidates."""

    entries: Sequence[dict[str, Any]]
    pixels: Pixels
    action_tokens: int
    num_drawn: int
    num_distinct: int
    stages_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage."""


@dataclass(frozen=True)
class StepFound:
    """The best sequence's last observation after a step of a rollout, and what the reply says of it."""

    step: int
    action: str
    entry: dict[str, Any]
    pixels: Pixels
    num_drawn: int
    logprob: float
    """Sum over the sequence's actions so far, nats."""


@dataclass(frozen=True)
class Ending:
    """A sequence kept to the end: ``logprob`` and ``mean_logprob`` (nats, nats a token) of its actions, ``guarded``:
    how many of its observations lie above the copy guard; ``pixels``: its last picture."""

    logprob: float
    mean_logprob: float
    guarded: int
    pixels: Pixels


@dataclass(frozen=True)
class RolloutFound:
    """The best sequence of all steps, and how every sequence that was kept ends, best first."""

    steps: Sequence[StepFound]
    endings: Sequence[Ending]
    action_tokens: int
    num_drawn: int = field(default=0)
