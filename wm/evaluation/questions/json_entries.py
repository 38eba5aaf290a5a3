"""Find the entries of files that are too large to be read at once: lines of JSON, and objects of one JSON array.

Bytes of entries are counted, not kept: memory is bounded by one block, whatever the file holds.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wm.errors import InputError
from wm.evaluation.questions.items import UnusableError

MAX_ENTRY_BYTES = 16 * 2**20
"""Of an entry with its image. The largest of EmbSpatial-Bench have a few hundred kilobytes."""
_BLOCK_BYTES = 2**20
_HEAD_BYTES = 4096
_STRUCTURE = re.compile(rb'["{}\[\]]')
_IN_TEXT = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Span(NamedTuple):
    """The bytes of an entry."""

    start: int
    length: int


def list_lines(path: Path) -> Iterator[tuple[int, Span]]:
    """List the lines of a file that are not blank.

    Args:
        path: The file.

    Yields:
        The number of each line, from 1, and its bytes, the line end left out.
    """
    # Positions are counted here: asking the file for each would empty its buffer.
    with path.open("rb") as file:
        start, number = 0, 0
        while True:
            number += 1
            length, is_blank, has_end = 0, True, False
            # A line without an end is read in blocks, too.
            while not has_end and (block := file.readline(_BLOCK_BYTES)):
                has_end = block.endswith(b"\n")
                length += len(block)
                is_blank = is_blank and not block.strip(_BLANK)
            if not length:
                return
            if not is_blank:
                yield number, Span(start, length - has_end)
            start += length


def list_objects(path: Path) -> Iterator[Span]:
    """List the objects of a file that is one JSON array, in one pass.

    What the objects hold is not parsed here: brackets are counted outside of texts.

    Args:
        path: The file.

    Yields:
        The bytes of each object.

    Raises:
        InputError: The file is no array of objects, or ends inside of it.
    """
    depth, in_text, begin, entries = 0, False, 0, 0
    with path.open("rb") as file:
        _check_array(path, file)
        offset = file.tell()
        carry = b""
        while block := file.read(_BLOCK_BYTES):
            block = carry + block
            at, carry = 0, b""
            while True:
                match = (_IN_TEXT if in_text else _STRUCTURE).search(block, at)
                if match is None:
                    break
                # Only these bytes matter: base64 texts have none of them, and are skipped at the speed of C.
                token, at = match[0], match.end()
                if token == b"\\":
                    # What it escapes may be in the next block.
                    if at == len(block):
                        carry = b"\\"
                        break
                    at += 1
                elif token == b'"':
                    in_text = not in_text
                elif token in b"{[":
                    depth += 1
                    if depth == 1:
                        begin = offset + at - 1
                        if token == b"[":
                            raise InputError(f"{path}: entry {entries + 1} is an array; expected JSON objects")
                else:
                    depth -= 1
                    if depth < 0:
                        return  # the end of the array itself
                    if depth == 0:
                        entries += 1
                        yield Span(begin, offset + at - begin)
            offset += len(block) - len(carry)
    raise InputError(f"{path} ends inside entry {entries + 1}: it was cut off")


def _check_array(path: Path, file: BinaryIO) -> None:
    """Read up to the first bracket, which must be that of an array."""
    start = file.read(_HEAD_BYTES)
    skipped = start.removeprefix(_BYTE_ORDER_MARK).lstrip(_BLANK)
    if not skipped.startswith(b"["):
        raise InputError(f"{path} begins with {skipped[:20]!r}; expected a JSON array of questions")
    file.seek(len(start) - len(skipped) + 1)


def read_span(path: Path, span: Span) -> object:
    """Read and parse one entry.

    Args:
        path: The file.
        span: Its bytes.

    Returns:
        The JSON value.

    Raises:
        UnusableError: It is too large, or no JSON.
    """
    if span.length > MAX_ENTRY_BYTES:
        raise UnusableError(
            "too_large", f"the entry has {span.length:,} bytes; at most {MAX_ENTRY_BYTES:,} are read at a time"
        )
    with path.open("rb") as file:
        file.seek(span.start)
        data = file.read(span.length)
    try:
        value: object = json.loads(data.removeprefix(_BYTE_ORDER_MARK))
        # Half of a surrogate pair, which JSON can escape, is no text that a table or a tokenizer takes.
        if rb"\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        # ValueError: no JSON, no UTF-8, a number of too many digits.
        raise UnusableError("not_json", f"no JSON: {error!s:.200}") from error
