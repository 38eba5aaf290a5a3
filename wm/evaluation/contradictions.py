"""Ask a language model for an action that contradicts another one, and read its reply.

Not known here: clients, files, and what the actions are used for.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final

from wm.evaluation.judge.template import Template
from wm.words import same_text

CONTRADICT_TEMPLATE: Final = """\
Below is a short instruction that says what happens to a scene between two images.

Write one instruction that contradicts it: about the same things, just as short, in the same language and style, but
with an outcome that cannot be true if the given instruction was carried out. Turn what happens into its opposite, for
instance the direction, the state or the kind of change, and keep all other words as they are.

Answer with that instruction alone, on one line, without quotation marks and without explanation.

Instruction: {instruction}
"""
"""Words of our own: the paper names the model (Qwen-2-7B-Instruct) and does not print its prompt."""

_QUOTES: Final = "\"'`“”‘’«»"
_LABEL: Final = re.compile(r"^(?:contradict\w+\s+)?instruction\s*:\s*", re.IGNORECASE)
"""Models often repeat the word before the instruction."""
_CHARS_A_TOKEN: Final = 4
"""Of English text, OpenAI's rule of thumb."""
_MESSAGE_TOKENS: Final = 10


class ContradictionError(ValueError):
    """A reply that is no contradicting action."""

    def __init__(self, reason: str) -> None:
        """Keep the ``reason``, a short stable name to count by."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ContradictSettings:
    """What, besides template and action, decides what a model replies."""

    model: str
    """Name at the endpoint, or digest of a local folder."""
    max_tokens: int = 64
    temperature: float | None = None
    """None: the default of the endpoint or of the model's own generation settings."""


def contradiction_key(action: str, template: Template, settings: ContradictSettings) -> str:
    """Compute the key under which a reply is stored: equal actions are asked about once.

    Args:
        action: What is to be contradicted.
        template: What is asked.
        settings: Of whom.

    Returns:
        64 hexadecimal digits.
    """
    parts = [template.digest, settings.model, settings.max_tokens, settings.temperature, action]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def build_body(action: str, template: Template, settings: ContradictSettings) -> dict[str, object]:
    """Build the body of ``POST /v1/chat/completions``: one message of the user.

    Args:
        action: What is to be contradicted.
        template: What is asked.
        settings: Model and limits.

    Returns:
        The body.
    """
    body: dict[str, object] = {
        "model": settings.model,
        "messages": [{"role": "user", "content": template.fill(action)}],
        "max_tokens": settings.max_tokens,
    }
    # Left out, the endpoint's own default holds.
    return body if settings.temperature is None else body | {"temperature": settings.temperature}


def count_tokens(action: str, template: Template) -> int:
    """Estimate the tokens of a request.

    Args:
        action: What is to be contradicted.
        template: What is asked.

    Returns:
        A quarter of its letters, and some for the message around it.
    """
    return len(template.fill(action)) // _CHARS_A_TOKEN + _MESSAGE_TOKENS


def parse_contradiction(reply: str | None, action: str, *, is_cut_off: bool = False) -> str:
    """Read the contradicting action from a reply.

    Args:
        reply: The model's text.
        action: What it was to contradict.
        is_cut_off: Whether the reply ended at the limit of tokens.

    Returns:
        The action, without quotation marks around it, and without what the model alone has added: the prompt's label
        before it, a full stop, a capital. A negative must differ from the truth in what it says: one that differs in
        its form too would be less likely for that alone.

    Raises:
        ContradictionError: The reply is empty, cut off, of several lines, or reads as the action itself.
    """
    lines = [line.strip() for line in (reply or "").splitlines() if line.strip()]
    if not lines:
        raise ContradictionError("empty")
    if is_cut_off:
        raise ContradictionError("cut off")
    # A second line is an explanation, or another action: which one was meant is not guessed.
    if len(lines) > 1:
        raise ContradictionError("more than one line")
    text = _strip_quotes(_LABEL.sub("", _strip_quotes(lines[0])))
    if not text:
        raise ContradictionError("empty")
    text = _match_form(text, action.strip())
    # The full stop that a model adds makes no other action.
    if same_text(text).rstrip(".!") == same_text(action).rstrip(".!"):
        raise ContradictionError("same action")
    return text


def _match_form(text: str, action: str) -> str:
    """Write an action with the first letter and the end of another one."""
    if text.endswith(".") and not text.endswith("..") and not action.endswith("."):
        text = text[:-1].rstrip() or text
    # A capital of the first letter alone: names in capitals and "I" stay as they are.
    first_word = text.partition(" ")[0]
    if action[:1].islower() and first_word[:1].isupper() and first_word[1:].islower():
        return text[0].lower() + text[1:]
    if action[:1].isupper() and text[:1].islower():
        return text[0].upper() + text[1:]
    return text


def _strip_quotes(text: str) -> str:
    # Only a pair around all of the reply: marks within it may be the action's own.
    while len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return text.strip() if text.strip(_QUOTES + " ") else ""
