"""Tokenizers of tiktoken's files against tiktoken's own algorithm, written out."""

import base64
import re
import unicodedata
from itertools import pairwise

import pytest

from wm.errors import InputError
from wm.models.tiktoken_files import read_tiktoken

SPECIAL = ["<|end|>", "<|code 0|>"]
WORDS = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
TEXT = "the other tether; 12 éthéré e\u0301t <|code 0|>the 世界\n"


def write_ranks(file, merges=(b"th", b"he", b"the", b"er", b"oth", b"eth", b"\xc3\xa9")):
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in merges:
        ranks[token] = len(ranks)
    file.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return ranks


def merge_by_hand(piece, ranks):
    """Merge the pair of the lowest rank, the first of equal ones, until none is left."""
    parts = [bytes([byte]) for byte in piece]
    while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def test_ids_are_those_of_tiktokens_algorithm(tmp_path):
    ranks = write_ranks(tmp_path / "words.tiktoken")
    tokenizer = read_tiktoken(tmp_path / "words.tiktoken", SPECIAL, WORDS, eos_token="<|end|>")
    expected = []
    for part in re.split(r"(<\|code 0\|>)", unicodedata.normalize("NFC", TEXT)):
        if part == "<|code 0|>":
            expected.append(len(ranks) + 1)
            continue
        # Python's re has no \p{L}: letters are words that are neither digits nor underscores.
        for piece in re.findall(r"[^\W\d_]+|\d| ?[^\s\w]+|\s+", part):
            expected += merge_by_hand(piece.encode(), ranks)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.decode(expected) == unicodedata.normalize("NFC", TEXT)
    assert (len(tokenizer), tokenizer.eos_token_id) == (len(ranks) + 2, len(ranks))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no base64 at all\n", "expected lines of a token in base64 and its rank"),
        ("YQ== 0\nYg== 2\n", "expected ranks 0 to 1, one each"),
        ("YQ== 0\nYQ== 1\n", "expected ranks 0 to 0, one each"),
        ("\n\n", "has 0 lines"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, match):
    (tmp_path / "words.tiktoken").write_text(text)
    with pytest.raises(InputError, match=match):
        read_tiktoken(tmp_path / "words.tiktoken", SPECIAL, WORDS)
