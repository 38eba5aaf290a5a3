"""Read what result folders hold for the paper's tables and figures: by stage, by system, of one bench.

Files are read when they are first asked for. Not known here: tables, figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from wm.errors import InputError
from wm.evaluation.aurora_bench import SUBSET_NAMES, order_subsets
from wm.evaluation.bench_rows import BenchRow, read_bench_rows
from wm.evaluation.image_scoring import VALUE_SCHEMA, Values
from wm.evaluation.judge.figures import ItemScore
from wm.evaluation.judge.score_files import read_scores
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.facts import facts_of_judgement, facts_of_prediction, facts_of_values
from wm.evaluation.paper.folders import Source, read_source
from wm.evaluation.paper.options import FigureOptions
from wm.evaluation.paper.shared_systems import SharedSystems
from wm.evaluation.paper.study_source import STUDY_STAGE, find_study
from wm.evaluation.predicted_actions import ActionRow, list_actions
from wm.evaluation.predictions import PredictionFacts, list_predictions, predictions_folder
from wm.evaluation.questions.tables import AskTables
from wm.evaluation.recorded_inputs import fetch_recorded
from wm.evaluation.rows import REFERENCES, Tables
from wm.evaluation.subsets import SubsetColumn
from wm.evaluation.votes.figures import StudyFigures
from wm.names import hint_nearest, quote_names
from wm.packaged import PREFIX
from wm.tables import read_table

__all__ = ["REFERENCES", "Absent", "Source", "Sources", "read_sources"]

PREDICTING_STAGES = ("evaluate", "collect", "edit")
"""Stages that write prediction sets."""
BENCH_STAGES = (*PREDICTING_STAGES, "score", "judge")
"""Stages whose results are of a bench: all of them must be of the same one."""
TOY_DATASETS = ("tabletop", "tabletop-videos")
"""Data sets of the toy world, whose figures never stand beside published ones."""
_TOY_JUDGE = "nano:oracle"


@dataclass(frozen=True)
class Sources:
    """What the folders hold.

    Attributes:
        folders: In the order in which they were given.
        names: System of the paper → its label in the results, where they differ.
        triplets: Folder of the bench; empty where no result is of one.
        rows: Rows of the bench.
        subset: Column that separates subsets.
        options: Choices of single figures.
        shared: Systems that several folders hold with equal figures, as far as the files were read.
    """

    folders: tuple[Source, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    triplets: str = ""
    rows: tuple[BenchRow, ...] = ()
    subset: SubsetColumn = "class_label"
    options: FigureOptions = field(default_factory=FigureOptions)
    shared: SharedSystems = field(default_factory=SharedSystems, compare=False)

    def of(self, *stages: str) -> list[Source]:
        """List the folders of some stages, in their order."""
        return [source for source in self.folders if source.stage in stages]

    def label(self, system: str) -> str:
        """Return the label that the results have for a system of the paper, such as ``C-FT``."""
        return self.names.get(system, system)

    def title(self, label: str) -> str:
        """Return the paper's name for a label of the results; the label itself where the paper has none."""
        return next((system for system, own in self.names.items() if own == label), label)

    @cached_property
    def subsets(self) -> dict[str, str]:
        """Subset of each triplet of the bench."""
        return {row.triplet_id: row.subset(self.subset) for row in self.rows}

    @cached_property
    def subset_order(self) -> list[str]:
        """The bench's subsets, those of the paper in its order."""
        return order_subsets(self.subsets.values())

    @cached_property
    def is_toy(self) -> bool:
        """Whether any result is of the toy world: nothing published is shown beside it then."""
        # By the data, by what annotated it, by the judge, or by the evaluation: any of them is enough.
        recipes = [source.record.get("recipe", {}) for source in self.folders]
        recipes += [source.annotation_recipe() for source in self.of("select")]
        datasets = {row.dataset for row in self.rows} | {str(recipe.get("dataset", "")) for recipe in recipes}
        datasets |= {str(name) for source in self.of(STUDY_STAGE) for name in source.record.get("datasets", ())}
        judges = [source.recipe("model") for source in self.of("judge")]
        oracles = [source for source in self.of("evaluate") if source.recipe("judge") == "oracle"]
        asked_toys = any(tables["toy_models"] for tables in self._asked)
        has_toy_model = asked_toys or any(str(recipe.get("idm", "")).startswith(PREFIX) for recipe in recipes)
        return bool(datasets & set(TOY_DATASETS)) or has_toy_model or _TOY_JUDGE in judges or bool(oracles)

    @cached_property
    def is_published(self) -> bool:
        """Whether published numbers may stand beside these results: not those of another bench or world."""
        # A study alone names its subsets too, where its bench has gone and nothing else says that it was a toy.
        names = self.subset_order or (list(self.study["items"]) if self.study is not None else list(SUBSET_NAMES))
        return not self.is_toy and set(names) == set(SUBSET_NAMES)

    @cached_property
    def judgements(self) -> list[ItemScore]:
        """All judgements of the ``judge`` folders, failed ones with their reason; Copy's of the first folder."""
        return self.shared.join_rows(
            self.of("judge"), self._load_judgements, lambda score: score.system, facts_of_judgement
        )

    def _load_judgements(self, source: Source) -> list[ItemScore]:
        scores = read_scores(source.folder)
        self._check_ids(source, [score.triplet_id for score in scores])
        # Subsets go by this bench and column, whatever the judging's table showed.
        return [replace(score, subset=self.subsets[score.triplet_id]) for score in scores]

    @cached_property
    def values(self) -> list[Values]:
        """Image metrics of every prediction in the ``score`` folders: rows of ``VALUE_SCHEMA``."""
        return self.shared.join_rows(
            self.of("score"), self._load_values, lambda row: str(row["system"]), facts_of_values
        )

    def _load_values(self, source: Source) -> list[Values]:
        # A scoring may be of actions alone.
        if not (source.folder / "values").is_dir():
            return []
        rows = read_table(source.folder / "values", VALUE_SCHEMA).to_pylist()
        self._check_ids(source, [row["triplet_id"] for row in rows])
        return cast(list[Values], rows)

    @cached_property
    def predictions(self) -> list[PredictionFacts]:
        """Rows of all prediction sets (``evaluate``, ``collect``, ``edit``), images not read: ``read_image_bytes(file,
        [row])`` of :mod:`wm.evaluation.predictions` gives one."""
        sources = [source for source in self.of(*PREDICTING_STAGES) if predictions_folder(source.folder).is_dir()]
        return self.shared.join_rows(sources, self._load_predictions, lambda row: row["system"], facts_of_prediction)

    def _load_predictions(self, source: Source) -> list[PredictionFacts]:
        facts = list_predictions(source.folder)
        self._check_ids(source, [row["triplet_id"] for row in facts])
        return facts

    @cached_property
    def predicted_in(self) -> dict[str, str]:
        """Folder of the prediction set of each system."""
        # FOLDER/predictions/part.parquet
        return {row["system"]: str(Path(row["file"]).parents[1]) for row in self.predictions}

    @cached_property
    def judged_systems(self) -> frozenset[str]:
        """Labels that have judgements of single candidates, failed ones too: those that tables show."""
        return frozenset(score.system for score in self.judgements if score.num_candidates == 1)

    @cached_property
    def scored_systems(self) -> frozenset[str]:
        """Labels that have image metrics."""
        return frozenset(str(row["system"]) for row in self.values)

    @cached_property
    def actions(self) -> list[ActionRow]:
        """Actions that inverse models wrote, of ``evaluate`` and ``collect``."""
        return self.shared.join_rows(
            self.of(*PREDICTING_STAGES),
            lambda source: list_actions(source.folder),
            lambda row: row["system"],
            lambda row: ((row["triplet_id"], row["run"]), row["action"]),
        )

    @cached_property
    def tables(self) -> list[tuple[Source, Tables]]:
        """``tables.json`` of every evaluation; a label that two hold is in the first one's alone."""
        return self.shared.join_tables(self.of("evaluate"))

    @cached_property
    def study(self) -> StudyFigures | None:
        """The figures of the one study with people; None without one."""
        return find_study(self.of(STUDY_STAGE), self._check_ids if self.rows else None)

    @cached_property
    def _asked(self) -> list[AskTables]:
        # Of the published sets: questions of one's own stand beside no published number.
        sources = [source for source in self.of("ask") if source.recipe("benchmark") != "folder"]
        return [cast(AskTables, source.load_json("tables.json")) for source in sources]

    def list_systems(self) -> list[str]:
        """List the labels that the results hold, of images and of actions, in the order of the folders."""
        # Of images first, then of the evaluations' tables, which have models without images too.
        labels = [row["system"] for row in self.predictions] + [score.system for score in self.judgements]
        labels += [str(row["system"]) for row in self.values] + [row["system"] for row in self.actions]
        for _, tables in self.tables:
            labels += [row["label"] for row in (*tables["fdm"], *tables["idm"], *tables["probe"])]
        labels += self.study["systems"] if self.study is not None else []
        labels += [row["label"] for tables in self._asked for row in tables["rows"]]
        return list(dict.fromkeys(labels))

    def _check_ids(self, source: Source, ids: Sequence[str]) -> None:
        # A result of fewer triplets is of this bench, of others it is not.
        unknown = sorted({triplet_id for triplet_id in ids if triplet_id not in self.subsets})
        if unknown:
            raise InputError(
                f"{source.folder} is of another bench: {len(unknown)} of its triplets, {unknown[0]!r:.60} the first, "
                f"are not among the {len(self.rows)} of {self.triplets}"
            )


