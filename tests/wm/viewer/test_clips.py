"""The page of clips: its numbers, and in a real browser what shows, what hands and keys do, what text cannot do."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from tests.helpers.viewer_data import HOSTILE, look, mark
from wm.images import encode_png
from wm.viewer.clips import ClipCard, FailedClip, build_sheet, encode_timed_curve, write_clips_page

PROBE = """
"use strict";
window.addEventListener("load", () => {
  const results = {}, page = document.documentElement;
  const key = (target, name) =>
    target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  const keys = () => [...document.querySelectorAll(".clip")].map((card) => card.dataset.key);
  try {
    results.shown = page.dataset.shown;
    results.names = keys();
    results.strays = document.querySelectorAll("img[src=x], body script:not([src])").length;
    results.marks = [...document.querySelectorAll(".clip:first-child .mark")].map((node) => Number(node.dataset.x));
    const svg = document.querySelector(".clip svg"), width = Number(svg.getAttribute("viewBox").split(" ")[2]);
    results.width = width;
    const read = () => svg.querySelector("text.cursor").textContent;
    key(svg, "ArrowRight"); key(svg, "ArrowRight"); results.by_key = read();
    const box = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right, clientY: box.top + 5, bubbles: true }));
    results.by_pointer = read();
    results.badges = [...document.querySelectorAll(".clip:first-child .badge")].map((node) => node.textContent);
    document.querySelector("[data-pair='1']").click();
    const dialog = wm.byId("detail");
    results.pair = [dialog.open, dialog.querySelector("dl").textContent.includes("filtered: static")];
    key(dialog, "ArrowLeft");
    results.stepped = [wm.shownPair.number, dialog.querySelector("[data-name=back]").disabled];
    dialog.querySelector("[data-name=close]").click();
    document.querySelector("[data-rule=greedy_spacing]").click();
    const marks = document.querySelectorAll(".clip:first-child .mark").length;
    results.greedy = [location.hash, marks, document.querySelector("pre").textContent];
    document.querySelector("[data-rule=top_then_spacing]").click();
    document.querySelector("#verdict-filter [data-value=kept]").click();
    results.kept = [location.hash, keys()];
    wm.byId("reset").click();
    wm.byId("query").value = "PWNED"; wm.byId("query").dispatchEvent(new Event("input", { bubbles: true }));
    results.query = keys();
    results.failures = [...document.querySelectorAll("#unread tbody tr")].map((row) => row.textContent);
    results.overflow = document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth;
  } catch (error) { results.error = String(error.stack); }
  results.pwned = String(window.pwned);
  page.dataset.results = encodeURIComponent(JSON.stringify(results));
});
"""
TIMES_S = np.array([0.0, 0.1, 0.2, 1.2, 1.3])
MOTION = np.array([0.0, 1.0, 2.0, 4.0, 3.0], np.float32)


def card(key: str, reasons: list[str], out: Path) -> ClipCard:
    """A clip of five frames, of which one rule chooses 0, 2 and 3, the other all but the last."""
    pixels = np.full((30, 40, 3), 200, np.uint8)
    sheet, webp = build_sheet(dict.fromkeys(range(4), encode_png(pixels)), f"clip-{len(reasons):08d}.webp", 32)
    (out / "page" / sheet["file"]).write_bytes(webp)
    numbers = {"difference": 1.0, "cut": 0.5, "luma": 99.0, "sharpness": None, "repeat_bits": None}

    def rule(frames: list[int], reasons: list[str]) -> Any:
        marks = [{"frame": at, "time_s": float(TIMES_S[at]), "motion": float(MOTION[at])} for at in frames]
        judged = {"numbers": numbers, "repeats_known": False}
        pairs = [judged | {"findings": [name] * bool(name), "reason": name} for name in reasons]
        return {"keyframes": marks, "pairs": pairs, "reader": "decord", "note": ""}

    rules = {
        "top_then_spacing": rule([0, 2, 3][: len(reasons) + 1], reasons),
        "greedy_spacing": rule([0, 1, 2, 3], ["", "", ""]),
    }
    return {
        "key": key, "uri": f"/videos/{key}", "class_label": HOSTILE if reasons[0] else "wave",
        "facts": [("", "1.6 s"), ("steps", "100 ms")],
        "curve": encode_timed_curve(TIMES_S, MOTION), "sheet": sheet, "rules": rules,
    }  # fmt: skip


def page_data(failures: list[FailedClip]) -> dict[str, Any]:
    counts = {
        "videos": 3, "decoded": 2, "video_s": 3.2, "keyframes": 6, "pairs": 4, "kept": 2, "too_little_motion": 0,
        "findings": {"static": 2}, "judged": {"static": 4},
    }  # fmt: skip
    expected = {"pairs": 40.0, "kept": 20.0, "frames": 50.0, "length_s": 7200.0, "reading_s": 30.0}
    rules = ["top_then_spacing", "greedy_spacing"]
    static = {"reason": "static", "key": "filters.static", "mode": "on", "threshold_key": "filters.static_difference"}
    return {
        "listed": 30, "rule": rules[0], "rules": rules, "counts": dict.fromkeys(rules, counts),
        "expectations": dict.fromkeys(rules, expected), "filters": [static | {"threshold": 1.5}], "alternatives": None,
        "min_motion_px": 0.0, "settings": {"keyframes.max_keyframes": 6}, "failures": failures, "changed": [],
        "passed_over": [HOSTILE], "notices": [], "commands": [f"wm annotate videos={HOSTILE} idm=MODEL", "wm plan"],
    }  # fmt: skip


def test_a_curve_keeps_its_peaks_with_their_times() -> None:
    times_T = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.09, 1000))
    motion_T = np.random.default_rng(1).uniform(0, 9, 1000).astype(np.float32)
    curve = encode_timed_curve(times_T, motion_T, max_points=300)
    assert (curve["frames"], curve["step"], len(curve["at"])) == (1000, 4, 250)
    for number, frame in enumerate(curve["at"]):
        assert 4 * number <= frame < 4 * number + 4 and motion_T[frame] == motion_T[4 * number : 4 * number + 4].max()
    np.testing.assert_allclose(curve["times_s"], times_T[curve["at"]], atol=5e-5)
    gaps_ms = np.diff(times_T) * 1000
    assert (curve["fast_ms"], curve["slow_ms"]) == (round(gaps_ms.min(), 2), round(gaps_ms.max(), 2))
    assert encode_timed_curve(np.zeros(1), np.zeros(1, np.float32))["times_s"] == [0.0]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe saw in a page of two clips, one of them of a hostile name, and of one that could not be read."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "page").mkdir()
    failure: FailedClip = {"key": HOSTILE, "class_label": "", "reason": "time_out", "detail": HOSTILE}
    cards = [card("a.mp4", ["", "static"], folder), card(f"{HOSTILE}.mp4", ["static"], folder)]
    size = write_clips_page(folder, f"set {HOSTILE}", page_data([failure]), cards)
    assert size == sum(path.stat().st_size for path in [*(folder / "page").iterdir(), folder / "index.html"])
    (folder / "page" / "probe.js").write_text(PROBE)
    html = (folder / "index.html").read_text()
    first = '<script src="page/clips-data.js">'
    (folder / "index.html").write_text(html.replace(first, f'<script src="page/probe.js"></script>{first}'))
    document = look(folder / "index.html", profile=folder / "profile")
    results: dict[str, Any] = json.loads(unquote(mark(document, "results")))
    assert "error" not in results, results
    return results


def test_curves_are_drawn_over_time_and_read_off(results: dict[str, Any]) -> None:
    # Frames 0, 2 and 3 at 0, 0.2 and 1.2 of 1.3 s, between the margins of 52 and 14.
    expected = [52 + time / 1.3 * (results["width"] - 66) for time in (0.0, 0.2, 1.2)]
    assert results["marks"] == pytest.approx(expected, abs=0.01)
    assert results["by_key"] == "0.20 s · frame 2 · 2.00 px/frame"
    assert results["by_pointer"] == "1.30 s · frame 4 · 3.00 px/frame"


def test_pairs_rules_and_filters(results: dict[str, Any]) -> None:
    assert results["shown"] == "2" and results["badges"] == ["kept", "filtered: static"]
    assert results["pair"] == [True, True] and results["stepped"] == [0, True]
    address, marks, command = results["greedy"]
    assert address == "#rule=greedy_spacing" and marks == 4 and command.endswith(" keyframes.rule=greedy_spacing")
    assert results["kept"] == ["#pair=kept", ["a.mp4"]] and results["overflow"] <= 0


def test_text_from_names_stays_text(results: dict[str, Any]) -> None:
    assert results["pwned"] == "undefined" and results["strays"] == 0
    assert results["names"] == ["a.mp4", f"{HOSTILE}.mp4"] and results["query"] == [f"{HOSTILE}.mp4"]
    assert results["failures"] == [f"{HOSTILE}–time_out{HOSTILE}"]
