"""Print what ``paper`` reads and makes. Knows nothing of how it is made."""

from collections.abc import Sequence

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.paper.cells import Table
from wm.evaluation.paper.formats import name_of
from wm.evaluation.paper.page import EmptyPlace, RenderedFigure
from wm.evaluation.paper.sources import Sources


def describe_sources(sources: Sources) -> list[str]:
    """Describe the results in a few sentences, as the page and the command print them.

    Args:
        sources: The results.

    Returns:
        Paragraphs: the bench, the systems, the folders.
    """
    if not sources.folders:
        return ["No results were given: these are the published numbers alone."]
    texts = []
    # The bench's sizes first: every mean below is over them.
    if sources.rows:
        subsets = list(sources.subsets.values())
        sizes = ", ".join(f"{subset_title(name)} {subsets.count(name)}" for name in sources.subset_order)
        texts.append(f"Bench: {sources.triplets}, {len(sources.rows):,} triplets ({sizes}).")
        texts.append(f"Systems: {', '.join(sources.title(label) for label in sources.list_systems()) or 'none'}.")
        # Whoever gave two folders must know whose figures these are.
        texts += sources.shared.describe()
    # With the stage: a folder's name need not say it.
    folders = "; ".join(f"{source.folder} ({source.stage})" for source in sources.folders)
    texts.append(f"Results: {folders}.")
    return texts


def print_sources(sources: Sources) -> None:
    """Print the results."""
    for text in describe_sources(sources):
        print(f"paper: {text}")


def print_items(tables: Sequence[Table], figures: Sequence[RenderedFigure]) -> None:
    """Print how much of each table and figure is there.

    Args:
        tables: As made.
        figures: Likewise.
    """
    # Of how many cells ours could be: those without a place in the table do not count.
    for table in tables:
        cells = [cell for row in table.rows for cell in row.cells]
        filled = sum(cell.mean is not None for cell in cells)
        print(f"  {name_of(table):<12} {filled:>4,} of {filled + sum(c.absent is not None for c in cells):,} cells")
    for figure in figures:
        print(f"  {figure.name:<12} {'drawn' if figure.absent is None else 'absent: ' + figure.absent.reason}")


def print_empty(reasons: Sequence[EmptyPlace]) -> None:
    """Print each reason for empty cells, and the command that would fill them."""
    for entry in reasons:
        print(f"  {entry.where}: {entry.reason}" + (f"\n    {entry.command}" if entry.command else ""))
