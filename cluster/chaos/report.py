"""Write what a chaos run found: ``chaos.json``, and the same as a page of lines."""

import os
import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cluster.chaos.phases import PhaseReport
from cluster.chaos.recipe import ChaosRecipe
from cluster.chaos.schedule import plan_kills
from wm.runs import write_json

JSON, PAGE = "chaos.json", "chaos.txt"
_STEP_AGE_S = 5.0
"""Figures of steps are written as each ends: within so many seconds of one, steps are being done."""


def build_record(recipe: ChaosRecipe, phases: Sequence[PhaseReport], arguments: Sequence[str]) -> dict[str, object]:
    """Build the content of ``chaos.json``.

    Args:
        recipe: Of the run.
        phases: What happened.
        arguments: Of the command line.
    """
    return {
        "benchmark": "chaos",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(["python", "-m", "cluster.chaos", *arguments]),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {name: version(name) for name in ("wm", "ray", "torch", "pyarrow")},
        "settings": recipe.model_dump(exclude={"out"}),
        "passed": is_passed(recipe, phases),
        "ratios": {"failed_requests_share": share} if (share := _failed_share(phases)) is not None else {},
        "counts": {phase.phase: _count(phase) for phase in phases},
        "phases": [asdict(phase) for phase in phases],
    }


def _count(phase: PhaseReport) -> dict[str, float]:
    """Count what happened in a phase, by name."""
    # Numbers alone, for the page of benchmarks; the phases themselves have the rest.
    kills = Counter(str(kill["kind"]) for kill in phase.kills)
    counts: dict[str, float] = {"seconds": phase.seconds, "kills": len(phase.kills)}
    counts |= {f"{kind}s killed": count for kind, count in sorted(kills.items())}
    if phase.rounds:
        counts["times done"] = len(phase.rounds)
        counts["submissions"] = sum(
            len(entry["attempts"]) for entry in phase.rounds if isinstance(entry["attempts"], list)
        )
    if phase.phase == "training":
        counts |= _count_checkpoints(phase)
    counts |= {name: value for name, value in phase.failures.items() if isinstance(value, int | float)}
    return counts | {"differences": len(phase.differences)}


def _count_checkpoints(phase: PhaseReport) -> dict[str, float]:
    """Count the kills that a checkpoint came before, those of them that hit a step, and what was resumed from one."""
    after = [kill for kill in phase.kills if "checkpoint" in kill]
    ages = [kill["step_age_s"] for kill in after if "step_age_s" in kill]
    return {
        "kills after a checkpoint": len(after),
        "of them while steps were done": sum(isinstance(age, int | float) and age <= _STEP_AGE_S for age in ages),
        "submissions that resumed from a checkpoint": len(_resumed(phase.rounds)),
    }


def _resumed(rounds: Sequence[Mapping[str, object]]) -> list[int]:
    """List the steps that submissions resumed from."""
    attempts = [attempt for entry in rounds if isinstance(entry["attempts"], list) for attempt in entry["attempts"]]
    return [attempt["resumed_from"] for attempt in attempts if attempt.get("resumed_from") is not None]


def is_passed(recipe: ChaosRecipe, phases: Sequence[PhaseReport]) -> bool:
    """Return whether every phase came to its end, and every result equals its undisturbed one.

    Args:
        recipe: Of the run.
        phases: What happened.
    """
    return len(phases) == len(recipe.phases) and not any(phase.differences for phase in phases)


def write_report(out: Path, record: Mapping[str, object], phases: Sequence[PhaseReport]) -> list[str]:
    """Write both files; returns the lines of the page.

    Args:
        out: Folder of the run.
        record: Of :func:`build_record`.
        phases: What happened.
    """
    write_json(out / JSON, dict(record))
    lines = build_page(record, phases)
    (out / PAGE).write_text("".join(f"{line}\n" for line in lines))
    return lines


def build_page(record: Mapping[str, object], phases: Sequence[PhaseReport]) -> list[str]:
    """Build the page: a block a phase.

    Args:
        record: Of :func:`build_record`.
        phases: What happened.
    """
    lines = [f"chaos: {'passed' if record['passed'] else 'FAILED'} ({record['date']}, {record['command']})"]
    for phase in phases:
        kinds = Counter(str(kill["kind"]) for kill in phase.kills)
        counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "nothing"
        lines += [
            "",
            f"{phase.phase}: {len(phase.kills)} kills in {phase.seconds:g} s ({counts}); {phase.missed} missed",
        ]
        # 1. Work that was repeated until it was done.
        for entry in phase.rounds:
            attempts = entry["attempts"]
            assert isinstance(attempts, list)
            seconds = sum(attempt["seconds"] for attempt in attempts)
            resumed = ", ".join(map(str, _resumed([entry])))
            lines.append(
                f"  {entry['name']}: {seconds:.0f} s ({phase.undisturbed_s:.0f} s undisturbed), "
                f"{len(attempts)} submissions" + (f", resumed from steps {resumed}" if resumed else "")
            )
        # 2. Requests.
        if phase.failures:
            lines += _describe_requests(phase)
        lines += [f"  DIFFERS: {line}" for line in phase.differences] or ["  results equal to the undisturbed ones"]
        lines += [f"  not carried out: {line}" for line in phase.errors]
        lines += [f"  {kill['at_s']:>7} s  {kill['kind']:<7} {kill['victim']}{_progress(kill)}" for kill in phase.kills]
    return lines


def _progress(kill: Mapping[str, object]) -> str:
    """Describe how far the work had come when something was killed; empty where that is not known."""
    parts = []
    if "shards" in kill:
        parts.append(f"{kill['shards']} shards finished")
    if "step" in kill:
        parts.append(f"step {kill['step']}, {kill['step_age_s']} s before")
    # Of a training that has begun: what it can resume from.
    if "step" in kill or "checkpoint" in kill:
        parts.append(f"last checkpoint {kill.get('checkpoint', 'none')}")
    return f" ({', '.join(parts)})" if parts else ""


def build_plan(recipe: ChaosRecipe) -> list[str]:
    """Build the lines of a dry run: what would be killed when."""
    lines = [f"chaos: {recipe.nodes} nodes, seed {recipe.seed}, would write {recipe.out}"]
    for phase in recipe.phases:
        kills = plan_kills(recipe, phase)
        lines.append(f"{phase}: {recipe.phase_s:.0f} s, {len(kills)} kills")
        lines += [f"  {kill.at_s:>7.1f} s  {kill.kind}" for kill in kills]
    return lines


def _describe_requests(phase: PhaseReport) -> list[str]:
    failures = phase.failures
    lines = [
        f"  {failures['requests']} requests, {failures['failed']} failed; the command was started "
        f"{failures['starts_of_the_command']} times; "
        f"all answered again {failures['seconds_to_recover']} s after the end"
    ]
    reasons = failures["reasons"]
    assert isinstance(reasons, dict)
    return lines + [f"    {count} x {reason}" for reason, count in reasons.items()]


def _failed_share(phases: Sequence[PhaseReport]) -> float | None:
    """Return the share of requests that failed; None where none was sent."""
    # Only a server has requests.
    for phase in phases:
        total, failed = phase.failures.get("requests"), phase.failures.get("failed")
        if isinstance(total, int) and isinstance(failed, int) and total:
            return round(failed / total, 4)
    return None
