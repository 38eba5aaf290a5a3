"""Say which of two systems is better, on which subsets, with what certainty: every metric that both have is compared
item by item. Systems are named FOLDER:LABEL; a folder is the output of evaluate, judge or score, or has some below it.

  wm compare runs/a:C-FDM runs/b:C-FT
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.compare.recipe import CompareRecipe
from jobs.compare.report import Setting, print_comparisons, print_plan, to_json, to_markdown
from wm.cli import main as cli_main
from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.comparison.bases import MetricKey, list_differences
from wm.evaluation.comparison.figures import Comparison, compare_metric
from wm.evaluation.comparison.folders import (
    Choice,
    Result,
    fetch_system,
    find_results,
    is_folder,
    parse_system,
    split_choice,
)
from wm.evaluation.comparison.measures import MEASURES, find_measure
from wm.evaluation.comparison.values import SystemValues, list_labels, read_values
from wm.evaluation.comparison.verdict import METHOD
from wm.evaluation.rows import CEILING, COPY
from wm.evaluation.subsets import SubsetColumn
from wm.files.mirror import to_uri
from wm.names import find_nearest, hint_nearest, quote_names
from wm.runs import Run, digest_of, write_json, write_text

_EXAMPLE = "such as wm compare runs/a:C-FDM runs/b:C-FT"
_COLUMNS: tuple[SubsetColumn, ...] = ("class_label", "dataset", "split")


def run(recipe: CompareRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Compare two systems and print which is better.

    Args:
        recipe: Which systems.
        dry_run: Check everything and name what would be compared.

    Returns:
        The comparison, as ``compare.json`` has it; empty on a dry run.

    Raises:
        InputError: A system or a result is not there, or the two are of different benches or share no metric.
    """
    # 1. The values of both.
    results, labels = _find_systems(recipe)
    first, second = (
        read_values(of, label, choice, recipe.triplets) for of, (label, choice) in zip(results, labels, strict=True)
    )
    bench = _join_benches(first, second)
    setting = _describe(recipe, results, first, second, bench)
    keys = _choose_metrics(recipe, first, second)
    if dry_run:
        print_plan(setting, keys)
        return {}
    # 2. Their differences, metrics in the order of the list.
    subsets = {row.triplet_id: row.subset(setting.subset) for row in bench}
    comparisons = [
        comparison
        for key in keys
        if (
            comparison := compare_metric(
                find_measure(key[0]), key[1], first.metrics[key], second.metrics[key], subsets, seed=recipe.seed
            )
        )
    ]
    if not comparisons:
        raise InputError(f"{quote_names(setting.names)} share no item")
    # Of metrics that were chosen nobody asks for the others.
    only = [[] if recipe.metrics else _list_others(system, keys) for system in (first, second)]
    differences = list_differences(first.metrics, second.metrics)
    print_comparisons(setting, comparisons, only, differences)
    document = to_json(setting, comparisons, only)
    if recipe.out:
        _write(recipe, results, setting, comparisons, document)
    return document


def _list_others(system: SystemValues, keys: Sequence[MetricKey]) -> list[str]:
    """Name the metrics of a system that are not compared, with what they were measured with."""
    others = [(name, str(basis)) for name, basis in system.metrics if (name, basis) not in keys]
    return sorted(f"{name} ({basis})" if basis else name for name, basis in others)


