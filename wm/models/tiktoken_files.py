"""Make a Hugging Face tokenizer of tiktoken's file of ranks, which some releases have in place of ``tokenizer.json``.

The file is read as text; the authors' own tokenizer class, which is code, is not needed.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from wm.errors import InputError
from wm.models.config_bounds import MAX_VOCABULARY
from wm.models.folder_checks import one_line, refusing
from wm.models.pickled import check_downloaded

MAX_FILE_BYTES = 64 << 20
"""The largest file that is read; the released ones have 2.6 and 3.1 MB."""
_MAX_TOKEN_BYTES = 1024


def read_tiktoken(ranks_file: Path, special: Sequence[str], pattern: str, **roles: str) -> PreTrainedTokenizerFast:
    """Make the tokenizer that tiktoken's ``Encoding`` of the same file is, behind Unicode's NFC.

    Args:
        ranks_file: Lines of a token in base64 and its rank.
        special: Special tokens, numbered on after the last rank.
        pattern: Regular expression of the words that merges stay within.
        roles: Names of the special tokens by role, such as ``eos_token``.

    Returns:
        The tokenizer.

    Raises:
        InputError: The file is absent or none of this kind.
    """
    ranks = _read_ranks(ranks_file)
    # Merges are over characters: each byte has one, as in GPT-2's vocabulary.
    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    with refusing(f"{ranks_file} makes no tokenizer"):
        vocabulary = {spell(token): rank for token, rank in ranks.items()}
        merges = [(spell(head), spell(tail)) for head, tail in _list_merges(ranks)]
        tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False))
        tokenizer.normalizer = normalizers.NFC()
        # The pattern alone cuts words, not the byte level's own.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in read_lines(file):
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise InputError(f"{file}: expected lines of a token in base64 and its rank: {one_line(error)}") from error
    # Special tokens are numbered on after these, so that none may be left out.
    if sorted(ranks.values()) != list(range(len(ranks))) or max(map(len, ranks), default=0) > _MAX_TOKEN_BYTES:
        raise InputError(f"{file}: expected ranks 0 to {len(ranks) - 1:,}, one each, of tokens of some bytes")
    return ranks


def read_lines(file: Path) -> list[str]:
    """Read the lines of a vocabulary file that are not empty.

    Args:
        file: UTF-8, at most :data:`MAX_FILE_BYTES`.

    Raises:
        InputError: It is absent, too large, no text, or has too many lines.
    """
    # Bounds first: a file of gigabytes would be read into memory.
    check_downloaded(file)
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InputError(f"{file} has {size:,} bytes, expected at most {MAX_FILE_BYTES:,}")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} is no readable text: {one_line(error)}") from error
    lines = [line for line in lines if line]
    if not 0 < len(lines) <= MAX_VOCABULARY:
        raise InputError(f"{file} has {len(lines):,} lines, expected 1 to {MAX_VOCABULARY:,}")
    return lines


def _list_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """List the pairs that merge to a token, those of a lower rank first: tiktoken merges by the rank of the result."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        # All splits: which of them meets first depends on the text.
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
