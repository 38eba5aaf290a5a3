"""The wall of examples."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from wm.evaluation.report.findings import Findings
from wm.evaluation.report.page import heat_uri, picture_uri, prose, section


def wall_section(findings: Findings) -> str:
    """Source, action, target, change weights, and every model's candidates with the chosen one outlined."""
    if not findings.examples or findings.evaluation is None:
        return ""
    folder = findings.evaluation.folder
    cards = [_example(example, folder) for example in findings.examples]
    how = (
        "Candidates stand best first by the inverse model's log-likelihood of the action (nats, below each "
        "picture); the chosen one is outlined, ×n counts equal candidates, s is the judge's score. Change: "
        "squared feature distance between source and target by image token, which weights the loss."
    )
    return section("wall", "Examples", prose(how), f'<div class="wall">{"".join(cards)}</div>')


def _example(example: Mapping[str, Any], folder: Path) -> str:
    source, target = (picture_uri(folder / example[name]) for name in ("source", "target"))
    weights_N = np.array(example["change"], dtype=np.float64)
    layers = f'<img src="{target}" alt=""><img src="{heat_uri(weights_N)}" alt="">'
    most = f"change, up to {weights_N.max():.2g}"
    top = (
        f'<div class="strip">{_shot(source, "source", "source", "big")}'
        f"{_shot(target, 'target', 'target', 'big')}"
        f'<div class="shot big"><div class="heat">{layers}</div>{most}</div></div>'
    )
    said = "".join(_proposal(one) for one in example["proposed"])
    models = "".join(_model(one, folder) for one in example["models"])
    return f'<div class="card"><div class="action">{escape(example["action"])}</div>{top}{said}{models}</div>'


def _proposal(proposed: Mapping[str, Any]) -> str:
    mark = ""
    if proposed["right"] is not None:
        mark = ' <span class="yes-text">✓</span>' if proposed["right"] else ' <span class="no-text">✗</span>'
    text = escape(proposed["text"]) or "<i>(nothing)</i>"
    return f'<div class="small soft">{escape(proposed["label"])} says: {text}{mark}</div>'


def _model(model: Mapping[str, Any], folder: Path) -> str:
    shots = "".join(
        _candidate(one, folder, chosen=index == model["chosen"]) for index, one in enumerate(model["candidates"])
    )
    return f'<div class="model"><b>{escape(model["label"])}</b><div class="strip">{shots}</div></div>'


def _candidate(candidate: Mapping[str, Any], folder: Path, *, chosen: bool) -> str:
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
    uri = picture_uri(folder / candidate["image"])
    return _shot(uri, "candidate", "<br>".join(lines), "chosen" if chosen else "")


def _shot(uri: str, alt: str, below: str, kind: str) -> str:
    """``below`` is HTML."""
    return f'<div class="shot {kind}"><img src="{uri}" alt="{escape(alt)}">{below}</div>'
