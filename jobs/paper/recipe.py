"""Define what ``paper`` is asked: which tables and figures, from which results."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.evaluation.paper.figures import FIGURES
from wm.evaluation.paper.options import FigureOptions
from wm.evaluation.paper.sources import REFERENCES
from wm.evaluation.paper.systems import SYSTEMS
from wm.evaluation.paper.tables import TABLES
from wm.evaluation.subsets import SubsetColumn
from wm.names import hint_nearest, quote_names
from wm.paths import INPUT, InputPath, OutputPath

ITEMS = [*(f"table {number}" for number in TABLES), *(f"figure {number}" for number in sorted(FIGURES, key=int))]
"""What can be made, in the order of the page."""


class PaperRecipe(Recipe):
    """Which tables and figures, from which results."""

    items: list[str] = Field(default=["all"], min_length=1)
    """Such as "table 2" and "figure 4"; "tables", "figures", "all": all of a kind, or everything."""
    results: Annotated[list[InputPath], INPUT] = []
    """Output folders of wm evaluate, collect, edit, score, judge, study report, annotate, select, ingest, predict, in
    any order; of each system one."""
    out: OutputPath
    """Folder for paper.html, and for each table .md, .tex and .csv, for each figure .svg, .png and .csv."""
    names: dict[str, str] = Field(default_factory=dict)
    """System of the paper → its label in the results, where they differ: names.C-FT=mine."""
    triplets: InputPath = ""
    """Folder of the bench; empty: the one that the results name."""
    subset: SubsetColumn = "class_label"
    """Column that separates subsets; in AURORA-Bench class_label."""
    version: Literal["acl", "v1"] = "acl"
    """Of table 2. acl: the columns of the later text, with Liquid. v1: those of arXiv v1, with Copy and the best of
    three."""
    caption_of: Literal["target", "prediction"] = "target"
    """Whose BLIP caption CLIP-T of table 6 compares a prediction with."""
    figures: FigureOptions = FigureOptions()
    """Choices of single figures: figures.log_scores=true."""
    title: str = "Tables and figures of the paper"
    """Headline of the page."""

    @field_validator("items", mode="before")
    @classmethod
    def _to_list(cls, value: object) -> object:
        # One item needs no list on a command line.
        return [value] if isinstance(value, str) else value

    @field_validator("items")
    @classmethod
    def _check_items(cls, values: list[str]) -> list[str]:
        for value in values:
            if value not in (*ITEMS, "tables", "figures", "all"):
                raise ValueError(
                    f"{value!r:.60} is no table or figure; expected all, tables, figures, {', '.join(ITEMS)}"
                )
        return values

    @field_validator("results")
    @classmethod
    def _check_results(cls, values: list[str]) -> list[str]:
        if len(set(values)) != len(values) or "" in values:
            raise ValueError("expected different folders")
        return values

    @field_validator("names")
    @classmethod
    def _check_names(cls, names: dict[str, str]) -> dict[str, str]:
        # A misspelt name would leave its column empty. References have one label everywhere, by which they are known.
        systems = [system for system in SYSTEMS if system not in REFERENCES]
        for system in names:
            if system not in systems:
                raise ValueError(
                    f"{system!r:.60} is no system of the paper; expected {quote_names(systems)}"
                    f"{hint_nearest(system, systems)}"
                )
        # One label in two columns would be one system under two names.
        if len(set(names.values())) != len(names):
            raise ValueError("two systems have one label")
        return names

    @model_validator(mode="after")
    def _check_out(self) -> "PaperRecipe":
        out = Path(self.out).absolute()
        for folder in (*self.results, *([self.triplets] if self.triplets else [])):
            # Not below one either: what a stage wrote stays as it is.
            if out == Path(folder).absolute() or Path(folder).absolute() in out.parents:
                raise ValueError(f"out = {self.out!r:.200} is inside {folder!r:.200}, which is read")
        return self

    def chosen(self) -> list[str]:
        """List the items that are made, in the order of the page, each once."""
        # Order is the page's, however they were asked for.
        kinds = {"all": ("table", "figure"), "tables": ("table",), "figures": ("figure",)}
        items = {
            item for value in self.items for item in ITEMS if item == value or item.split()[0] in kinds.get(value, ())
        }
        return [item for item in ITEMS if item in items]
