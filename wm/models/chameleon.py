"""Chameleon and Anole (same architecture): the Hugging Face model as a
:class:`~wm.models.protocol.UnifiedVLM`.

transformers' own ``forward`` sets every image logit to the smallest number, so it can neither learn nor draw
images; here the inner model and the head are called directly and nothing is masked.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from wm.errors import InputError
from wm.models import prompts
from wm.models.protocol import Segment, Task

BOI_TOKEN = "<racm3:break>"
EOI_TOKEN = "<eoss>"
_IMAGE_TOKEN = re.compile("IMGIMG([A-J]+)Z")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


def image_token_name(code: int) -> str:
    """The vocabulary name of a codebook id: ``IMGIMG``, its decimal digits as letters A to J, ``Z``."""
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


class ChameleonVLM:
    """See :class:`~wm.models.protocol.UnifiedVLM`; ``folder``: where base and codec were read."""

    family = "chameleon"
    row_tokens, row_end_id = 0, -1

    def __init__(
        self,
        module: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        *,
        base_id: str,
        codec_id: str,
        tokens_per_image: int,
        num_codes: int,
        action_slot_tokens: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.base_id = base_id
        self.codec_id = codec_id
        self.tokens_per_image = tokens_per_image
        self.num_codes = num_codes
        self.action_slot_tokens = action_slot_tokens
        self.folder = folder
        vocabulary: dict[str, int] = self.inner.config.vocabulary_map
        self.special = _special_ids(tokenizer, vocabulary)
        self.bos_id, self.eos_id, self.pad_id = self.special.bos, self.special.eos, self.special.pad
        self.boi_id, self.eoi_id = self.special.boi, self.special.eoi
        _check_vocabulary(tokenizer, vocabulary, self.inner.config.vocab_size)
        self.image_rows = image_rows_of(vocabulary, num_codes).to(self.device)
        self._row_of_code: list[int] = self.image_rows.tolist()
        self._image_span = _span_of(self.image_rows)
        self.text_rows = self._text_rows(vocabulary).to(self.device)
        self._forbidden = {*self._row_of_code, *vars(self.special).values()}

    @property
    def inner(self) -> ChameleonForConditionalGeneration:
        """The Hugging Face model under a possible adapter."""
        get_base = getattr(self.module, "get_base_model", None)
        return get_base() if get_base is not None else self.module

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.inner.model.embed_tokens.weight.device
        return device

    def layout(
        self,
        task: Task,
        *,
        source: Sequence[int],
        action: str | None = None,
        target: Sequence[int] | None = None,
    ) -> list[Segment]:
        """Segments of a prompt (and completion, if given); ``source`` and ``target`` are codebook ids.

        Raises :class:`InputError` on a wrong number of codes, a code outside the codebook, or an empty
        action.
        """
        return prompts.layout(
            task,
            special=self.special,
            source=self._to_rows("source", source),
            action=None if action is None else self._action_ids(action),
            target=None if target is None else self._to_rows("target", target),
            action_slot_tokens=self.action_slot_tokens,
        )

    def body(self, ids_BT: Tensor, cache: Any = None, positions_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, H) of vocabulary ids (B, T); ``cache`` is read and extended in place."""
        output = self.inner.model(
            input_ids=ids_BT,
            past_key_values=cache,
            position_ids=positions_BT,
            use_cache=cache is not None,
            return_dict=True,
        )
        hidden_BTH: Tensor = output.last_hidden_state
        return hidden_BTH

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (…, len(rows)), or (…, vocabulary) without ``rows``; nothing is masked."""
        lm_head = self.inner.lm_head
        if rows is None:
            return lm_head(hidden)  # type: ignore[no-any-return]
        if type(lm_head) is nn.Linear:
            # A slice is a view: indexing would copy the rows (64 MB in bfloat16 at 7B) for every token.
            span = self._image_span if rows is self.image_rows else None
            return F.linear(hidden, lm_head.weight[rows if span is None else span])
        # An adapter has wrapped the head: only its own forward knows what it adds.
        return lm_head(hidden)[..., rows]  # type: ignore[no-any-return]

    def tokenize_action(self, text: str) -> list[int]:
        """Vocabulary ids of a text, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of vocabulary ids, without special and image tokens and outer white space."""
        spoken = [int(token) for token in ids if int(token) not in self._forbidden]
        text: str = self.tokenizer.decode(spoken, skip_special_tokens=True)
        return text.strip()

    def _action_ids(self, action: str) -> list[int]:
        ids = self.tokenize_action(action)
        if not ids:
            raise InputError(f"action {action!r} is empty; expected some words")
        structural = [token for token in ids if token in self._forbidden]
        if structural:
            name = self.tokenizer.convert_ids_to_tokens(structural[0])
            raise InputError(f"action {action!r:.80} holds the reserved token {name!r}")
        return ids

    def _to_rows(self, name: str, codes: Sequence[int]) -> list[int]:
        values = torch.as_tensor(codes).to("cpu", torch.int64)
        if values.shape != (self.tokens_per_image,):
            raise InputError(f"{name} image: expected {self.tokens_per_image} codes, got shape {tuple(values.shape)}")
        bad = [code for code in values.tolist() if not 0 <= code < self.num_codes]
        if bad:
            raise InputError(f"{name} image: code {bad[0]} is outside the codebook [0, {self.num_codes})")
        return [self._row_of_code[code] for code in values.tolist()]

    def _text_rows(self, vocabulary: Mapping[str, int]) -> Tensor:
        reserved = ("IMGIMG", "<reserved", "<racm3", "<eoss", "<image>")
        barred = {row for name, row in vocabulary.items() if name.startswith(reserved)}
        barred |= set(self.tokenizer.all_special_ids) | set(vars(self.special).values())
        size = self.inner.config.vocab_size
        named = set(vocabulary.values()) - barred | {self.eos_id}
        return torch.tensor(sorted(row for row in named if row < size), dtype=torch.int64)


def _span_of(rows: Tensor) -> slice | None:
    """The slice that ``rows`` are, if they are consecutive, as in the released vocabulary."""
    first, count = int(rows[0]), len(rows)
    consecutive = torch.equal(rows, torch.arange(first, first + count, device=rows.device))
    return slice(first, first + count) if consecutive else None


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


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast, vocabulary: Mapping[str, int], rows: int) -> None:
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
