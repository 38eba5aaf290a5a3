"""Liquid (arXiv 2412.04332): a Gemma whose vocabulary continues with the image codes of Chameleon's VQGAN.

What the authors' evaluation code shows, and this file relies on: the model is a ``GemmaForCausalLM``; code c
is vocabulary id ``len(tokenizer) + c`` (released: 256,000 + 8,192 = 264,192 rows); images are between
``<boi>`` and ``<eoi>``, two tokens of the text vocabulary; the VQGAN is released apart from the model, as
``vqgan.yaml`` and ``vqgan.ckpt``. Here it is in the model folder's own folder ``vqgan``. Classifier-free guidance
compares ``TEXT <boi>`` with ``<unconditional><boi>``: the release has learned that word in place of a text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec
from wm.models.codec.files import chameleon_codec_shape, read_codec
from wm.models.folder_writing import write_codec_folder, write_weights
from wm.models.folders import Device, Family, read_config, read_module, read_tokenizer
from wm.models.missing import explain_missing_vqgan
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.vocabulary import special_ids, text_rows

CODEC_FOLDER = "vqgan"
UNCONDITIONAL = "<unconditional>"
"""The word in place of the text in prompts without one."""


class LiquidVLM(UnifiedVLM):
    """See :class:`~wm.models.UnifiedVLM`; both directions are supported."""

    family = "liquid"

    def __init__(self, module: GemmaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: Facts) -> None:
        num_text, size = len(tokenizer), module.config.vocab_size
        # Code c is row num_text + c: with another sum every code would be another image.
        if size != num_text + facts.num_codes:
            raise InputError(
                f"{facts.folder or 'this model'}: vocab_size is {size}, expected {num_text} tokens of the tokenizer "
                f"and {facts.num_codes} image codes, together {num_text + facts.num_codes}"
            )
        vocabulary, where = tokenizer.get_vocab(), str(facts.folder or "this tokenizer")
        special = special_ids(
            tokenizer, vocabulary, where, bos="<bos>", eos="<eos>", pad="<pad>", boi="<boi>", eoi="<eoi>"
        )
        super().__init__(
            module,
            tokenizer,
            facts,
            special=special,
            image_rows=torch.arange(num_text, size),
            text_rows=text_rows(tokenizer, vocabulary, special, num_text, ("<unused", UNCONDITIONAL)),
        )
        self._unconditional_ids = _unconditional_ids(tokenizer)
        if len(self._unconditional_ids) == 1:  # a token of its own, which no action may hold
            self._reserved_ids |= set(self._unconditional_ids)

    def check_guidance(self) -> None:
        """Raise :class:`InputError` if the tokenizer cannot write the unconditional prompt."""
        if not self._unconditional_ids:
            raise InputError(
                f"guidance is not supported for {self.folder or 'this model'}: its tokenizer has no {UNCONDITIONAL!r}, "
                "which Liquid's release has learned in place of a text"
            )

    def unconditional_prefixes(self, prefix: Sequence[int]) -> tuple[list[int], list[int]]:
        """Put the unconditional word in place of the text; without an image it is all there is.

        Args:
            prefix: Vocabulary ids of a forward prompt.

        Returns:
            ``bos boi SOURCE eoi <unconditional> boi`` and ``bos <unconditional> boi``. Where actions are padded to a
            fixed length, so is the word after an image, so that source and target keep their distance.
        """
        self.check_guidance()
        padding = [self.pad_id] * (self.action_slot_tokens - len(self._unconditional_ids))
        # As the authors' own pipeline builds it: one word for a text of any length.
        image: list[int] = []
        is_text_before = False
        for token in prefix:
            is_text = token not in self._image_ids
            if not is_text:
                image.append(token)
            elif not is_text_before:
                image += [*self._unconditional_ids, *(padding if self.eoi_id in image else [])]
            is_text_before = is_text
        return image, [self.bos_id, *self._unconditional_ids, self.boi_id]


def _unconditional_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Tokenize the word as the authors' code does, as text; return none where the tokenizer cannot spell it."""
    ids = tuple(tokenizer(UNCONDITIONAL, add_special_tokens=False)["input_ids"])
    return () if tokenizer.unk_token_id in ids else ids


def load_liquid(folder: Path, device: Device, dtype: torch.dtype, facts: Facts) -> LiquidVLM:
    """Load a full folder; embeddings tied or not, as ``config.json`` says.

    Args:
        folder: A full folder.
        device: Where to put the weights.
        dtype: Their type.
        facts: Of its codec and of the folder.
    """
    config = read_config(folder, GemmaConfig)
    return LiquidVLM(read_module(folder, GemmaForCausalLM, config, device, dtype), read_tokenizer(folder), facts)


def read_liquid_codec(folder: Path, device: Device, decoder: Path | None) -> ImageCodec:
    """Read Chameleon's VQGAN in the folder ``vqgan``: ``vqgan.ckpt`` with ``vqgan.yaml``, or Hugging Face's layout.

    Args:
        folder: A full folder.
        device: Where to put the codec.
        decoder: A ``vqgan.ckpt``, or a folder with one, to take the decoder from.
    """
    # The release leaves it out: the message says where it is.
    if not (folder / CODEC_FOLDER).is_dir():
        explain_missing_vqgan(folder)
    return read_codec(folder / CODEC_FOLDER, device, decoder=decoder)


def write_liquid(vlm: LiquidVLM, codec: ImageCodec, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the Gemma in the folder, the VQGAN in its folder ``vqgan``, in the layout of a Chameleon folder.

    Args:
        vlm: The model.
        codec: Its image codec.
        tensors: The language model's, by name.
        folder: An existing folder without ``vqgan``.
    """
    write_weights(vlm, tensors, folder)
    write_codec_folder(codec, folder / CODEC_FOLDER)


FAMILY = Family(
    load_liquid, read_liquid_codec, write_liquid, lambda folder: chameleon_codec_shape(folder / CODEC_FOLDER)
)
