"""Split a growing text into what each token adds.

A token is not a stretch of text: a character may take several, a space may belong to the token after it, and earlier
text may change with the next token. The complete text is always ``detokenize`` of all tokens.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol

_UNREADABLE = "\ufffd"
"""Bytes that are no character, or not yet."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TextDecoder(Protocol):
    """What turns tokens into text: a unified model, or another one's tokenizer."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of vocabulary ids, without special tokens and outer white space."""


class IncrementalDetokenizer:
    """The increments of one text. Those that :meth:`add` and :meth:`end` return join to the complete text, exactly."""

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._reported = self._released = ""
        # The tokenizer then removes spaces before punctuation, so that the last word is not final.
        self._holds_words = bool(getattr(decoder.tokenizer, "clean_up_tokenization_spaces", False))

    def of(self, token: int) -> str:
        """Return what a token would add now; empty for a part of a character, for white space, which the next token
        brings, and for the end."""
        # The complete text again: a tokenizer joins tokens by their neighbours.
        text = self._readable([*self._ids, token])
        common = next(
            (at for at, pair in enumerate(zip(self._reported, text, strict=False)) if pair[0] != pair[1]), None
        )
        return text[len(self._reported) if common is None else common :]

    def name(self, token: int) -> str:
        """Return the tokenizer's name of a vocabulary id."""
        return str(self._decoder.tokenizer.convert_ids_to_tokens(token))

    def add(self, token: int) -> str:
        """Append a token and return the text that is final with it and was not before; may be empty."""
        self._ids.append(token)
        text = self._readable(self._ids)
        # Bytes that are no character yet may make those before them unreadable for a while.
        self._reported = self._reported if self._reported.startswith(text) else text
        return self._release(self._final())

    def end(self) -> str:
        """Return the text that was not final."""
        return self._release(self._decoder.detokenize(self._ids))

    def _release(self, text: str) -> str:
        # Final text only grows, so that its length says what is new.
        increment = text[len(self._released) :]
        self._released += increment
        return increment

    def _final(self) -> str:
        """Return the text that later tokens cannot change.

        A run of byte tokens is decoded in one (and is unreadable in one), so it waits for another token.
        """
        # Step back over byte tokens at the end.
        last = len(self._ids)
        while last and _BYTE.fullmatch(self.name(self._ids[last - 1])):
            last -= 1
        text = self._readable(self._ids[:last])
        if self._holds_words:
            text = " ".join(text.split(" ")[:-1]).rstrip()
        return text

    def _readable(self, ids: Sequence[int]) -> str:
        return self._decoder.detokenize(ids).rstrip(_UNREADABLE).rstrip()
