"""Read answers to spatial questions for table 2's last rows: accuracies of ``wm ask``, by benchmark and label."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import cast

from wm.evaluation.metrics.stats import sample_std
from wm.evaluation.paper.cells import Absent, Cell
from wm.evaluation.paper.folders import Source
from wm.evaluation.paper.shared_systems import Facts
from wm.evaluation.paper.sources import Sources
from wm.evaluation.paper.systems import SYSTEMS
from wm.evaluation.questions.figures import ModelRow
from wm.evaluation.questions.formats import NUM_RELEASED, TITLES
from wm.evaluation.questions.items import Benchmark
from wm.evaluation.questions.tables import AskTables

BENCHMARKS: tuple[Benchmark, ...] = ("spatialmqa", "embspatial")
"""In the order of the paper's rows."""


@dataclass(frozen=True)
class SpatialAnswers:
    """Figures of one benchmark.

    Attributes:
        benchmark: Which.
        rows: Of each model that was asked.
        notes: How answers were read, one sentence a way.
    """

    benchmark: Benchmark
    rows: tuple[ModelRow, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Return the row's title."""
        return TITLES[self.benchmark]

    @property
    def labels(self) -> list[str]:
        """Return the labels of the models that were asked."""
        return list(dict.fromkeys(row["label"] for row in self.rows))


def read_spatial(sources: Sources) -> list[SpatialAnswers]:
    """Read the answers of all ``ask`` folders.

    Args:
        sources: The results.

    Returns:
        Figures of each benchmark, empty where it was not asked.

    Raises:
        InputError: Two folders hold a label with other figures.
    """
    return [_read_benchmark(sources, benchmark) for benchmark in BENCHMARKS]


def _read_benchmark(sources: Sources, benchmark: Benchmark) -> SpatialAnswers:
    # The two benchmarks share labels, not figures.
    folders = [source for source in sources.of("ask") if source.recipe("benchmark") == benchmark]
    rows = sources.shared.join_rows(folders, _load_rows, lambda row: row["label"], _facts_of)
    notes = dict.fromkeys(_describe_reading(source) for source in folders)
    return SpatialAnswers(benchmark, tuple(rows), tuple(notes))


def _load_rows(source: Source) -> list[ModelRow]:
    return cast(AskTables, source.load_json("tables.json"))["rows"]


def _facts_of(row: ModelRow) -> Facts:
    accuracy = row["accuracy"]
    return (row["run"],), (accuracy["share"] if accuracy else None, row["num_questions"], row["num_failed"])


def _describe_reading(source: Source) -> str:
    tables = cast(AskTables, source.load_json("tables.json"))
    # Both decide the figure, and neither is printed in the paper.
    by = "options by their words" if tables["style"] == "words" else "options by letters"
    reading = (
        "read as the benchmark's public script reads them" if tables["reading"] == "published" else "one option named"
    )
    prompt = "a prompt of one's own" if source.recipe("prompt") else "our prompt"
    # Another split is not what the paper asked.
    file = f" to the questions of {source.recipe('file')}" if source.recipe("file") else ""
    return (
        f"{tables['title']}: accuracy in per cent of greedy answers{file}, {by}, {reading}, {prompt}; the paper prints "
        "neither prompt nor reading. Unparsed answers are wrong."
    )


def spatial_cell(sources: Sources, answers: SpatialAnswers, system: str) -> Cell:
    """Build the cell of a system's accuracy, in per cent.

    Args:
        sources: The results.
        answers: Of the row's benchmark.
        system: Key of the paper's system, or a label.

    Returns:
        The cell; with the reason and the command where the system was not asked.
    """
    label = sources.label(system)
    rows = [row for row in answers.rows if row["label"] == label]
    shares = [accuracy for row in rows if (accuracy := row["accuracy"]) is not None]
    if not shares:
        return Cell(digits=1, absent=_explain_absent(answers, system, was_asked=bool(rows)))
    # In per cent, as the paper prints them.
    values = [100 * share["share"] for share in shares]
    # Wilson's interval is of one run's answers; several runs have a spread instead.
    only = shares[0] if len(shares) == 1 else None
    return Cell(
        mean=mean(values),
        std=sample_std(values),
        num_values=len(values),
        ci_low=None if only is None else 100 * only["ci_low"],
        ci_high=None if only is None else 100 * only["ci_high"],
        n=min(share["n"] for share in shares),
        expected=NUM_RELEASED[answers.benchmark],
        digits=1,
    )


def _explain_absent(answers: SpatialAnswers, system: str, *, was_asked: bool) -> Absent:
    if was_asked:
        return Absent(f"{system} could be asked no question of {answers.title}")
    entry = SYSTEMS.get(system)
    ask = f"wm ask paper/ask-{answers.benchmark}"
    # A label of one's own has no recipe to name.
    if entry is None:
        return Absent(f"no answers of {system} to {answers.title}")
    # A base is asked as it is.
    train = f"wm train {entry.recipe} && " if entry.origin == "trained" else ""
    return Absent(f"no answers of {system} to {answers.title}", f"{train}{ask}")


def list_asked(answers: Sequence[SpatialAnswers]) -> list[str]:
    """List the labels that were asked any benchmark."""
    return list(dict.fromkeys(label for of in answers for label in of.labels))
