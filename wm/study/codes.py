"""Make the random codes by which participants come back, and read them as people type them."""

import secrets
from typing import Final

LETTERS: Final = "BCDFHJKMNPRTVWXZ"
"""Sixteen letters: no vowels, so that no code is a word, and none that is taken for another or for a digit, such as I,
L, O, Q, S and G."""
NUM_LETTERS: Final = 12
"""48 random bits: at ten guesses a second the first hit on one of a hundred participants takes 4,000 years."""
_GROUP: Final = 4


def make_code() -> str:
    """Return a new code, three groups of four letters such as ``BCDF-HJKM-NPRT``."""
    # Not from a seed: whoever has study.json must not be able to compute the codes.
    return _to_groups("".join(secrets.choice(LETTERS) for _ in range(NUM_LETTERS)))


def normalise_code(text: str) -> str:
    """Return a code as it is stored.

    Args:
        text: As a person typed it: lower case, other separators or none.

    Returns:
        The code; a text of another length or with other letters comes back as it is, so that it is found nowhere.
    """
    # People leave out the dashes, or write other ones.
    letters = "".join(char for char in text.upper() if char.isalnum())
    if len(letters) != NUM_LETTERS or set(letters) - set(LETTERS):
        return text
    return _to_groups(letters)


def _to_groups(letters: str) -> str:
    return "-".join(letters[start : start + _GROUP] for start in range(0, len(letters), _GROUP))
