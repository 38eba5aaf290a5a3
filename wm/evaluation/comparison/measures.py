"""Name the metrics that two systems are compared by: title, direction, digits. Knows no value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A metric of single items."""

    key: str
    title: str
    scale: float = 1.0
    """Factor of what is shown: 100 for per cent."""
    digits: int = 3
    """After the point."""
    lower_is_better: bool = False

    def text(self, value: float, *, signed: bool = False) -> str:
        """Format a value.

        Args:
            value: As it was measured.
            signed: Write a plus too, as for differences.
        """
        # Rounded first: of -0.0001 two digits are 0.00, which has no sign.
        rounded = round(value * self.scale, self.digits) + 0.0
        return f"{rounded:{'+' if signed else ''}.{self.digits}f}"


JUDGE_PARTS = ("final", "editing_success", "minimal_editing")
"""Scores of a judge and of the oracle, 0 to 10."""

# The judge first, as it is the paper's figure; what only a toy world can measure behind it.
_MEASURES = (
    Measure("judge.final", "judge's score", digits=2),
    Measure("judge.editing_success", "judge's editing success", digits=2),
    Measure("judge.minimal_editing", "judge's minimal editing", digits=2),
    Measure("oracle.final", "oracle's score", digits=2),
    Measure("oracle.editing_success", "oracle's editing success", digits=2),
    Measure("oracle.minimal_editing", "oracle's minimal editing", digits=2),
    Measure("right", "right, %", scale=100, digits=1),
    Measure("copied", "copies, %", scale=100, digits=1, lower_is_better=True),
    # Image distances and similarities.
    Measure("l1", "L1", digits=4, lower_is_better=True),
    Measure("l1_square", "L1 of the square", digits=4, lower_is_better=True),
    Measure("clip_i", "CLIP-I", digits=4),
    Measure("clip_t_target", "CLIP-T, target's caption", digits=4),
    Measure("clip_t_prediction", "CLIP-T, own caption", digits=4),
    Measure("dino", "DINO", digits=4),
    Measure("preference.fdm", "truth preferred, forward, %", scale=100, digits=1),
    Measure("preference.idm", "truth preferred, inverse, %", scale=100, digits=1),
    # Actions of inverse models.
    Measure("right_action", "right actions, %", scale=100, digits=1),
    Measure("rouge1", "ROUGE-1"),
    Measure("rouge2", "ROUGE-2"),
    Measure("rougeL", "ROUGE-L"),
    Measure("bleu_sentence", "BLEU of sentences"),
    Measure("exact_match", "exact actions, %", scale=100, digits=1),
    Measure("bertscore", "BERTScore"),
)
MEASURES = {measure.key: measure for measure in _MEASURES}
"""All that is known, in the order in which they are shown."""


def find_measure(key: str) -> Measure:
    """Find the metric of a key.

    Args:
        key: Such as ``judge.final``.

    Returns:
        The metric; an unknown one is shown by its key, more being better.
    """
    # Results of a later version may hold metrics that are not listed here.
    return MEASURES.get(key, Measure(key, key.replace("_", " "), digits=4))
