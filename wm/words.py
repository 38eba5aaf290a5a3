"""Split texts of any script into words by the categories of Unicode, without a model of any language."""

import re
import unicodedata

_HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAN += "\U00020000-\U0003ffff"
_OTHER_UNSPACED = (
    "\u3041-\u309f\u30a0-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f"  # kana
    "\u0e01-\u0e7f\u0e81-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf\u1b00-\u1b7f\ua980-\ua9df"  # Tai, Balinese, Javanese
)
_IS_HAN = re.compile(f"[{_HAN}]")
_IS_OTHER_UNSPACED = re.compile(f"[{_OTHER_UNSPACED}]")
_IS_UNSPACED = re.compile(f"[{_HAN}{_OTHER_UNSPACED}]")
_WIDTH_FORMS = re.compile("[\uff00-\uffef\u3000]+")
_ZERO_WIDTH_SPACE = "\u200b"
_PRESENTATION = re.compile("[\ufe00-\ufe0f]")
"""Variation selectors, which choose between forms of a character."""
_FIRST_NON_LATIN = 0x370
"""Letters before it are Latin ones or marks of phonetics."""


def normalise(text: str) -> str:
    """Bring equal texts to equal characters: NFC, full-width and half-width forms as plain ones, no joiners.

    A zero-width space, which separates words in Thai and Khmer, becomes a space; other characters of format (joiners,
    direction marks, soft hyphens) are taken out.
    """
    if text.isascii():
        return text
    folded = _WIDTH_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    folded = _PRESENTATION.sub("", folded)
    visible = "".join(
        " " if character == _ZERO_WIDTH_SPACE else character
        for character in folded
        if character == _ZERO_WIDTH_SPACE or unicodedata.category(character) != "Cf"
    )
    return unicodedata.normalize("NFC", visible)


def split_words(text: str) -> list[str]:
    """Split a text into words for ROUGE: of ASCII text as rouge_score does.

    Args:
        text: As :func:`normalise` gives it.

    Returns:
        Runs of letters, digits and their marks without regard to case; a character with its marks where the script
        writes no spaces.
    """
    words: list[str] = []
    is_open = is_unspaced = False
    for character in unicodedata.normalize("NFC", text.casefold()):
        kind = unicodedata.category(character)[0]
        # A mark belongs to the letter before it, as vowels do in Hindi.
        if kind == "M" and words and is_open:
            words[-1] += character
            continue
        if kind not in "LNM":
            is_open = False
            continue
        # A character of a script without spaces is a word, and ends the one before it.
        was_unspaced, is_unspaced = is_unspaced, bool(_IS_UNSPACED.match(character))
        if is_open and not was_unspaced and not is_unspaced:
            words[-1] += character
        else:
            words.append(character)
        is_open = True
    return words


def split_at_blanks(text: str) -> list[str]:
    """Split a text at its blanks, and into characters where the script writes none; signs stay with their words."""
    return [part for word in normalise(text).split() for part in (split_words(word) if has_unspaced(word) else [word])]


def count_words(text: str) -> int:
    """Count the words of a text as :func:`split_at_blanks` finds them."""
    return len(split_at_blanks(text))


def bleu_tokenizer(reference: str) -> str:
    """Name the tokeniser of sacrebleu that knows the script of a text."""
    if reference.isascii():
        return "13a"
    # Without spaces between words, characters are compared.
    if _IS_OTHER_UNSPACED.search(reference):
        return "char"
    if _IS_HAN.search(reference):
        return "zh"
    return "intl" if any(map(_is_foreign_letter, reference)) else "13a"


def same_text(text: str) -> str:
    """Map texts that differ in case, blanks or form alone to the same key."""
    return " ".join(unicodedata.normalize("NFC", normalise(text).casefold()).split())


def has_unspaced(text: str) -> bool:
    """Return whether a text has characters of a script without spaces between words."""
    return _IS_UNSPACED.search(text) is not None


def _is_foreign_letter(character: str) -> bool:
    """Return whether this is a letter of another script than Latin."""
    if ord(character) < _FIRST_NON_LATIN or not unicodedata.category(character).startswith("L"):
        return False
    return not unicodedata.name(character, "").startswith(("LATIN", "MODIFIER LETTER"))
