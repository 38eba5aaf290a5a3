"""Read a vocabulary by the names of its tokens: structure, image codes, and what a text may use.

By name, as the numbers in a ``config.json`` need not agree with the tokenizer's.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.prompts import SpecialIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def special_ids(
    tokenizer: "PreTrainedTokenizerFast", vocabulary: Mapping[str, int], where: str, **default_names: str
) -> SpecialIds:
    """Look up the five structure tokens.

    Args:
        tokenizer: Its configuration's ``bos_token``, …, ``eoi_token`` go before the default names.
        vocabulary: Token name to vocabulary id.
        where: Named in the error.
        default_names: Of ``bos``, ``eos``, ``pad``, ``boi`` and ``eoi``.

    Returns:
        Their vocabulary ids.

    Raises:
        InputError: The vocabulary lacks one.
    """
    return SpecialIds(**token_ids(tokenizer, vocabulary, where, default_names))


def token_ids(
    tokenizer: "PreTrainedTokenizerFast", vocabulary: Mapping[str, int], where: str, default_names: Mapping[str, str]
) -> dict[str, int]:
    """Look up tokens by their role.

    Args:
        tokenizer: A ``ROLE_token`` of its configuration goes before the default name.
        vocabulary: Token name to vocabulary id.
        where: Named in the error.
        default_names: Role to token name.

    Returns:
        Role to vocabulary id.

    Raises:
        InputError: The vocabulary lacks one.
    """
    # A tokenizer may have renamed a token: its own word goes first.
    names = {role: str(getattr(tokenizer, f"{role}_token", None) or name) for role, name in default_names.items()}
    missing = [f"{role} {name!r}" for role, name in names.items() if name not in vocabulary]
    if missing:
        raise InputError(f"{where}: the vocabulary has no token {missing[0]}")
    return {role: vocabulary[name] for role, name in names.items()}


def code_rows(
    vocabulary: Mapping[str, int], num_codes: int, code_of: Callable[[str], int | None], where: str
) -> Tensor:
    """Look up the tokens of image codes.

    Args:
        vocabulary: Token name to vocabulary id.
        num_codes: Codes of the codebook.
        code_of: The code that a token's name stands for, -1 for a name that looks so and is none; None: another token.
        where: Named in errors.

    Returns:
        int64 (num_codes,): codebook id to vocabulary id.

    Raises:
        InputError: A code has no token or two, or a token names no code.
    """
    rows = torch.full((num_codes,), -1, dtype=torch.int64)
    # Checked one by one: a code without a token, or with two, would spoil images and raise nothing.
    for name, row in vocabulary.items():
        code = code_of(name)
        if code is None:
            continue
        if not 0 <= code < num_codes:
            raise InputError(f"{where}: vocabulary token {name!r} names no code of a codebook of {num_codes}")
        if rows[code] >= 0:
            raise InputError(f"{where}: the vocabulary has two tokens for image code {code}, {name!r} is one")
        rows[code] = row
    missing = (rows < 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(
            f"{where}: the vocabulary has no token for {len(missing)} image codes, {missing[0]} among them"
        )
    return rows


def text_rows(
    tokenizer: "PreTrainedTokenizerFast",
    vocabulary: Mapping[str, int],
    special: SpecialIds,
    num_rows: int,
    reserved: tuple[str, ...] = (),
) -> Tensor:
    """List the tokens that a generated text may use.

    Args:
        tokenizer: Its special tokens are left out.
        vocabulary: Token name to vocabulary id.
        special: The structure tokens, of which the end of a text alone stays.
        num_rows: Rows of the model's text head.
        reserved: Beginnings of names of tokens that are no text.

    Returns:
        int64: vocabulary ids in order.
    """
    # A client reads the text: nothing of the structure may appear in it.
    barred = {row for name, row in vocabulary.items() if reserved and name.startswith(reserved)}
    barred |= set(tokenizer.all_special_ids) | set(vars(special).values())
    rows = set(vocabulary.values()) - barred | {special.eos}
    return torch.tensor(sorted(row for row in rows if row < num_rows), dtype=torch.int64)


def check_vocabulary(tokenizer: "PreTrainedTokenizerFast", vocabulary: Mapping[str, int], num_rows: int) -> None:
    """Check that a configuration's vocabulary fits the tokenizer and the model.

    Args:
        tokenizer: The folder's tokenizer.
        vocabulary: Token name to vocabulary id, as the configuration has it.
        num_rows: Rows of the model's head.

    Raises:
        InputError: It names a row that the model lacks, or numbers a token differently.
    """
    # An id beyond the head's rows would end a GPU's process at the first pass.
    highest = max(vocabulary, key=lambda name: vocabulary[name])
    if vocabulary[highest] >= num_rows:
        raise InputError(
            f"the vocabulary numbers {highest!r} {vocabulary[highest]}, but the model has {num_rows} rows: vocabulary "
            "of another model?"
        )
    # Only names that both know: each may have some that the other lacks.
    own = tokenizer.get_vocab()
    others = [name for name, row in vocabulary.items() if own.get(name, row) != row]
    if others:
        name = others[0]
        raise InputError(
            f"tokenizer and vocabulary_map number {len(others)} tokens differently ({name!r}: {own[name]} and "
            f"{vocabulary[name]}): tokenizer of another model?"
        )


def span_of(rows: Tensor) -> slice | None:
    """Return the slice that ``rows`` are, if they are consecutive, as in the released vocabularies."""
    first, count = int(rows[0]), len(rows)
    # Compared in one call: a loop over a codebook would wait for the device at each code.
    is_range = torch.equal(rows, torch.arange(first, first + count, device=rows.device))
    return slice(first, first + count) if is_range else None


def check_text_ids(
    ids: Sequence[int], *, text: str, kind: str, reserved: Set[int], tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """Check the tokens of a text that anybody may have written: it must not hold image codes or structure.

    Args:
        ids: Of the text.
        text: For errors.
        kind: What the text is, such as ``action``.
        reserved: Vocabulary ids that no text may hold.
        tokenizer: Names them.

    Raises:
        InputError: It is empty, or holds one of them.
    """
    if not ids:
        raise InputError(f"{kind} {text!r} is empty; expected some words")
    structural = [token for token in ids if token in reserved]
    if structural:
        name = tokenizer.convert_ids_to_tokens(structural[0])
        raise InputError(f"{kind} {text!r:.80} holds the reserved token {name!r}")
