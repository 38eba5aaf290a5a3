"""What each token adds to a text that grows.

A token is no piece of text: a character may take several, a space may belong to what comes after it, and what stands
there may change with the next one. The whole text is always ``vlm.detokenize`` of all tokens.
"""

import re
from collections.abc import Sequence

from wm.models.protocol import UnifiedVLM

_UNREADABLE = "\ufffd"
"""Bytes that are no character, or not yet."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TextPieces:
    """The pieces of one text. Those that :meth:`add` and :meth:`end` give join to the whole, exactly."""

    def __init__(self, vlm: UnifiedVLM) -> None:
        self._vlm = vlm
        self._ids: list[int] = []
        self._told = self._released = ""
        # Spaces before punctuation are then taken out of the whole: the last word is not final.
        self._holds_words = bool(getattr(vlm.tokenizer, "clean_up_tokenization_spaces", False))

    def of(self, token: int) -> str:
        """What a token would add now; empty for a part of a character, for white space, which the next token brings,
        and for the end."""
        text = self._readable([*self._ids, token])
        common = next((at for at, pair in enumerate(zip(self._told, text, strict=False)) if pair[0] != pair[1]), None)
        return text[len(self._told) if common is None else common :]

    def name(self, token: int) -> str:
        """Of a vocabulary id, as the tokenizer has it."""
        return str(self._vlm.tokenizer.convert_ids_to_tokens(token))

    def add(self, token: int) -> str:
        """The text that is final with this token, and was not before; may be empty."""
        self._ids.append(token)
        text = self._readable(self._ids)
        # Bytes that are no character yet may make those before them unreadable for a while.
        self._told = self._told if self._told.startswith(text) else text
        return self._release(self._final())

    def end(self) -> str:
        """What was held back."""
        return self._release(self._vlm.detokenize(self._ids))

    def _release(self, text: str) -> str:
        piece = text[len(self._released) :]
        self._released += piece
        return piece

    def _final(self) -> str:
        """A run of byte tokens is read as a whole (and is unreadable as a whole), so it waits for another token."""
        last = len(self._ids)
        while last and _BYTE.fullmatch(self.name(self._ids[last - 1])):
            last -= 1
        text = self._readable(self._ids[:last])
        if self._holds_words:
            text = " ".join(text.split(" ")[:-1]).rstrip()
        return text

    def _readable(self, ids: Sequence[int]) -> str:
        return self._vlm.detokenize(ids).rstrip(_UNREADABLE).rstrip()
