"""Define what a reader may choose about the figures: which items they show, and in which form."""

from pydantic import Field

from wm.config import Recipe
from wm.paths import InputPath


class FigureOptions(Recipe):
    """Choices of single figures."""

    triplets: list[str] = []
    """Ids of the bench's triplets that figure 6 shows; a subset without one of them shows one by seed."""
    weighted_triplets: list[str] = []
    """Ids of the triplets that figure 3 shows; a data set without one of them shows one by seed."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the choice of triplets."""
    codec: InputPath = ""
    """Folder of a model whose image codec weighs the tokens of figure 3, where a data set holds no weights itself."""
    log_scores: bool = False
    """Figure 9: show log-likelihoods, and not their exponential."""
