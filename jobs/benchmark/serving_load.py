"""Requests for the serving benchmark: one after the other, some clients at once, or at a given rate."""

import asyncio
import base64
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Asked:
    """What every request asks for, but for its seed."""

    url: str
    source_png: bytes
    action: str

    def body(self, seed: int, **fields: Any) -> dict[str, Any]:
        """Return a JSON edit."""
        image = "data:image/png;base64," + base64.b64encode(self.source_png).decode()
        return {"image": image, "prompt": self.action, "seed": seed, **fields}


@dataclass
class Tally:
    """What became of requests. ``latencies_s``: of those answered 200; ``stages_s``: of the stages that their replies
    tell (``Server-Timing``)."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, reply: httpx2.Response, seconds: float) -> None:
        self.statuses[str(reply.status_code)] += 1
        if reply.status_code != 200:
            return
        self.latencies_s.append(seconds)
        for name, stage_s in server_timing(reply.headers.get("server-timing", "")).items():
            self.stages_s.setdefault(name, []).append(stage_s)

    def figures(self, wall_s: float) -> dict[str, Any]:
        """Throughput, statuses, percentiles."""
        answered = len(self.latencies_s)
        return {
            "answered_per_s": round(answered / wall_s, 3),
            "statuses": dict(self.statuses),
            "latency_s": percentiles(self.latencies_s),
            "stages_s": {name: percentiles(values) for name, values in self.stages_s.items()},
        }


def server_timing(header: str) -> dict[str, float]:
    """Seconds of each stage in a ``Server-Timing`` header (durations there are milliseconds)."""
    found = {}
    for entry in filter(None, (part.strip() for part in header.split(","))):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur":
                found[name] = float(value) / 1000
    return found


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and the most; empty without values."""
    if not values:
        return {}
    found = np.quantile(np.asarray(values), [0.5, 0.9, 0.99, 1]).tolist()
    return {name: round(value, 4) for name, value in zip(("p50", "p90", "p99", "max"), found, strict=True)}


def ask(client: httpx2.Client, asked: Asked, seed: int, **fields: Any) -> tuple[dict[str, Any], float]:
    """One reply, and its seconds."""
    body = asked.body(seed, **fields)
    begin = time.perf_counter()
    reply = client.post(f"{asked.url}/v1/images/edits", json=body)
    seconds = time.perf_counter() - begin
    reply.raise_for_status()
    return reply.json(), seconds


def first_preview(client: httpx2.Client, asked: Asked, seed: int, best_of: int) -> tuple[float, float]:
    """Seconds to the first preview of a streamed answer, and to its end."""
    body = asked.body(seed, best_of=best_of, stream=True, partial_images=3)
    begin, first_s = time.perf_counter(), 0.0
    with client.stream("POST", f"{asked.url}/v1/images/edits", json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: ") and not first_s:
                first_s = time.perf_counter() - begin
                assert json.loads(line.removeprefix("data: "))["type"] == "image_edit.partial_image"
    return first_s, time.perf_counter() - begin


def closed_loop(asked: Asked, clients: int, requests: int, **fields: Any) -> tuple[Tally, float]:
    """``clients`` that each ask again as soon as they are answered, ``requests`` in all; and the seconds it took."""

    async def run() -> tuple[Tally, float]:
        tally, seeds = Tally(), iter(range(requests))
        async with _session(clients) as session:

            async def one() -> None:
                for seed in seeds:
                    await _counted(session, asked, seed, tally, fields)

            begin = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(clients)))
            return tally, time.perf_counter() - begin

    return asyncio.run(run())


def open_loop(asked: Asked, rate_per_s: float, seconds: float, seed: int, **fields: Any) -> tuple[Tally, float]:
    """Send requests that arrive at random (Poisson), whatever becomes of those before; until all are answered."""
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, max(1, round(rate_per_s * seconds)))

    async def run() -> tuple[Tally, float]:
        tally = Tally()
        async with _session(len(gaps)) as session:
            begin, tasks = time.perf_counter(), []
            for number, arrival in enumerate(np.cumsum(gaps).tolist()):
                await asyncio.sleep(max(0.0, begin + arrival - time.perf_counter()))
                tasks.append(asyncio.ensure_future(_counted(session, asked, number, tally, fields)))
            await asyncio.gather(*tasks)
            return tally, time.perf_counter() - begin

    return asyncio.run(run())


def answered_per_s(tallies: list[tuple[Tally, float]]) -> list[float]:
    """Of each round."""
    return [len(tally.latencies_s) / wall_s for tally, wall_s in tallies]


def _session(connections: int) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx2.AsyncClient(timeout=TIMEOUT_S, limits=limits)


async def _counted(session: httpx2.AsyncClient, asked: Asked, seed: int, tally: Tally, fields: dict[str, Any]) -> None:
    begin = time.perf_counter()
    try:
        reply = await session.post(f"{asked.url}/v1/images/edits", json=asked.body(seed, **fields))
    except httpx2.TransportError as error:
        tally.statuses[type(error).__name__] += 1
        return
    tally.add(reply, time.perf_counter() - begin)
