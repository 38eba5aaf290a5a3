"""Write the page of benchmarks from the JSON that ``wm benchmark`` wrote: machine, date, command, ratios."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.generate.recipes import wrap_command

MEASURED = Path(__file__).resolve().parents[2] / "jobs" / "measured"

FILES = {
    "demo": "The demo, stage by stage",
    "sampling": "Sampling and scoring",
    "training": "Training",
    "serve": "Serving",
    "score": "Scoring images",
    "keyframes-made": "Key-frames, rendered clips",
    "keyframes-real": "Key-frames, real clips",
    "annotate": "Annotation: memory, broken runs, rates",
    "annotate-scale": "Annotation over two cores",
    "chaos": "Chaos: parts of a cluster killed under load",
    "chaos-serving": "Chaos: parts of a server killed under load",
    "gpu": "On a GPU",
    "pixels": "Inverse models that read pixels",
    "scale": "The driver of a very long annotation",
    "probe": "The probe on three nodes of one machine",
    "verifiers": "Inverse models that read codes or pixels, toy world",
}
"""Name of the file in ``jobs/measured`` and its heading; further files get their name as heading."""

WORDS = {
    "hf_over_ours_n8": "transformers' `generate` over ours, 8 candidates",
    "hf_over_ours_n8_long": "the same with a prefix of 1,060 tokens, an image of 1,024, width 256",
    "idm_unshared_over_shared": "scoring 8 candidates by themselves over with the source shared",
    "n8_over_n1": "8 candidates over 1",
    "n8_over_n1_over_gemm": "that, over the same of the bare matrix products",
    "step_over_gemm_b1": "a step over its bare matrix products, batch 1",
    "step_over_gemm_b8": "a step over its bare matrix products, batch 8",
    "shared_over_merged_step_b1": "a step with a shared base over one with merged weights, batch 1",
    "shared_over_merged_step_b8": "the same, batch 8",
    "shared_over_merged_bytes": "weights in memory, shared over merged",
    "speculative_identical": "speculative sampling: share of images equal to the sequential ones",
    "speculative_nano": "passes of sequential sampling over speculative ones, nano FDM, drafts from the source",
    "hf_step_over_ours_fdm": "a step of transformers with PEFT over ours, FDM",
    "hf_step_over_ours_idm": "a step of transformers with PEFT over ours, IDM",
    "hf_memory_over_ours_fdm": "peak memory above the model, theirs over ours, FDM",
    "hf_memory_over_ours_idm": "peak memory above the model, theirs over ours, IDM",
    "peft_activations_over_ours": "saved activations, PEFT over ours (bfloat16 weights)",
    "loader_over_step": "rows a second of the loader over those of a nano step",
    "http_overhead": "one request over HTTP and three processes, over the library in one; 9 tokens an image",
    "direct_overhead": "the same, on the port without Ray's proxy (`direct_port`)",
    "wide_http_overhead": "one request over HTTP over the library, 256 tokens an image",
    "faithful_http_overhead": "the same, 256 tokens, width 512, 8 layers",
    "best_of_8_over_1": "latency of 8 candidates over 1",
    "batching_gain": "answers a second, 16 clients over 1",
    "direct_batching_gain": "the same, on the port without Ray's proxy",
    "first_preview_share": "time to the first preview, share of the complete answer; 9 tokens an image",
    "failed_requests_share": "requests that failed while parts of the server were killed, share of all",
    "memory_growth": "memory at the end over that after the first clips, 2,000 clips",
    "scale_out_4_workers": "four decoding workers over one, on 2 cores that other work shared",
    "scale_out_2_cores": "two decoders over one under Ray Data, on 2 cores",
    "plain_2_processes": "the same two decoders over one as plain processes: the machine's own limit",
    "dis_over_naive_xvid": "`keyframes.motion=dis` over the naive way, xvid",
    "dis_over_naive_h264": "`keyframes.motion=dis` over the naive way, h264",
    "dis_over_decode_xvid": "`dis` as a share of decoding alone, xvid",
    "dis_over_decode_h264": "`dis` as a share of decoding alone, h264",
    "dis_spearman": "its motion curve's Spearman correlation with naive's",
    "exact_over_naive": "`keyframes.motion=farneback` over the naive way, the slower reading of the rule",
    "exact_jaccard": "its key-frames' Jaccard index with naive's",
    "exact_capture": "its share of naive's motion",
    "baseline_over_ours": "scoring: CPU time of embedding prediction and target anew for each pair over ours",
    "first_over_stored_features": "scoring: time of the first run over one that finds all features stored",
    "driver_memory_growth_0_workers": "scoring: the process's memory at 16,000 images over that at 1,000, without Ray",
    "driver_memory_growth_2_workers": "the same of the driver, with two Ray workers",
    "pixels_all_over_one": "pixel-reading IDM: 8 candidates over 1, images of 256 pixels, features kept, source shared",
    "pixels_all_over_one_plain": "the same the plain way: processor and model read every pair anew",
    "pixels_all_over_one_large_source": "the same as the first with a source of twice the side, as of a photograph",
    "pixels_plain_over_kept": "8 candidates, the plain way over ours",
    "pixels_annotate_plain_over_kept": "annotating the key-frames of a clip, the plain way over ours",
    "stages by wall": "seconds of all stages over those of the complete run: above 1, some ran side by side",
}
"""What a ratio is, in words; one without is shown under its own name, below the others."""

TOTALS = {
    "install_s": ("install into an empty virtual environment, s", 1),
    "wall_s": ("complete run, s", 1),
    "cpu_s": ("CPU time of all its processes, s", 1),
    "peak_memory_bytes": ("memory of all its processes at most, GiB", 2**30),
}
"""Figures of a complete run: their words, and what they are divided by."""

_SECTIONS = {
    "stages": "stage (side by side where they can be)",
    "rates": "rate",
    "counts": "count",
    "unit_costs": "of 100,000 files (list, objects) or 10,000 shards (marks, shards)",
}


def build_benchmarks(folder: Path = MEASURED) -> str:
    """Build the generated part of the page.

    Args:
        folder: Of the JSON files.
    """
    names = [*FILES, *sorted(path.stem for path in folder.glob("*.json") if path.stem not in FILES)]
    lines: list[str] = []
    for name in names:
        lines += [f"## {FILES.get(name, name)}", "", *_build_section(folder / f"{name}.json"), ""]
    return "\n".join(lines)


def _build_section(file: Path) -> Iterator[str]:
    if not file.is_file():
        yield f"Not measured yet: `jobs/measured/{file.name}` does not exist."
        return
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    yield from (*_describe_machine(record), "")
    ratios: dict[str, float] = {name: value for name, value in record.get("ratios", {}).items() if _is_number(value)}
    totals = {words: record[name] / scale for name, (words, scale) in TOTALS.items() if _is_number(record.get(name))}
    if totals:
        yield from ("| total | |", "| --- | --- |", *_build_rows(totals), "")
    named = {words: ratios.pop(name) for name, words in WORDS.items() if name in ratios}
    if named:
        yield from ("| ratio | |", "| --- | --- |", *_build_rows(named), "")
    # Times and rates by name, whichever a benchmark has.
    for key, title in _SECTIONS.items():
        values = _flatten(record.get(key, {}))
        if values:
            unit = " (s)" if key == "stages" else ""
            yield from (f"| {title} | {unit.strip(' ()')} |", "| --- | --- |", *_build_rows(values), "")
    if ratios:
        rows = [f"    {line}" for line in _build_rows({f"`{name}`": value for name, value in ratios.items()})]
        yield from ('??? note "Further ratios"', "", "    | ratio | |", "    | --- | --- |", *rows, "")


def _describe_machine(record: dict[str, Any]) -> Iterator[str]:
    machine, versions = record.get("machine", {}), record.get("versions", {})
    parts = [str(record.get("date", ""))[:10], str(machine.get("cpu", "")), _count(machine, "cores", "cores")]
    parts += [_count(machine, "memory_gb", "GB"), *(str(machine[key]) for key in ("gpu", "device") if key in machine)]
    parts += [f"{name} {versions[name]}" for name in ("torch", "ray", "transformers") if name in versions]
    yield ", ".join(part for part in parts if part) + "."
    if command := str(record.get("command", "")):
        # Not sh: a measurement takes minutes, and the paths are those of its machine.
        command = command.replace("python -m jobs.", "wm ").replace('=["', "='[\"").replace('"]', "\"]'")
        yield from ("", "```console", f"$ {wrap_command(command)}", "```")


def _count(machine: dict[str, Any], key: str, unit: str) -> str:
    return f"{machine[key]} {unit}" if key in machine else ""


def _flatten(values: object, prefix: str = "") -> dict[str, float]:
    """List the numbers of nested values by their dotted names."""
    if isinstance(values, dict):
        flat: dict[str, float] = {}
        for name, value in values.items():
            flat |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    if isinstance(values, list):
        # A list of records, such as one a stage, by their names.
        named = [item for item in values if isinstance(item, dict) and "name" in item]
        return {k: v for item in named for k, v in _flatten({**item, "name": None}, f"{prefix}{item['name']}").items()}
    return {prefix: float(values)} if _is_number(values) else {}


def _build_rows(values: dict[str, float]) -> list[str]:
    return [f"| {name} | {value:.4g} |" for name, value in values.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
