"""Send requests for the serving benchmark: one after the other, some clients at once, or at a given rate."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import httpx2
import numpy as np

from jobs.benchmark.harness import Figures, wall_seconds

TIMEOUT_S = 120.0


class Load(TypedDict):
    """Throughput of closed loops by number of clients, of many over one, and arrivals at rising rates; ``direct``: on
    the port without Ray's proxy."""

    closed_loop: Mapping[str, Mapping[str, float]]
    batching_gain: Mapping[str, float]
    direct_batching_gain: Mapping[str, float]
    closed_loop_statuses: Mapping[str, int]
    open_loop: list[Figures]


@dataclass(frozen=True)
class EditRequest:
    """An edit of a source image by an action; requests differ in their seeds."""

    url: str
    source_png: bytes
    action: str

    def body(self, seed: int, **fields: object) -> Figures:
        """Build the JSON body.

        Args:
            seed: Of the request.
            **fields: Further fields of the endpoint.
        """
        image = "data:image/png;base64," + base64.b64encode(self.source_png).decode()
        return {"image": image, "prompt": self.action, "seed": seed, **fields}

    @property
    def endpoint(self) -> str:
        """Return the address that takes edits."""
        return f"{self.url}/v1/images/edits"

    def post(self, client: httpx2.Client, seed: int, best_of: int) -> tuple[dict[str, Any], float]:
        """Send the request and wait for its reply.

        Args:
            client: Open connection.
            seed: Of the request.
            best_of: Number of candidates.

        Returns:
            The reply's JSON, and the seconds until it was there.
        """
        body = self.body(seed, best_of=best_of)
        seconds, reply = wall_seconds(lambda: client.post(self.endpoint, json=body))
        reply.raise_for_status()
        return reply.json(), seconds

    def stream(self, client: httpx2.Client, seed: int, best_of: int) -> tuple[float, float]:
        """Send the request for a streamed answer.

        Args:
            client: Open connection.
            seed: Of the request.
            best_of: Number of candidates.

        Returns:
            Seconds to the first preview, and to the end.
        """
        body = self.body(seed, best_of=best_of, stream=True, partial_images=3)
        # The first event with data is a preview; comments keep the connection alive.
        begin, first_s = time.perf_counter(), 0.0
        with client.stream("POST", self.endpoint, json=body) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: ") and not first_s:
                    first_s = time.perf_counter() - begin
                    assert json.loads(line.removeprefix("data: "))["type"] == "image_edit.partial_image"
        return first_s, time.perf_counter() - begin


@dataclass
class Tally:
    """Count what became of requests.

    ``latencies_s``: of those answered 200; ``stages_s``: of the stages in their ``Server-Timing`` headers.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, reply: httpx2.Response, seconds: float) -> None:
        """Count a reply.

        Args:
            reply: Of the server.
            seconds: Time that it took.
        """
        self.statuses[str(reply.status_code)] += 1
        if reply.status_code != 200:
            return
        self.latencies_s.append(seconds)
        for name, stage_s in server_timing(reply.headers.get("server-timing", "")).items():
            self.stages_s.setdefault(name, []).append(stage_s)

    def figures(self, wall_s: float) -> Figures:
        """Compute throughput in ``wall_s`` seconds, statuses and percentiles."""
        return {
            "answered_per_s": round(len(self.latencies_s) / wall_s, 3),
            "statuses": dict(self.statuses),
            "latency_s": percentiles(self.latencies_s),
            "stages_s": {name: percentiles(values) for name, values in self.stages_s.items()},
        }


def server_timing(header: str) -> dict[str, float]:
    """Read the seconds of each stage in a ``Server-Timing`` header (durations there are milliseconds)."""
    seconds = {}
    for entry in filter(None, (part.strip() for part in header.split(","))):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur":
                seconds[name] = float(value) / 1000
    return seconds


def percentiles(values: list[float]) -> dict[str, float]:
    """Compute p50, p90, p99 and the max; empty without values."""
    if not values:
        return {}
    quantiles = np.quantile(np.asarray(values), [0.5, 0.9, 0.99, 1]).tolist()
    return {name: round(value, 4) for name, value in zip(("p50", "p90", "p99", "max"), quantiles, strict=True)}


def closed_loop(request: EditRequest, clients: int, num_requests: int) -> tuple[Tally, float]:
    """Let clients send a request each as soon as their last one is answered.

    Args:
        request: What they ask for; seeds count up from 0.
        clients: Number of clients.
        num_requests: Of all clients together.

    Returns:
        What became of the requests, and wall seconds.
    """

    async def run() -> tuple[Tally, float]:
        # One iterator for all clients: whoever is free takes the next seed.
        tally, seeds = Tally(), iter(range(num_requests))
        async with _open_session(clients) as session:

            async def send_all() -> None:
                for seed in seeds:
                    await _send(session, request, seed, tally)

            begin = time.perf_counter()
            await asyncio.gather(*(send_all() for _ in range(clients)))
            return tally, time.perf_counter() - begin

    return asyncio.run(run())


def open_loop(request: EditRequest, rate_per_s: float, seconds: float, seed: int) -> tuple[Tally, float]:
    """Send requests that arrive at random (Poisson), whatever becomes of those before; wait for all answers.

    Args:
        request: What they ask for; their seeds count up from 0.
        rate_per_s: Mean rate of arrivals.
        seconds: Mean time from the first to the last arrival.
        seed: Of the times of arrival.

    Returns:
        What became of the requests, and wall seconds.
    """
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, max(1, round(rate_per_s * seconds)))

    async def run() -> tuple[Tally, float]:
        tally = Tally()
        async with _open_session(len(gaps_s)) as session:
            begin, tasks = time.perf_counter(), []
            for number, arrival in enumerate(np.cumsum(gaps_s).tolist()):
                # Times count from the begin, so that a late start shifts no later one.
                await asyncio.sleep(max(0.0, begin + arrival - time.perf_counter()))
                tasks.append(asyncio.ensure_future(_send(session, request, number, tally)))
            await asyncio.gather(*tasks)
            return tally, time.perf_counter() - begin

    return asyncio.run(run())


def _open_session(connections: int) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx2.AsyncClient(timeout=TIMEOUT_S, limits=limits)


async def _send(session: httpx2.AsyncClient, request: EditRequest, seed: int, tally: Tally) -> None:
    begin = time.perf_counter()
    try:
        reply = await session.post(request.endpoint, json=request.body(seed))
    except httpx2.TransportError as error:
        tally.statuses[type(error).__name__] += 1
        return
    tally.add(reply, time.perf_counter() - begin)