def _find_systems(recipe: CompareRecipe) -> tuple[list[list[Result]], list[tuple[str, Choice]]]:
    """Find the results, the label and the choice of both systems."""
    names = [parse_system(fetch_system(text), recipe.results) for text in (recipe.first, recipe.second)]
    # A label alone is looked up where the other one is.
    folders = [name.folders or other.folders for name, other in zip(names, names[::-1], strict=True)]
    for text, of in zip((recipe.first, recipe.second), folders, strict=True):
        if not of:
            raise InputError(f"{text!r:.200} is no folder; expected FOLDER:LABEL, or results=[…] with the folders")
    results = [find_results(of) for of in folders]
    known_labels = [list_labels(of) for of in results]
    default = Choice(recipe.k)
    choices = [
        split_choice(name.label, systems, default) if name.label else ("", default)
        for name, systems in zip(names, known_labels, strict=True)
    ]
    labels = [label for label, _ in choices]
    for index, (label, systems) in enumerate(zip(tuple(labels), known_labels, strict=True)):
        # Without a label: the other one's, or the only system that is no reference.
        own = [name for name in systems if name not in (COPY, CEILING)]
        other = labels[1 - index]
        guess = other if other in systems and folders[0] != folders[1] else own[0] if len(own) == 1 else ""
        labels[index] = label or guess
        if labels[index] not in systems:
            where = f"{folders[index][0]}:{label or 'LABEL'}"
            raise InputError(
                f"{where!r:.300}: name one of the systems there: {quote_names(systems)}"
                f"{hint_nearest(label, systems) if label else ''}"
            )
    return results, [(label, choice) for label, (_, choice) in zip(labels, choices, strict=True)]


def _join_benches(first: SystemValues, second: SystemValues) -> list[BenchRow]:
    """Join the benches of both: one is the other, or a part of it."""
    by_id = [{row.triplet_id: row for row in system.bench} for system in (first, second)]
    shared = set(by_id[0]) & set(by_id[1])
    if len(shared) < min(map(len, by_id)):
        raise InputError(
            f"{quote_names([first.label, second.label])} are of different benches: of {len(by_id[0]):,} and "
            f"{len(by_id[1]):,} triplets they share {len(shared):,}"
        )
    # In the order of the larger one, whose other triplets the smaller one lacks.
    return list(first.bench if len(first.bench) >= len(second.bench) else second.bench)


def _describe(
    recipe: CompareRecipe,
    results: Sequence[Sequence[Result]],
    first: SystemValues,
    second: SystemValues,
    bench: Sequence[BenchRow],
) -> Setting:
    """Describe what is compared: names that differ, and the column of the subsets."""
    # 1. The subsets, by the first column that separates some.
    columns_of = [str(result.key("subset")) for of in results for result in of if result.key("subset")]
    columns = [column for name in dict.fromkeys(columns_of) for column in _COLUMNS if column == name] or list(_COLUMNS)
    several = [column for column in columns if len({row.subset(column) for row in bench}) > 1]
    # 2. Names that differ: by label, else by choice, else by folder.
    names = [system.label for system in (first, second)]
    if names[0] == names[1] and first.choice != second.choice:
        names = [f"{system.label}, {system.choice}" for system in (first, second)]
    if names[0] == names[1]:
        names = [f"{name} of {to_uri(str(of[0].folder))}" for name, of in zip(names, results, strict=True)]
    return Setting(
        names=(names[0], names[1]),
        labels=(first.label, second.label),
        choices=(str(first.choice), str(second.choice)),
        folders=(_list_folders(results[0]), _list_folders(results[1])),
        subset=recipe.subset or (several or columns)[0],
        num_items=len(bench),
    )


def _list_folders(results: Sequence[Result]) -> list[str]:
    """List the folders of results, those of a bucket by their URIs."""
    return [to_uri(str(result.folder)) for result in results]


