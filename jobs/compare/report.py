"""Show a comparison: on one screen, as Markdown, as JSON. Computes nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.comparison.bases import MetricKey
from wm.evaluation.comparison.figures import Comparison, Scope
from wm.evaluation.comparison.measures import Measure
from wm.evaluation.comparison.verdict import METHOD, describe
from wm.evaluation.report.summary import format_grid, format_p
from wm.evaluation.subsets import SubsetColumn

_SIDES = ("first", "second")
_NAME_CHARS = 20
_NAMED = 3
"""Missing triplets that are named."""
_MACRO, _MICRO = "macro average", "all items"


@dataclass(frozen=True)
class Setting:
    """What is compared."""

    names: tuple[str, str]
    labels: tuple[str, str]
    choices: tuple[str, str]
    folders: tuple[list[str], list[str]]
    subset: SubsetColumn
    num_items: int


def print_plan(setting: Setting, keys: Sequence[MetricKey]) -> None:
    """Print what would be compared.

    Args:
        setting: The systems.
        keys: Metrics that both have.
    """
    print(f"compare: would compare {_head(setting)}")
    print(f"  in {', '.join(name for name, _ in keys)}")


def print_comparisons(
    setting: Setting,
    comparisons: Sequence[Comparison],
    only: Sequence[Sequence[str]],
    differences: Sequence[str] = (),
) -> None:
    """Print a table of all metrics, a verdict each, and what neither shows.

    Args:
        setting: The systems.
        comparisons: One a metric.
        only: Metrics of the first and of the second that the other one lacks.
        differences: Why metrics that both have are not compared.
    """
    print(f"{_head(setting)}\n")
    titles = _name_all(comparisons)
    header = [
        "metric",
        *_short_names(setting),
        "difference",
        "95 % interval",
        "p",
        "n",
        "training seeds",
        "± over them",
    ]
    rows = [_build_row(title, entry.headline, entry) for title, entry in zip(titles, comparisons, strict=True)]
    print(format_grid(header, rows), end="\n\n")
    # The verdicts come last but for the notes: they are what is read first.
    for title, entry in zip(titles, comparisons, strict=True):
        arrow = " (lower is better)" if entry.measure.lower_is_better else ""
        print(f"{title}{arrow}: {describe(entry, setting.names)}")
    notes = [*_list_missing(setting, comparisons), *_list_fewer_runs(comparisons)]
    notes += [f"not compared, as measured otherwise: {text}" for text in differences]
    notes += _list_unshared(setting, only)
    if any(min(map(len, entry.runs)) == 1 for entry in comparisons):
        notes.append("One training seed: what another one would change is in no interval.")
    # How to read it is the same at every call.
    print("\n".join(["", *notes, "How intervals, p and verdicts are made: wm compare --help"]))


def _short_names(setting: Setting) -> list[str]:
    # Long ones would push the figures off the screen.
    names = [side if len(name) > _NAME_CHARS else name for side, name in zip(_SIDES, setting.names, strict=True)]
    return list(_SIDES) if len(set(names)) < 2 else names


def _head(setting: Setting) -> str:
    first, second = (
        f"{label}, {choice}" if choice not in name else name
        for name, label, choice in zip(setting.names, setting.names, setting.choices, strict=True)
    )
    return f"first: {first} | second: {second} | {setting.num_items:,} triplets, subsets by {setting.subset}"


def _name_all(comparisons: Sequence[Comparison]) -> list[str]:
    """Name metrics by their model; those that are then called alike by all that they were measured with."""
    short = [_name(entry.measure, entry.basis.short) for entry in comparisons]
    return [
        name if short.count(name) == 1 else _name(entry.measure, str(entry.basis))
        for name, entry in zip(short, comparisons, strict=True)
    ]


def _name(measure: Measure, basis: str) -> str:
    return f"{measure.title} ({basis})" if basis else measure.title


def _build_row(title: str, scope: Scope, entry: Comparison) -> list[str]:
    measure = entry.measure
    first, second = (len(runs) for runs in entry.runs)
    return [
        title,
        measure.text(scope.first),
        measure.text(scope.second),
        measure.text(scope.difference, signed=True),
        _format_interval(scope, measure),
        # The mean over subsets has no test of its own: that over all items is shown.
        format_p(scope.p if scope.p is not None else entry.micro.p),
        f"{scope.num_items:,}",
        str(first) if first == second else f"{first} / {second}",
        "–" if entry.std is None else measure.text(entry.std),
    ]


def _format_interval(scope: Scope, measure: Measure) -> str:
    if scope.low is None or scope.high is None:
        return "–"
    return f"[{measure.text(scope.low, signed=True)}, {measure.text(scope.high, signed=True)}]"


def _list_missing(setting: Setting, comparisons: Sequence[Comparison]) -> list[str]:
    """Name the triplets that a system lacks: metrics that lack the same share a line."""
    # By system and triplets, as metrics of one command lack the same.
    lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for title, entry in zip(_name_all(comparisons), comparisons, strict=True):
        for name, lacking in zip(setting.names, entry.missing, strict=True):
            if lacking:
                lines.setdefault((name, tuple(lacking)), []).append(title)
    texts = []
    for (name, ids), titles in lines.items():
        more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
        where = "every metric" if len(titles) == len(comparisons) else ", ".join(titles)
        texts.append(f"{name!r} lacks {len(ids):,} of {setting.num_items:,} triplets in {where}: "
                     f"{', '.join(ids[:_NAMED])}{more}; they count for neither")  # fmt: skip
    return texts


def _list_fewer_runs(comparisons: Sequence[Comparison]) -> list[str]:
    """Say which triplets are compared on fewer runs than the others."""
    lines: dict[str, list[str]] = {}
    for title, entry in zip(_name_all(comparisons), comparisons, strict=True):
        if not entry.fewer_runs:
            continue
        items = [f"{key} ({first} and {second})" for key, (first, second) in entry.fewer_runs.items()]
        more = f" and {len(items) - _NAMED:,} more" if len(items) > _NAMED else ""
        total = " and ".join(f"{len(runs)}" for runs in entry.runs)
        text = f"{len(items):,} triplets are compared on fewer runs than {total}: {', '.join(items[:_NAMED])}{more}"
        # Of paired runs only those count in which both have the triplet.
        lines.setdefault(text, []).append(title)
    return [
        f"{text}, in {'every metric' if len(titles) == len(comparisons) else ', '.join(titles)}"
        for text, titles in lines.items()
    ]


def _list_unshared(setting: Setting, only: Sequence[Sequence[str]]) -> list[str]:
    return [f"only {name!r} has {', '.join(names)}" for name, names in zip(setting.names, only, strict=True) if names]


def to_json(setting: Setting, comparisons: Sequence[Comparison], only: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Build the content of ``compare.json``.

    Args:
        setting: The systems.
        comparisons: One a metric.
        only: Metrics of the first and of the second that the other one lacks.

    Returns:
        Values for JSON: differences are first minus second, whichever is better.
    """
    return {
        "setting": asdict(setting),
        "metrics": [
            {
                "metric": entry.measure.key,
                "title": entry.measure.title,
                "basis": str(entry.basis),
                "lower_is_better": entry.measure.lower_is_better,
                "verdict": describe(entry, setting.names),
                "is_sure": entry.is_sure,
                "headline": _MICRO if entry.macro is None else _MACRO,
                "micro": asdict(entry.micro),
                "macro": None if entry.macro is None else asdict(entry.macro),
                "by_subset": {
                    name: {**asdict(scope), "is_sure": scope.is_sure} for name, scope in entry.subsets.items()
                },
                "runs": [list(runs) for runs in entry.runs],
                "differences_of_runs": {str(run): gap for run, gap in entry.gaps.items()},
                "std_over_runs": entry.std,
                "missing": dict(zip(_SIDES, entry.missing, strict=True)),
                "fewer_runs": {key: list(counts) for key, counts in entry.fewer_runs.items()},
            }
            for entry in comparisons
        ],
        "only": dict(zip(_SIDES, map(list, only), strict=True)),
        "method": list(METHOD),
    }


