"""The model that the rest of ``wm`` works with: one causal transformer of the Hugging Face library whose vocabulary
holds both text and image codes.

A family derives from :class:`UnifiedVLM`, gives it its token ids, and overrides what differs. Folders, adapters and
sampling are not known here.

Shape suffixes: B rows, T tokens, H hidden width.
"""

import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wm.errors import InputError
from wm.models import prompts
from wm.models.prompts import Segment, Task
from wm.models.vocabulary import check_text_ids, span_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerFast

MAX_CACHED_TEXTS, MAX_CACHED_CHARS = 1024, 1000
"""Texts whose tokens are cached, and how long one may be."""


@dataclass(frozen=True)
class Facts:
    """What a model needs to know of its codec and of the folder it was read from."""

    base_id: str
    codec_id: str
    tokens_per_image: int
    num_codes: int
    action_slot_tokens: int = 0
    """Length to which a forward prompt pads its action; 0: not at all."""
    folder: Path | None = None
    """Where base and codec were read; None for a model made in memory."""


class UnifiedVLM:
    """A causal language model whose vocabulary holds both text and image codes."""

    family = ""
    """Name of the family, as manifests and messages have it."""
    module: "PreTrainedModel | PeftModel"
    """The Hugging Face model, wrapped by PEFT when it carries an adapter."""
    image_rows: Tensor
    """int64 (num_codes,): codebook id to vocabulary id."""
    text_rows: Tensor
    """int64: vocabulary ids that a generated text may use, end-of-sequence among them."""
    row_tokens: int
    """Codes after which an image has ``row_end_id``, between its rows; 0: its codes are one run."""
    row_end_id: int
    """Vocabulary id that is fed, not sampled, after every ``row_tokens`` codes; -1: none."""

    def __init__(
        self,
        module: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        facts: Facts,
        *,
        special: prompts.SpecialIds,
        image_rows: Tensor,
        text_rows: Tensor,
        frame: prompts.ImageFrame | None = None,
    ) -> None:
        """Put a model together; nothing is read.

        Args:
            module: The Hugging Face model.
            tokenizer: Its tokenizer.
            facts: Of its codec and its folder.
            special: The structure tokens.
            image_rows: int64 (num_codes,), codebook id to vocabulary id.
            text_rows: int64, vocabulary ids that a generated text may use, the end among them.
            frame: The tokens around an image's codes; None: ``boi CODES eoi``.
        """
        self.module, self.tokenizer = module, tokenizer
        self.base_id, self.codec_id, self.folder = facts.base_id, facts.codec_id, facts.folder
        self.tokens_per_image, self.num_codes = facts.tokens_per_image, facts.num_codes
        self.action_slot_tokens = facts.action_slot_tokens
        self._token_cache: dict[str, tuple[int, ...]] = {}
        self.special = special
        self.bos_id, self.eos_id, self.pad_id = special.bos, special.eos, special.pad
        self.boi_id, self.eoi_id = special.boi, special.eoi
        self.frame = frame or prompts.ImageFrame((special.boi,), (special.eoi,))
        self.row_tokens, self.row_end_id = self.frame.row_tokens, self.frame.row_end
        # A model without weights still needs its rows: they are compared with codes.
        row_device = "cpu" if self.device.type == "meta" else self.device
        self.image_rows = image_rows.to(row_device)
        self.text_rows = text_rows.to(row_device)
        self._row_of_code: list[int] = image_rows.tolist()
        self._image_span = span_of(image_rows)
        # Actions come from untrusted clients: they must not hold image codes or structure tokens.
        structural = (*self.frame.opening, *self.frame.closing, self.row_end_id)
        speakable = set(text_rows.tolist()) - {special.eos}
        self._reserved_ids = {*self._row_of_code, *vars(special).values(), *structural} - speakable

    @property
    def inner(self) -> "PreTrainedModel":
        """The Hugging Face model itself, under the adapter where there is one."""
        get_base = getattr(self.module, "get_base_model", None)
        return get_base() if get_base is not None else self.module

    @property
    def decoder(self) -> "PreTrainedModel":
        """The transformer that turns vocabulary ids into hidden states after the last norm."""
        return self.inner.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        parameter: Tensor = next(self.decoder.parameters())
        return parameter.device

    @property
    def reserved_ids(self) -> Set[int]:
        """Vocabulary ids that no action may hold: image codes and structure."""
        return self._reserved_ids

    @cached_property
    def max_positions(self) -> int:
        """The longest sequence that the transformer was made for; cached, as configurations are slow to ask."""
        longest: int | None = getattr(self.inner.config.get_text_config(), "max_position_embeddings", None)
        return sys.maxsize if longest is None else longest

    def layout(
        self,
        task: Task,
        *,
        source: Sequence[int],
        action: str | None = None,
        target: Sequence[int] | None = None,
    ) -> list[Segment]:
        """Build the one prompt layout.

        Args:
            task: Which image or text is the completion.
            source: Codebook ids of the source image.
            action: A text without special tokens; for ``idm``, None: the prefix alone.
            target: Codebook ids of the target image; for ``fdm``, None: the prefix alone.

        Returns:
            Segments of vocabulary ids, those of the completion last.

        Raises:
            InputError: A wrong number of codes, a code outside the codebook, an empty action, one that holds a reserved
                token, or one for which the model has too few positions.
        """
        # The text first: it comes from clients, the codes from the codec.
        action_ids = None if action is None else self._action_ids(action)
        segments = self.layout_ids(
            task,
            source=self._to_rows("source", source),
            action=action_ids,
            target=None if target is None else self._to_rows("target", target),
        )
        length = sum(len(segment.ids) for segment in segments)
        # The image that will be sampled needs positions too.
        if task == "fdm" and target is None:
            row_ends = (self.tokens_per_image - 1) // self.row_tokens if self.row_tokens else 0
            length += self.tokens_per_image + row_ends
        if action_ids is not None and length > self.max_positions:
            raise InputError(
                f"action {action!r:.80} has {len(action_ids):,} tokens: with both images the sequence has {length:,}, "
                f"the model {self.max_positions:,} positions"
            )
        return segments

    def layout_ids(
        self,
        task: Task,
        *,
        source: Sequence[int],
        action: Sequence[int] | None = None,
        target: Sequence[int] | None = None,
    ) -> list[Segment]:
        """Build :meth:`layout` of vocabulary ids, which are not checked.

        Args:
            task: Which image or text is the completion.
            source: Ids of the source image's codes.
            action: Ids of the text; for ``idm``, None: the prefix alone.
            target: Ids of the target image's codes; for ``fdm``, None: the prefix alone.
        """
        return prompts.layout(
            task,
            special=self.special,
            source=source,
            action=action,
            target=target,
            action_slot_tokens=self.action_slot_tokens,
            frame=self.frame,
        )

    def check_guidance(self) -> None:
        """Raise :class:`InputError` if the family's forward prompts have no part that can be left out."""
        if self.row_tokens:
            raise InputError(
                f"guidance is not supported for {self.family}: its images hold more than codes, such as their size"
            )

    def unconditional_prefixes(self, prefix: Sequence[int]) -> tuple[list[int], list[int]]:
        """Make the two prompts that guidance compares a forward prompt with.

        As in Chameleon's release, nothing is put in place of what is left out.

        Args:
            prefix: Vocabulary ids of the prompt.

        Returns:
            The prompt without its text, and the one without anything: ``bos boi``.
        """
        return [token for token in prefix if token in self._image_ids], [self.bos_id, self.boi_id]

    @cached_property
    def _image_ids(self) -> frozenset[int]:
        """Vocabulary ids that are no text of a forward prompt: codes, the tokens around them, and its begin."""
        return frozenset((*self._row_of_code, self.bos_id, self.boi_id, self.eoi_id))

    def body(self, ids_BT: Tensor, cache: "Cache | None" = None, positions_BT: Tensor | None = None) -> Tensor:
        """Run the transformer.

        Args:
            ids_BT: Vocabulary ids, int64.
            cache: transformers' keys and values of earlier positions, extended in place.
            positions_BT: int64; None: one after the other, from the end of the cache.

        Returns:
            Hidden states (B, T, H) after the last norm.
        """
        return self._run({"input_ids": ids_BT}, cache, positions_BT)

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute logits; nothing is masked.

        Args:
            hidden: (…, H), as :meth:`body` returns it.
            rows: int64, vocabulary ids; None: all.

        Returns:
            (…, len(rows)), or (…, vocabulary).
        """
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
        """Convert a text to vocabulary ids without special tokens."""
        ids = self._token_cache.get(text)
        # The candidates of a source share an action, which a tokenizer of Python takes long for.
        if ids is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(self._token_cache) >= MAX_CACHED_TEXTS:
                self._token_cache.clear()
            if len(text) <= MAX_CACHED_CHARS:
                self._token_cache[text] = ids
        return list(ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of vocabulary ids, without special and image tokens and outer white space."""
        text_ids = [int(token) for token in ids if int(token) not in self._reserved_ids]
        text: str = self.tokenizer.decode(text_ids, skip_special_tokens=True)
        return text.strip()

    def _run(self, inputs: dict[str, Tensor], cache: "Cache | None", positions_BT: Tensor | None) -> Tensor:
        options = {"past_key_values": cache, "use_cache": cache is not None, "return_dict": True}
        hidden_BTH: Tensor = self.decoder(**inputs, position_ids=positions_BT, **options).last_hidden_state
        return hidden_BTH

    def _action_ids(self, action: str) -> list[int]:
        ids = self.tokenize_action(action)
        check_text_ids(ids, text=action, kind="action", reserved=self._reserved_ids, tokenizer=self.tokenizer)
        return ids

    def _to_rows(self, name: str, codes: Sequence[int]) -> list[int]:
        checked = prompts.check_codes(name, codes, self.tokens_per_image, self.num_codes)
        return [self._row_of_code[code] for code in checked]