def _choose_metrics(recipe: CompareRecipe, first: SystemValues, second: SystemValues) -> list[MetricKey]:
    """List the metrics that both have, measured with the same."""
    # In the order of the list, unknown ones last.
    order = list(MEASURES)
    both = [key for key in first.metrics if key in second.metrics]
    both.sort(key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    # Metrics that both have, but not measured alike.
    differences = list_differences(first.metrics, second.metrics)
    names = list(dict.fromkeys(key[0] for key in both))
    for name in recipe.metrics:
        if name not in names:
            why = "".join(f"; not comparable: {text}" for text in differences if name in text.partition(":")[0])
            raise InputError(
                f"metrics = {name!r:.100}: both have {quote_names(names)}{hint_nearest(name, names)}{why:.600}"
            )
    if not both:
        if differences:
            raise InputError(
                f"{quote_names([first.label, second.label])} share no metric that was measured alike: "
                f"{'; '.join(differences):.600}"
            )
        first_text, second_text = (
            quote_names(dict.fromkeys(key[0] for key in system.metrics)) for system in (first, second)
        )
        raise InputError(
            f"{quote_names([first.label, second.label])} share no metric: {first_text:.300} | {second_text:.300}"
        )
    return [key for key in both if not recipe.metrics or key[0] in recipe.metrics]


def _write(
    recipe: CompareRecipe,
    results: Sequence[Sequence[Result]],
    setting: Setting,
    comparisons: Sequence[Comparison],
    document: dict[str, Any],
) -> None:
    """Write both files; an earlier comparison of the same results stays."""
    inputs = {f"result {to_uri(str(result.folder))}": digest_of(result.folder) for of in results for result in of}
    # Another comparison in that folder is never overwritten.
    stage = Run(recipe.out, "compare", recipe, inputs)
    if not stage.is_complete():
        stage.start()
        write_json(stage.out / "compare.json", document)
        write_text(stage.out / "compare.md", to_markdown(setting, comparisons))
        stage.finish({"metrics": len(comparisons), "items": setting.num_items})
    print(f"compare: {Path(recipe.out) / 'compare.md'}")


def to_settings(arguments: Sequence[str]) -> list[str]:
    """Give the two systems, which stand alone on the command line, their keys.

    Args:
        arguments: Of the command line.

    Returns:
        The same with ``first=`` and ``second=`` before them.

    Raises:
        InputError: Fewer or more than two systems are given, or a key is misspelt.
    """
    settings, systems, keys = [], list[str](), set[str]()
    for text in arguments:
        key = _find_key(text)
        if key is not None or text.startswith("-") or text.lower().endswith(".toml"):
            settings.append(text)
            keys.add(key or text)
        else:
            systems.append(text)
    free = [name for name in ("first", "second") if name not in keys]
    if len(systems) > len(free):
        raise InputError(f"{systems[len(free)]!r:.200} is a third system; expected two, {_EXAMPLE}")
    # A recipe may name them, and --help needs none.
    is_complete = any(text.startswith("-h") or text.startswith("--h") or text.endswith(".toml") for text in keys)
    if len(systems) < len(free) and not is_complete:
        names = systems or [name for name in ("first", "second") if name in keys]
        raise InputError(f"expected two systems, {_EXAMPLE}; got {quote_names(names)}")
    return [f"{name}={text}" for name, text in zip(free, systems, strict=False)] + settings


def _find_key(text: str) -> str | None:
    """Return the key of a setting; None for a system."""
    match = re.match(r"([A-Za-z_]\w*)=", text)
    if match is None:
        return None
    if match[1] in CompareRecipe.model_fields:
        return match[1]
    # A folder's name may hold the sign, but one that is not there is a misspelt key.
    ends = [index for index, character in enumerate(text) if character == ":"] + [len(text)]
    nearest = find_nearest(match[1], CompareRecipe.model_fields)
    if nearest is not None and not any(is_folder(text[:end]) for end in ends):
        raise InputError(f"unknown key {match[1]!r:.100} in {text!r:.200}; did you mean {nearest}?")
    return None


def main() -> int:
    """Run the command line; return its exit status: 0 for any comparison that was made."""
    # Before the recipe is parsed: a system alone is no setting.
    try:
        arguments = to_settings(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    description = "\n".join([__doc__ or "", "how to read it:", *(f"  {line}" for line in METHOD)])
    return cli_main(CompareRecipe, run, name="compare", description=description, argv=arguments)
