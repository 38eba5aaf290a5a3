"""Render the wall of examples."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from wm.evaluation.report.findings import Findings
from wm.evaluation.report.page import heat_uri, image_uri, prose, section


def wall_section(findings: Findings) -> str:
    """Source, action, target, change weights, and every model's candidates with the chosen one outlined."""
    if not findings.examples or findings.evaluation is None:
        return ""
    folder = findings.evaluation.folder
    cards = [_render_example(example, folder) for example in findings.examples]
    explanation = (
        "Candidates stand best first by the inverse model's log-likelihood of the action (nats, below each "
        "image); the chosen one is outlined, ×n counts equal candidates, s is the judge's score. Change: "
        "squared feature distance between source and target by image token, which weights the loss."
    )
    return section("wall", "Examples", prose(explanation), f'<div class="wall">{"".join(cards)}</div>')


def _render_example(example: Mapping[str, Any], folder: Path) -> str:
    source, target = (image_uri(folder / example[name]) for name in ("source", "target"))
    weights_N = np.array(example["change"], dtype=np.float64)
    layers = f'<img src="{target}" alt=""><img src="{heat_uri(weights_N)}" alt="">'
    most = f"change, up to {weights_N.max():.2g}"
    top = (
        f'<div class="strip">{_render_shot(source, "source", "source", "big")}'
        f"{_render_shot(target, 'target', 'target', 'big')}"
        f'<div class="shot big"><div class="heat">{layers}</div>{most}</div></div>'
    )
    proposals = "".join(_render_proposal(proposal) for proposal in example["proposed"])
    models = "".join(_render_model(proposal, folder) for proposal in example["models"])
    return f'<div class="card"><div class="action">{escape(example["action"])}</div>{top}{proposals}{models}</div>'


def _render_proposal(proposed: Mapping[str, Any]) -> str:
    mark = ""
    if proposed["right"] is not None:
        mark = ' <span class="yes-text">✓</span>' if proposed["right"] else ' <span class="no-text">✗</span>'
    text = escape(proposed["text"]) or "<i>(nothing)</i>"
    return f'<div class="small soft">{escape(proposed["label"])} says: {text}{mark}</div>'


def _render_model(model: Mapping[str, Any], folder: Path) -> str:
    shots = "".join(
        _render_candidate(candidate, folder, is_chosen=index == model["chosen"])
        for index, candidate in enumerate(model["candidates"])
    )
    return f'<div class="model"><b>{escape(model["label"])}</b><div class="strip">{shots}</div></div>'


def _render_candidate(candidate: Mapping[str, Any], folder: Path, *, is_chosen: bool) -> str:
    lines = []
    if candidate["logprob"] is not None:
        lines.append(f"{candidate['logprob']:.2f}")
    metrics = candidate["metrics"]
    if "final" in metrics:
        mark = '<span class="yes-text">✓</span>' if metrics["right"] else ""
        lines.append(f"s {metrics['final']:.1f} {mark}")
    else:
        lines.append(f"L1 {metrics['l1']:.3f}")
    if candidate["times"] > 1:
        lines[-1] += f" ×{candidate['times']}"
    uri = image_uri(folder / candidate["image"])
    return _render_shot(uri, "candidate", "<br>".join(lines), "chosen" if is_chosen else "")


def _render_shot(uri: str, alt: str, below: str, kind: str) -> str:
    """``below`` is HTML."""
    return f'<div class="shot {kind}"><img src="{uri}" alt="{escape(alt)}">{below}</div>'
