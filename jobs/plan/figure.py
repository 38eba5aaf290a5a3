"""Draw hours and price over the number of nodes. Knows nothing of how they were estimated."""

from collections.abc import Sequence
from pathlib import Path

from wm.datasets.sweep import ClusterSize
from wm.errors import InputError
from wm.files.atomic import replace_file

_COLOURS = {"cpu": "C0", "gpu": "C1", "driver": "C3", "bucket": "C4", "driver alone": "C5"}


def check_figure(figure: str) -> None:
    """Refuse the name of a figure of another kind, before anything is computed.

    Args:
        figure: File name; empty: none.

    Raises:
        InputError: It ends in neither.
    """
    if figure and Path(figure).suffix not in (".svg", ".png"):
        raise InputError(f"figure = {figure!r:.200}: expected a name that ends in .svg or .png")


def draw_sizes(rows: Sequence[ClusterSize], path: Path, title: str) -> None:
    """Draw the estimate of every cluster size into an SVG or PNG file.

    Args:
        rows: From the smallest cluster to the largest.
        path: The file.
        title: Above the figure.
    """
    from matplotlib.figure import Figure

    from wm.evaluation.paper.drawing import save_png, save_svg

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    nodes = [row.nodes for row in rows]
    axes.plot(nodes, [row.hours for row in rows], color="0.6", linewidth=1, zorder=1)
    # A colour says what sets the pace there.
    for name, colour in _COLOURS.items():
        own = [row for row in rows if row.bottleneck == name]
        if own:
            axes.scatter(
                [row.nodes for row in own], [row.hours for row in own], color=colour, label=f"hours, by {name}"
            )
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="hours", title=title)
    axes.grid(visible=True, which="major", linewidth=0.3)
    # Without the price of every node there is no line of prices.
    costs = [row.cost for row in rows if row.cost is not None]
    handles, labels = axes.get_legend_handles_labels()
    if len(costs) == len(rows):
        prices = axes.twinx()
        (line,) = prices.plot(nodes, costs, color="0.3", linestyle="--", linewidth=1)
        prices.set(yscale="log", ylabel="price")
        handles, labels = [*handles, line], [*labels, "price"]
    axes.legend(handles, labels, fontsize=8, loc="upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_bytes((save_svg if path.suffix == ".svg" else save_png)(figure))