def to_markdown(setting: Setting, comparisons: Sequence[Comparison]) -> str:
    """Build the content of ``compare.md``: verdicts, then a table of every metric by subset.

    Args:
        setting: The systems.
        comparisons: One a metric.
    """
    first, second = setting.names
    lines = [f"# {first} against {second}", "", _head(setting).replace(" | ", "; ") + ".", ""]
    titles = _name_all(comparisons)
    lines += [
        f"- **{title}**: {describe(entry, setting.names)}" for title, entry in zip(titles, comparisons, strict=True)
    ]
    # Every metric by subset, for which the screen has no room.
    for title, entry in zip(titles, comparisons, strict=True):
        note = "lower is better" if entry.measure.lower_is_better else "higher is better"
        lines += ["", f"## {title} ({note})", ""]
        lines += ["| | first | second | difference | 95 % interval | p | p, Holm | n |", "| --- |" + " ---: |" * 7]
        scopes = [(subset_title(name), scope) for name, scope in entry.subsets.items()]
        scopes += [(_MACRO, entry.macro)] if entry.macro is not None else []
        lines += [_to_markdown_row(name, scope, entry.measure) for name, scope in [*scopes, (_MICRO, entry.micro)]]
        if entry.std is not None:
            gaps = ", ".join(f"{run}: {entry.measure.text(gap, signed=True)}" for run, gap in entry.gaps.items())
            lines += ["", f"By training seed {gaps}; standard deviation {entry.measure.text(entry.std)}."]
    notes = [*_list_missing(setting, comparisons), *_list_fewer_runs(comparisons)]
    return "\n".join([*lines, "", *notes, "", *METHOD, ""])


def _to_markdown_row(name: str, scope: Scope, measure: Measure) -> str:
    cells = [
        measure.text(scope.first),
        measure.text(scope.second),
        measure.text(scope.difference, signed=True),
        _format_interval(scope, measure),
        format_p(scope.p),
        format_p(scope.p_corrected),
        f"{scope.num_items:,}",
    ]
    return f"| {name} | {' | '.join(cells)} |"