def read_sources(
    folders: Sequence[str],
    *,
    names: Mapping[str, str] | None = None,
    triplets: str = "",
    subset: SubsetColumn = "class_label",
    options: FigureOptions | None = None,
) -> Sources:
    """Read which results some folders hold, and check that those of a bench are of one.

    Args:
        folders: Output folders of any stages.
        names: System of the paper → its label in the results, where they differ.
        triplets: Folder of the bench; empty: the one that the results name.
        subset: Column that separates subsets.
        options: Choices of single figures; None: their defaults.

    Returns:
        The results.

    Raises:
        InputError: A folder is no finished result, two are of different benches or judges, hold one system with other
            figures, or the bench cannot be read.
    """
    sources = tuple(read_source(folder) for folder in folders)
    # 1. Each folder by itself, then the bench that they share.
    of_bench = [source for source in sources if source.stage in BENCH_STAGES]
    bench = triplets or (fetch_recorded(str(of_bench[0].recipe("triplets"))) if of_bench else "")
    if not bench:
        result = Sources(sources, dict(names or {}), subset=subset, options=options or FigureOptions())
        # Read here, so that what is damaged shows before anything is made.
        _ = result.study
        return result
    if not Path(bench).is_dir():
        raise InputError(
            f"the bench {bench} of {of_bench[0].folder if of_bench else 'triplets'} is not there; give triplets=FOLDER"
        )
    # 2. What holds of all of them together.
    rows = tuple(read_bench_rows(bench))
    _check_benches(of_bench, bench, rows)
    _check_judges([source for source in sources if source.stage == "judge"])
    result = Sources(sources, dict(names or {}), bench, rows, subset, options or FigureOptions())
    # All files are read here: what is damaged, or differs between two folders, shows before anything is made.
    labels = result.list_systems()
    for system, label in result.names.items():
        if label not in labels:
            raise InputError(
                f"names: {system} = {label!r:.100}; systems of the results: {quote_names(labels)}"
                f"{hint_nearest(label, labels)}"
            )
        # Under one name only one of them would be shown.
        if label != system and system in labels and system not in result.names.values():
            raise InputError(
                f"names: {system} = {label!r:.100}, but the results hold a system named {system!r} too: leave the name "
                "out, and both have columns"
            )
    return result


def _check_benches(of_bench: Sequence[Source], bench: str, rows: Sequence[BenchRow]) -> None:
    """Check that no result is of another bench. Benches are known by their triplets, as folders may be copied."""
    ids = {row.triplet_id for row in rows}
    for name in dict.fromkeys(str(source.recipe("triplets")) for source in of_bench):
        other = fetch_recorded(name)
        if other == bench or not Path(other).is_dir():
            continue
        if (other_ids := {row.triplet_id for row in read_bench_rows(other)}) != ids:
            owner = next(source.folder for source in of_bench if str(source.recipe("triplets")) == name)
            raise InputError(
                f"{owner} is of another bench: {other} and {bench} share {len(ids & other_ids)} triplets of "
                f"{len(other_ids)} and {len(ids)}"
            )


def _check_judges(judgings: Sequence[Source]) -> None:
    """Check that one judge gave all scores: those of two are no figures of one table."""
    first = judgings[0] if judgings else None
    for source in judgings:
        if first is not None and source.recipe("model") != first.recipe("model"):
            raise InputError(
                f"{first.folder} was judged by {first.recipe('model')}, {source.folder} by {source.recipe('model')}: "
                "a table is of one judge"
            )
