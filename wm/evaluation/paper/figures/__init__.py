"""List the paper's figures: how each is read from results and plotted, and what it shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wm.evaluation.paper.figures.action_tree import build_action_tree, read_action_tree
from wm.evaluation.paper.figures.class_scores import build_class_scores, class_scores_csv, read_class_scores
from wm.evaluation.paper.figures.heat_maps import build_heat_maps
from wm.evaluation.paper.figures.histograms import build_histograms, histograms_csv, read_histograms
from wm.evaluation.paper.figures.image_grid import build_image_grid, read_image_grid
from wm.evaluation.paper.figures.probe import build_probe_heatmap, build_probe_scatter, heatmap_csv, scatter_csv
from wm.evaluation.paper.figures.read_heat_maps import read_heat_maps
from wm.evaluation.paper.figures.read_probe import read_finetuned_scatter, read_heatmap, read_zero_shot_scatter
from wm.evaluation.paper.figures.read_verification import read_verification
from wm.evaluation.paper.figures.verification import build_verification, verification_csv
from wm.evaluation.paper.sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureKind:
    """A figure of the paper.

    Attributes:
        title: Such as ``Verification at several K``.
        caption: What it shows, and how what is ours differs from the paper's.
        read: Gathers its data from results; an ``Absent`` where they lack it. Typed data of the figure's own.
        build: Draws that data.
        to_csv: Writes that data as CSV; None where it has no such form.
    """

    title: str
    caption: str
    read: Callable[[Sources], Any]
    build: Callable[[Any], "Figure"]
    to_csv: Callable[[Any], str] | None = None


FIGURES: dict[str, FigureKind] = {
    "2": FigureKind(
        "How often models prefer the true trajectory",
        "Share of the bench's triplets whose reference is likelier than a manipulated one, ties counting half; 50 is "
        "chance. Models that read pixels are asked for the action alone.",
        read_heatmap,
        build_probe_heatmap,
        heatmap_csv,
    ),
    "3": FigureKind(
        "Where an action changes an image",
        "One triplet of each data set: source, target, and the recognition model's weights of the target's tokens, "
        "squared distances of features with mean 1, over the target in grey.",
        read_heat_maps,
        build_heat_maps,
    ),
    "4": FigureKind(
        "Verification at several K",
        "Mean score of the candidate that the inverse model chooses among K, by subset; horizontal lines: systems that "
        "predict once. The average is that of the subsets, each counting alike. A judge is asked about the first K "
        "candidates; figures of an evaluation itself are means over all groups of K, at K = 1 over all candidates.",
        read_verification,
        build_verification,
        verification_csv,
    ),
    "5": FigureKind(
        "Predicted futures of one image",
        "Each action is done in every image of the level before; below an image the inverse model's mean "
        "log-likelihood of its action.",
        read_action_tree,
        build_action_tree,
    ),
    "6": FigureKind(
        "Predictions side by side",
        "One triplet a subset, chosen by seed: input, true output, and the first prediction of each system's first "
        "training seed; no candidate was chosen.",
        read_image_grid,
        build_image_grid,
    ),
    "7": FigureKind(
        "Likelihoods of references and negatives, zero-shot",
        "One point a triplet: negative log-likelihoods in nats, summed over the action's or the image's tokens; below "
        "the dashed diagonal the reference is preferred. The paper does not say what its axes sum.",
        read_zero_shot_scatter,
        build_probe_scatter,
        scatter_csv,
    ),
    "8": FigureKind(
        "Likelihoods of references and negatives, fine-tuned inverse model",
        "As Figure 7, of the action; the first training seed where there are several.",
        read_finetuned_scatter,
        build_probe_scatter,
        scatter_csv,
    ),
    "9": FigureKind(
        "Likelihood of the chosen triplets' actions",
        "By class of action, classes sorted by their median. The likelihood is exp of the mean log-likelihood of an "
        "action's tokens, which the paper does not say.",
        read_class_scores,
        build_class_scores,
        class_scores_csv,
    ),
    "11": FigureKind(
        "The judge's scores with and without weights in the loss",
        "How often each score from 0 to 10 was given; dashed: the mean. Failed judgements are counted apart.",
        read_histograms,
        build_histograms,
        histograms_csv,
    ),
}
"""Number of a figure, such as ``4`` → how it is made; in the order of the page."""
