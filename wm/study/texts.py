"""Hold the texts that a participant reads, and load others in their place.

The instructions say in our own words what the paper's participants were asked (its appendix I and figure 12): meet, or
violate, as many criteria as possible; where that does not decide, realism before instruction before over-editing.
"""

from pathlib import Path

from wm.errors import InputError

TITLE = "Which image is best?"

INSTRUCTIONS = """\
You see an input image, an instruction, and images that anonymous systems made by carrying out the instruction on the \
input image. Choose the best and the worst of them by three criteria.

The best image meets as many of the criteria as possible, the worst one violates as many as possible. Where that does \
not decide, the first criterion counts most and the last one least: realism, then the instruction, then over-editing.

1. Realism. Good: it could be a photo of the scene in the input image, with natural textures and light. Bad: distorted \
things, stains, blur, or anything that no camera would see.

2. Instruction followed. Good: what the instruction asks for is plainly to be seen: after "put a cup on the table", a \
cup is on the table. Bad: it is not done, or something else was changed in its place.

3. Over-editing. Good: nothing has changed but what the instruction asks for. Bad: what it asks for is done, but other \
things were added, removed or altered with it.

The systems are in another order each time: Model 1 of one page is not Model 1 of the next."""
"""How to choose. Criteria and priority are the paper's, the words ours."""

_CONSENT = """\
This study compares images that computer programs made. It has {num_items} pages, each with an instruction and \
{num_systems} images, of which you choose the best and the worst one. {minutes}

Taking part is voluntary. You may stop at any time, without a reason, by closing the page, and continue later with the \
code that you are given.

What is stored: your choices, how long each one took, when it was made, and that random code. Nothing is asked or \
stored that says who you are: no name, no address. The choices are used for research, and may be published, \
under a number in place of the code.

The code is the only link between you and your choices. Keep it to continue later, or to \
withdraw your choices, which the page offers.

By starting you say that you have read this and agree to take part."""

_SECONDS_A_PAGE = (36, 48)
"""The paper's participants took 15 to 20 minutes for 25 pages (its appendix I)."""

_MAX_CHARS = 20_000


def build_consent(num_items: int, num_systems: int) -> str:
    """Write the text that a participant agrees to.

    Args:
        num_items: Pages of the study.
        num_systems: Images to choose among.

    Returns:
        Paragraphs, separated by empty lines.
    """
    # A range as the paper has it, rounded to minutes.
    low, high = (max(1, round(num_items * seconds / 60)) for seconds in _SECONDS_A_PAGE)
    minutes = f"This takes about {low} to {high} minutes." if low < high else f"This takes about {high} min."
    return _CONSENT.format(num_items=num_items, num_systems=num_systems, minutes=minutes)


def load_text(path: str, key: str) -> str:
    """Load a text of one's own.

    Args:
        path: A UTF-8 file; paragraphs are separated by empty lines.
        key: Of the recipe, for messages.

    Returns:
        The text, without blanks around it.

    Raises:
        InputError: The file cannot be read, is empty, too long or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()  # some editors begin it with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{key} = {path!r:.300}: {reason}; expected a text file") from error
    # A binary file or a wrong one would fill the participants' screens.
    if not text or len(text) > _MAX_CHARS:
        raise InputError(f"{key} = {path!r:.300} has {len(text):,} characters; expected 1 to {_MAX_CHARS:,}")
    return text
