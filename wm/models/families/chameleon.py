"""Chameleon and Anole (same architecture): the Hugging Face model as a
:class:`~wm.models.UnifiedVLM`.

transformers' own ``forward`` sets every image logit to the smallest number, so it can neither learn nor draw
images; here the inner model and the head are called directly and nothing is masked.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from wm.errors import InputError
from wm.models import prompts
from wm.models.vlm import Facts, UnifiedVLM

BOI_TOKEN = "<racm3:break>"
EOI_TOKEN = "<eoss>"
_IMAGE_TOKEN = re.compile("IMGIMG([A-J]+)Z")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


def image_token_name(code: int) -> str:
    """Return the vocabulary name of a codebook id: ``IMGIMG``, its decimal digits as letters A to J, ``Z``."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def image_rows_of(vocabulary: Mapping[str, int], num_codes: int) -> Tensor:
    """int64 (num_codes,): codebook id to vocabulary id, read from the names of the image tokens."""
    rows = torch.full((num_codes,), -1, dtype=torch.int64)
    for name, row in vocabulary.items():
        if name.startswith("IMGIMG"):
            match = _IMAGE_TOKEN.fullmatch(name)
            code = int(match[1].translate(_DIGITS)) if match else -1
            if not 0 <= code < num_codes:
                raise InputError(f"vocabulary token {name!r} names no code of a codebook of {num_codes}")
            if rows[code] >= 0:
                raise InputError(f"the vocabulary has two tokens for image code {code}, {name!r} is one")
            rows[code] = row
    missing = (rows < 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(f"the vocabulary has no token for {len(missing)} image codes, {missing[0]} among them")
    return rows


class ChameleonVLM(UnifiedVLM):
    """See :class:`~wm.models.UnifiedVLM`; ``folder``: where base and codec were read."""

    family = "chameleon"

    def __init__(
        self,
        module: ChameleonForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        *,
        base_id: str,
        codec_id: str,
        tokens_per_image: int,
        num_codes: int,
        action_slot_tokens: int = 0,
        folder: Path | None = None,
    ) -> None:
        vocabulary: dict[str, int] = module.config.vocabulary_map
        special = _special_ids(tokenizer, vocabulary)
        check_vocabulary(tokenizer, vocabulary, module.config.vocab_size)
        super().__init__(
            module,
            tokenizer,
            Facts(base_id, codec_id, tokens_per_image, num_codes, action_slot_tokens, folder),
            special=special,
            image_rows=image_rows_of(vocabulary, num_codes),
            text_rows=_text_rows(tokenizer, vocabulary, special, module.config.vocab_size),
        )


def _text_rows(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Mapping[str, int], special: prompts.SpecialIds, size: int
) -> Tensor:
    reserved = ("IMGIMG", "<reserved", "<racm3", "<eoss", "<image>")
    barred = {row for name, row in vocabulary.items() if name.startswith(reserved)}
    barred |= set(tokenizer.all_special_ids) | set(vars(special).values())
    text_ids = set(vocabulary.values()) - barred | {special.eos}
    return torch.tensor(sorted(row for row in text_ids if row < size), dtype=torch.int64)


def _special_ids(tokenizer: PreTrainedTokenizerFast, vocabulary: Mapping[str, int]) -> prompts.SpecialIds:
    """By name: the numbers in a ``config.json`` need not agree with the tokenizer's."""
    names = {
        "bos": tokenizer.bos_token or "<s>",
        "eos": tokenizer.eos_token or "</s>",
        "pad": tokenizer.pad_token or "<pad>",
        "boi": BOI_TOKEN,
        "eoi": EOI_TOKEN,
    }
    missing = sorted(name for name in names.values() if name not in vocabulary)
    if missing:
        raise InputError(f"the vocabulary has no token {missing[0]!r}")
    return prompts.SpecialIds(**{role: vocabulary[name] for role, name in names.items()})


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, vocabulary: Mapping[str, int], rows: int) -> None:
    """Raise :class:`InputError` if a configuration's vocabulary does not fit the tokenizer or the model's rows."""
    highest = max(vocabulary, key=lambda name: vocabulary[name])
    if vocabulary[highest] >= rows:
        raise InputError(
            f"the vocabulary numbers {highest!r} {vocabulary[highest]}, but the model has {rows} rows: vocabulary of "
            "another model?"
        )
    spoken = tokenizer.get_vocab()
    other = [name for name, row in vocabulary.items() if spoken.get(name, row) != row]
    if other:
        name = other[0]
        raise InputError(
            f"tokenizer and vocabulary_map number {len(other)} tokens differently ({name!r}: {spoken[name]} and "
            f"{vocabulary[name]}): tokenizer of another model?"
        )
