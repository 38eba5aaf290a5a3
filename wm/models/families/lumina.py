"""Lumina-mGPT 2.0 (arXiv 2507.17801): a Chameleon-shaped decoder over Qwen2.5's words and the codes of MoVQGAN.

Sources are files of github.com/Alpha-VLLM/Lumina-mGPT-2.0. An image is ``<racm3:break> HEIGHT WIDTH``, H rows of W
codes with ``<reserved08799>`` after each, ``<eoss>``; HEIGHT and WIDTH are tokens ``<reserved08800 + n>``, n cells of
32 pixels, and a code is 8 x 8 pixels (``FlexARItemProcessor`` in ``lumina_mgpt/data/item_processor.py``). Size and
row ends are given, neither learned nor sampled. Code c is vocabulary id 155,000 + c. The tokenizer has no begin of
sequence, its end serves in that place (``xllmx/model/tokenizer.py``), and a turn ends in ``<reserved08706>``
(``lumina_mgpt/data/convertsation.py``), which is the end of an action here. Guidance compares with the image alone,
from its first token on (``inference_solver.py``), as a tenth of the training did (``finetune_solver.py``).

The release holds the language model; MoVQGAN's ``movqgan_270M.ckpt`` is in the folder ``movqgan``. The model makes
images of any size: a world model needs one, the ``size`` in ``preprocessor_config.json``, 512 px without it (that of
the authors' image-to-image tasks).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec
from wm.models.codec.movq import MoVQ
from wm.models.codec.shaped import read_scale, read_shaped_codec, read_side
from wm.models.folder_writing import write_image_processor, write_tensors, write_weights
from wm.models.folders import Device, Family, read_config, read_module, read_tokenizer
from wm.models.missing import explain_missing_movqgan
from wm.models.prompts import ImageFrame, SpecialIds, drop_text
from wm.models.variants import LUMINA_CODE_PREFIX, LUMINA_CODES, LUMINA_FIRST_CODE
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.vocabulary import text_rows, token_ids
from wm.models.weights import CODEC_PREFIX, StoredTensor, read_stored

CODEC_FOLDER = "movqgan"
SIDE_PX, CELL_PX, CODE_PX = 512, 32, 8
"""Side of an image where the folder says none, of what HEIGHT and WIDTH count, and of a code."""
_NAMES = {
    "boi": "<racm3:break>",
    "eoi": "<eoss>",
    "line_end": "<reserved08799>",
    "turn_end": "<reserved08706>",
}
_RESERVED = ("<reserved", "<racm3", "<eoss", "<|", LUMINA_CODE_PREFIX, "IMGIMG")


class LuminaVLM(UnifiedVLM):
    """See :class:`~wm.models.UnifiedVLM`; both directions are supported."""

    family = "lumina"

    def __init__(
        self, module: ChameleonForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, facts: Facts
    ) -> None:
        where, side = str(facts.folder or "this tokenizer"), round(facts.tokens_per_image**0.5)
        vocabulary, num_rows = tokenizer.get_vocab(), module.config.vocab_size
        size_name = f"<reserved{8800 + side * CODE_PX // CELL_PX:05d}>"
        ids = token_ids(tokenizer, vocabulary, where, _NAMES | {"cells": size_name})
        # As the authors' own wrapper of the tokenizer does.
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise InputError(f"{where}: the tokenizer has neither bos_token nor eos_token")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else start
        special = SpecialIds(bos=start, eos=ids["turn_end"], pad=pad, boi=ids["boi"], eoi=ids["eoi"])
        first = _first_code(vocabulary, num_rows, facts.num_codes, where)
        image_rows = torch.arange(first, first + facts.num_codes)
        # By number too, whatever the codes' tokens are called.
        words = text_rows(tokenizer, vocabulary, special, num_rows, _RESERVED)
        super().__init__(
            module,
            tokenizer,
            facts,
            special=special,
            image_rows=image_rows,
            text_rows=words[(words < first) | (words >= first + facts.num_codes)],
            frame=ImageFrame(
                opening=(special.boi, ids["cells"], ids["cells"]),
                closing=(ids["line_end"], special.eoi),
                row_tokens=side,
                row_end=ids["line_end"],
            ),
        )

    def check_guidance(self) -> None:
        """Accept guidance: what is left out of a prompt is known, see :meth:`unconditional_prefixes`."""

    def unconditional_prefixes(self, prefix: Sequence[int]) -> tuple[list[int], list[int]]:
        """Leave out the text, and all before the target image.

        Args:
            prefix: Vocabulary ids of a forward prompt.

        Returns:
            ``bos SOURCE`` with the opening of the target, and that opening alone, as the release was trained.
        """
        padding = [self.pad_id] * self.action_slot_tokens
        return drop_text(prefix, self.frame, self.tokens_per_image, padding), list(self.frame.opening)


def _first_code(vocabulary: Mapping[str, int], num_rows: int, num_codes: int, where: str) -> int:
    """Return the vocabulary id of image code 0: the authors' number, or that of a smaller vocabulary's first code."""
    first = LUMINA_FIRST_CODE
    # Their number is in their code, for one vocabulary; names serve models of another.
    if num_rows < LUMINA_FIRST_CODE + LUMINA_CODES:
        code_ids = sorted(row for name, row in vocabulary.items() if name.startswith(LUMINA_CODE_PREFIX))
        first = code_ids[0] if code_ids else 0
        if code_ids != list(range(first, first + num_codes)):
            raise InputError(
                f"{where}: the vocabulary names {len(code_ids)} image codes {LUMINA_CODE_PREFIX}…, expected "
                f"{num_codes} with consecutive ids"
            )
    if first + num_codes > num_rows:
        raise InputError(
            f"{where}: image codes would have the ids {first:,} to {first + num_codes - 1:,}, but the model has "
            f"{num_rows:,} rows"
        )
    return first


def load_lumina(folder: Path, device: Device, dtype: torch.dtype, facts: Facts) -> LuminaVLM:
    """Load a full folder.

    Args:
        folder: A full folder.
        device: Where to put the weights.
        dtype: Their type.
        facts: Of its codec and of the folder.
    """
    config: ChameleonConfig = read_config(folder, ChameleonConfig)
    module = read_module(
        folder,
        ChameleonForConditionalGeneration,
        config,
        device,
        dtype,
        without=(CODEC_PREFIX,),
        adapt=partial(_spread_norms, config),
    )
    return LuminaVLM(module, read_tokenizer(folder), facts)


def _spread_norms(config: ChameleonConfig, locations: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give norms of queries and keys a row a head, as today's class has them.

    The authors' class has one row for each of ``model_parallel_size`` parts and repeats it when it runs
    (``ChameleonLayerNorm.repeat_param`` in their ``modeling_chameleon.py``).
    """
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads or config.num_attention_heads}
    spread = dict(locations)
    for name, location in locations.items():
        layer, _, part = name.rpartition(".self_attn.")
        count = heads.get(part[:1], 0) if layer and part[1:].startswith("_norm.") else 0
        # What does not fit is reported by the check of shapes.
        if count and len(location.shape) == 2 and location.shape[0] and count % location.shape[0] == 0:
            shape = (count, location.shape[1])
            spread[name] = replace(location, shape=shape, make=_repeating(name, location, count // location.shape[0]))
    return spread


def _repeating(name: str, location: StoredTensor, times: int) -> Callable[[], Tensor] | None:
    # Stored as the class has it: nothing to make.
    if times == 1:
        return location.make

    # Read when it is asked for, as other weights are.
    def make() -> Tensor:
        (_, tensor), *_ = read_stored({name: location})
        return tensor.repeat_interleave(times, dim=0)

    return make


def read_lumina_codec(folder: Path, device: Device, decoder: Path | None) -> ImageCodec:
    """Read MoVQGAN in the folder ``movqgan``: the released ``movqgan_270M.ckpt``, or ``model.safetensors``.

    Args:
        folder: A full folder.
        device: Where to put the codec.
        decoder: Refused: MoVQGAN has one.
    """
    if decoder is not None:
        raise InputError(f"decoder = {decoder}: Lumina's MoVQGAN has its own decoder")
    # The release leaves it out: the message says where it is.
    if not (folder / CODEC_FOLDER).is_dir():
        explain_missing_movqgan(folder)
    side = read_side(folder, SIDE_PX, CELL_PX)
    codec = read_shaped_codec(folder / CODEC_FOLDER, MoVQ, side, read_scale(folder), device)
    # The prompt's HEIGHT and WIDTH count pixels through codes of this size.
    if codec.vqgan.side_tokens * CODE_PX != side:
        raise InputError(f"{codec.where}: a code is {side // codec.vqgan.side_tokens} px wide, expected {CODE_PX}")
    return codec


def write_lumina(vlm: LuminaVLM, codec: ImageCodec, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the language model in the folder, MoVQGAN under its own names in the folder ``movqgan``.

    Args:
        vlm: The model.
        codec: Its image codec.
        tensors: The language model's, by name.
        folder: An existing folder without ``movqgan``.
    """
    write_weights(vlm, tensors, folder)
    (folder / CODEC_FOLDER).mkdir()
    write_tensors(codec.vqgan.state_dict(), folder / CODEC_FOLDER)
    write_image_processor(codec.scale, folder, size={"height": codec.side_px, "width": codec.side_px})


def lumina_codec_shape(folder: Path) -> tuple[int, int]:
    """Return tokens an image and codes, without MoVQGAN's weights: its released models have the same of both."""
    return (read_side(folder, SIDE_PX, CELL_PX) // CODE_PX) ** 2, LUMINA_CODES


FAMILY = Family(load_lumina, read_lumina_codec, write_lumina, lumina_codec_shape)
