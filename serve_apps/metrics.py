"""Measure the server itself: figures exported to Prometheus by Ray (``ray_wm_…`` at each node's metrics port).

Names end in their unit, as Prometheus has it. Outside a Ray Serve replica nothing is recorded, unless a test asks.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from serve_apps.tracing import span

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Metric:
    """``boundaries``: upper bounds of a histogram's buckets."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of its series."""
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return tuple(f"ray_{self.name}{end}" for end in ends)


# Of the ingress.
REQUESTS = Metric("wm_requests", "counter", "Requests answered; status 499: the client left", ("endpoint", "status"))
REQUEST_SECONDS = Metric("wm_request_seconds", "histogram", "From request to complete answer", ("endpoint",), SECONDS)
IN_PROGRESS = Metric("wm_requests_in_progress", "gauge", "Requests being answered, those that wait among them")
RATE_LIMITED = Metric("wm_rate_limited", "counter", "Requests beyond the limits of their key (429)", ("key",))
LIMITS_ALONE = Metric("wm_limits_alone", "counter", "Requests let through while the shared limits did not answer")
STREAM_ERRORS = Metric("wm_stream_errors", "counter", "Streams that ended in an event `error`", ("code",))
RETRIES = Metric("wm_replica_retries", "counter", "Requests asked of another replica because one died")
COMPARISONS = Metric("wm_comparisons", "counter", "Blind comparisons: shown, and choices by kind", ("event",))

# Of the replicas. The stages prepare and encode_image are the ingress's.
STAGE_SECONDS = Metric("wm_stage_seconds", "histogram", "Time of a stage of a request", ("stage",), SECONDS)
# Of an edit; queue: from a request for candidates until the first of them begins, a part of sample. Chat completions
# have prepare, encode and propose; scores prepare, encode and score.
STAGES = ("prepare", "encode", "queue", "sample", "score", "decode", "encode_image")
TOKENS = Metric("wm_tokens_sampled", "counter", "Image tokens of the candidates sampled")
ROWS = Metric("wm_rows_decoding", "gauge", "Images decoded together, rows of guidance among them (batch fill)")
WAITING = Metric("wm_requests_waiting", "gauge", "Requests of which some candidates wait for capacity in the batch")
CANDIDATES = Metric(
    "wm_candidates",
    "histogram",
    "Candidates sampled for an answer",
    (),
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128),
)
FAILED = Metric("wm_candidates_failed", "counter", "Candidates of an image editor without an image", ("reason",))
DISTINCT = Metric("wm_candidates_distinct_share", "histogram", "Share of them that differ", (), SHARES)
MARGIN = Metric(
    "wm_verification_margin_nats",
    "histogram",
    "Nats an action token between the best candidate and the next that differs",
    (),
    (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
UNCHANGED = Metric(
    "wm_unchanged_share", "histogram", "Share of the best candidate's tokens that are the source's", (), SHARES
)
ACCEPTED = Metric(
    "wm_draft_accepted_share", "histogram", "Share of drafted codes that were right (num_draft_tokens > 0)", (), SHARES
)

_own_stages: ContextVar[dict[str, float] | None] = ContextVar("own_stages", default=None)

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Recorder(Protocol):
    """Where figures go."""

    def __call__(self, metric: Metric, value: float, tags: dict[str, str]) -> None: ...


class _Ray:
    """Ray Serve's metrics: each with the names of its deployment, replica and application."""

    def __init__(self) -> None:
        self._exporters: dict[str, Any] = {}

    def __call__(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        exporter = self._exporters.get(metric.name) or self._exporters.setdefault(metric.name, self._build(metric))
        getattr(exporter, {"counter": "inc", "gauge": "set", "histogram": "observe"}[metric.kind])(value, tags=tags)

    def _build(self, metric: Metric) -> Any:
        from ray.serve import metrics

        if metric.kind == "histogram":
            return metrics.Histogram(metric.name, metric.description, list(metric.boundaries), metric.tags)
        kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
        return kind(metric.name, metric.description, metric.tags)


class _Nowhere:
    def __call__(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        """No figures are kept."""


class _Current:
    recorder: Recorder | None = None


def record(metric: Metric, value: float = 1.0, /, **tags: str) -> None:
    """Add to a counter, set a gauge, or put into a histogram. From any thread.

    Args:
        metric: Of this module.
        value: In the metric's unit.
        tags: A value for each of the metric's tags.
    """
    if _Current.recorder is None:
        _Current.recorder = _current_recorder()
    _Current.recorder(metric, float(value), tags)


def record_to(recorder: Recorder | None) -> None:
    """From now on figures go to ``recorder``; None: to Ray in a replica, else nowhere."""
    _Current.recorder = recorder


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a stage of :data:`STAGES`, and trace it; one that fails is not counted."""
    start_s = time.perf_counter()
    with span(name):
        yield
    seconds = time.perf_counter() - start_s
    record(STAGE_SECONDS, seconds, stage=name)
    own = _own_stages.get()
    if own is not None:
        own[name] = own.get(name, 0.0) + seconds


@contextmanager
def stages_s() -> Iterator[dict[str, float]]:
    """Seconds of each stage that this task and those it starts time by :func:`stage`, summed up."""
    own: dict[str, float] = {}
    token = _own_stages.set(own)
    try:
        yield own
    finally:
        _own_stages.reset(token)


def server_timing(stages: Mapping[str, float]) -> str:
    """Return the value of a ``Server-Timing`` header (W3C Server Timing); there, durations are milliseconds."""
    return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in stages.items())


def _current_recorder() -> Recorder:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        serve.get_replica_context()
    except RayServeException:
        return _Nowhere()
    return _Ray()
