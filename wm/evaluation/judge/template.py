"""Define what a judge is asked: the template, its check and its digest. Knows neither the API nor the replies."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wm.errors import InputError, to_line

PLACEHOLDER: Final = "{instruction}"
_MAX_BYTES: Final = 64 * 1024

DEFAULT_TEMPLATE: Final = """\
You are an experienced digital artist. Your task is to rate how well an AI model has edited an image.

Answer with one Python dictionary and nothing else, in this form:
{"score": [success, minimality], "reasoning": "one or two sentences"}

You are shown two images. The first one is the original. The second one is the edited version of it.
Find out whether the instruction has been carried out in the second image.
Take care: when the editing failed, both images may look the same.

Give two numbers from 0 to 10:
- success: how far the second image shows what the instruction asks for.
  0: the instruction has not been followed at all. 10: it has been followed completely.
- minimality: how far everything else has been left as it was.
  0: the second image is a different scene. 10: nothing but what the instruction asks for has changed.

Editing instruction: {instruction}
"""
"""The parts and their order are those of the paper's Figure 10 (appendix F), the words are our own: role, form of the
reply, order of the images, aim, warning, two scores, instruction."""


@dataclass(frozen=True)
class Template:
    """The text of a request, in which the action takes the place of ``{instruction}``."""

    text: str

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the text's sha256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def fill(self, action: str) -> str:
        """Put an action into the template; braces in the text and in the action stay as they are."""
        return self.text.replace(PLACEHOLDER, action)


def load_template(path: str | Path | None = None, default: str = DEFAULT_TEMPLATE) -> Template:
    """Load a template from a file, or return a given one.

    Args:
        path: A UTF-8 text with ``{instruction}`` in it, once; None or empty: ``default``.
        default: Text of the template without a file; the judge's.

    Returns:
        The template.

    Raises:
        InputError: The file cannot be read, is no text, is too long or does not have the placeholder once.
    """
    if not path:
        return Template(default)
    try:
        data = Path(path).read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"template = {str(path)!r:.200}: cannot be read as UTF-8 text: {to_line(error)}") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"template = {str(path)!r:.200}: {len(data):,} bytes; expected at most {_MAX_BYTES:,}")
    if text.count(PLACEHOLDER) != 1:
        count = text.count(PLACEHOLDER)
        raise InputError(f"template = {str(path)!r:.200}: {PLACEHOLDER} is there {count} times; expected once")
    return Template(text)
