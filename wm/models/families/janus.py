"""Janus-Pro (arXiv 2501.17811): a Llama that generates images by codes and understands them by SigLIP features.

Image codes have embeddings and a head of their own, which are no rows of the vocabulary; here code c is vocabulary id
``text vocabulary + c`` all the same, and :meth:`JanusVLM.body` and :meth:`JanusVLM.head` know what such an id means.

**Forward dynamics is supported**: the source image enters by its codes through the generation embeddings, as the codes
of a half-generated image do. The release was not trained to read a source this way: fine-tune it. **Inverse dynamics is
not**: Janus understands images by SigLIP features of pixels, and codes alone have none. As a judge of actions it serves
through :mod:`wm.dynamics.vlm_scorer`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Cache,
    JanusConfig,
    JanusForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.modeling_janus import JanusVQVAE

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec
from wm.models.codec.files import read_own_codec
from wm.models.codec.vqgan import VQModel
from wm.models.families import FORWARD_ONLY
from wm.models.folder_writing import codec_tensors, write_image_processor, write_weights
from wm.models.folders import (
    Device,
    Family,
    read_config,
    read_module,
    read_tokenizer,
)
from wm.models.prompts import Segment, Task
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.vocabulary import special_ids, text_rows
from wm.models.weights import CODEC_PREFIX, load_tensors

UNDERSTANDING = ("model.vision_model.", "model.aligner.")
"""Tensors of the half that reads pixels: not loaded, and written back unchanged."""


class JanusVLM(UnifiedVLM):
    """See :class:`~wm.models.UnifiedVLM`; forward dynamics only."""

    family = "janus"

    def __init__(self, module: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, facts: Facts) -> None:
        where = str(facts.folder or "this tokenizer")
        self.num_text: int = module.config.text_config.vocab_size
        # Codes follow the text's rows: an id beyond them would be taken for a code.
        if len(tokenizer) > self.num_text:
            raise InputError(f"{where}: the tokenizer has {len(tokenizer)} tokens, the model {self.num_text}")
        vocabulary, eos = tokenizer.get_vocab(), str(tokenizer.eos_token)
        special = special_ids(
            tokenizer,
            vocabulary,
            where,
            bos=str(tokenizer.bos_token),
            eos=eos,
            pad=eos,
            boi="<begin_of_image>",
            eoi="<end_of_image>",
        )
        super().__init__(
            module,
            tokenizer,
            facts,
            special=special,
            image_rows=torch.arange(self.num_text, self.num_text + facts.num_codes),
            text_rows=text_rows(tokenizer, vocabulary, special, self.num_text),
        )

    @property
    def decoder(self) -> PreTrainedModel:
        """The Llama."""
        return self.inner.model.language_model

    def layout(
        self,
        task: Task,
        *,
        source: Sequence[int],
        action: str | None = None,
        target: Sequence[int] | None = None,
    ) -> list[Segment]:
        """Build the one prompt layout; inverse dynamics is refused (see the module).

        Args:
            task: ``fdm``.
            source: Codebook ids of the source image.
            action: A text without special tokens.
            target: Codebook ids of the target image; None: the prefix alone.
        """
        if task == "idm":
            raise InputError(FORWARD_ONLY["janus"])
        return super().layout(task, source=source, action=action, target=target)

    def unconditional_prefixes(self, prefix: Sequence[int]) -> tuple[list[int], list[int]]:
        """Put padding in place of what is left out, token by token, as the authors' ``generation_inference.py`` does.

        Args:
            prefix: Vocabulary ids of a forward prompt.

        Returns:
            The prompt with padding for its text, and with padding for all but its first and last token.
        """
        image = [token if token in self._image_ids else self.pad_id for token in prefix]
        return image, [*prefix[:1], *[self.pad_id] * (len(prefix) - 2), *prefix[-1:]]

    def body(self, ids_BT: Tensor, cache: Cache | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """Run the Llama on text embeddings, and on codes by the generation embeddings and their aligner.

        Args:
            ids_BT: Vocabulary ids, int64; those of codes follow the text's.
            cache: transformers' keys and values of earlier positions, extended in place.
            positions_BT: int64; None: one after the other, from the end of the cache.
        """
        # Both are looked up for every position: a choice by masks would wait for the GPU.
        is_code_BT1 = (ids_BT >= self.num_text)[..., None]
        text_BTH = self.decoder.embed_tokens(ids_BT.clamp(max=self.num_text - 1))
        codes_BTH = self._embed_codes((ids_BT - self.num_text).clamp(min=0))
        return self._run({"inputs_embeds": torch.where(is_code_BT1, codes_BTH, text_BTH)}, cache, positions_BT)

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute logits of the given rows, all of the text or all of the image codes: two heads, two distributions.

        Without ``rows`` the log-probabilities of both are side by side (…, text + codes). A cross-entropy over
        them is that of the head the token belongs to, plus ln 2, whatever the weights: the right gradient.

        Args:
            hidden: (…, H), as :meth:`body` returns it.
            rows: int64, vocabulary ids; None: all.
        """
        # Two heads have no common scale: each is normalised by itself.
        if rows is None:
            sides = (self.inner.lm_head(hidden), self.image_head(hidden))
            return torch.cat([torch.log_softmax(side, dim=-1) for side in sides], dim=-1)
        # The sampler's case, without a look at the rows: it would wait for the GPU.
        if rows is self.image_rows:
            return self.image_head(hidden)
        if bool((rows >= self.num_text).all()):
            return self.image_head(hidden)[..., rows - self.num_text]
        if bool((rows >= self.num_text).any()):
            raise InputError("janus has one head for text and one for image codes: rows of both cannot be compared")
        return super().head(hidden, rows)

    def image_head(self, hidden: Tensor) -> Tensor:
        """Compute the logits (…, num_codes) of the image codes."""
        logits: Tensor = self.inner.model.generation_head(hidden)
        return logits

    @property
    def code_embeddings_CH(self) -> Tensor:  # noqa: N802
        """The Llama's input for each code (num_codes, H)."""
        with torch.no_grad():
            return self._embed_codes(torch.arange(self.num_codes, device=self.device))

    def _embed_codes(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.inner.model.generation_aligner(self.inner.model.generation_embeddings(codes))
        return embedded


class JanusVQ(VQModel):
    """Janus' VQ model (LlamaGen's, arXiv 2406.06525) under transformers' tensor names.

    Codes are compared by direction: features and codebook are scaled to length 1 before, as in the authors'
    ``vq_model.py`` (``codebook_l2_norm``). transformers does so when it decodes and leaves it out when it encodes,
    which it never does for its own purposes; codes made here are the authors'.
    """

    def __init__(self, vq: JanusVQVAE) -> None:
        super().__init__()
        side = vq.config.num_patches
        # The configuration names tokens; each level but the last halves the side.
        side_px = side * 2 ** (len(vq.config.channel_multiplier) - 1)
        self.take_parts(vq, side, side_px, vq.config.num_embeddings)

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return pre-quantised features of length 1 (B, N, D), row-major."""
        features_BDHW: Tensor = self.quant_conv(self.encoder(pixels_BCHW))
        return F.normalize(features_BDHW.flatten(2).transpose(1, 2), dim=-1)

    def nearest(self, features_BND: Tensor) -> Tensor:
        """Return the codebook ids (B, N) nearest in direction."""
        codebook_CD = F.normalize(self.quantize.embedding.weight, dim=-1)
        distance = codebook_CD.square().sum(1) - 2 * features_BND @ codebook_CD.T
        return distance.argmin(dim=-1)

    def decode_features(self, quantised_BND: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in [-1, 1] of code vectors (B, N, D)."""
        side = self.side_tokens
        latent_BDHW = F.normalize(quantised_BND, dim=-1).transpose(1, 2).reshape(len(quantised_BND), -1, side, side)
        # Another memory layout would be another convolution kernel, of other rounding than transformers'.
        pixels_BCHW: Tensor = self.decoder(self.post_quant_conv(latent_BDHW.contiguous()))
        return pixels_BCHW


def load_janus(folder: Path, device: Device, dtype: torch.dtype, facts: Facts) -> JanusVLM:
    """Load a full folder; the half that understands pixels is left on disk.

    Args:
        folder: A full folder.
        device: Where to put the weights.
        dtype: Their type.
        facts: Of its codec and of the folder.
    """
    config = read_config(folder, JanusConfig)
    # SigLIP takes memory, and no prediction passes through it.
    without = (CODEC_PREFIX, *UNDERSTANDING)
    module = read_module(folder, JanusForConditionalGeneration, config, device, dtype, without=without)
    return JanusVLM(module, read_tokenizer(folder), facts)


def read_janus_codec(folder: Path, device: Device, decoder: Path | None) -> ImageCodec:
    """Read the VQ model of a full folder.

    Args:
        folder: A full folder.
        device: Where to put the codec.
        decoder: Refused: the VQ model has one.
    """
    config = read_config(folder, JanusConfig).vq_config
    return read_own_codec(
        folder,
        lambda: JanusVQ(JanusVQVAE(config)),
        family="janus",
        prefixes=(CODEC_PREFIX,),
        device=device,
        decoder=decoder,
    )


def write_janus(vlm: JanusVLM, codec: ImageCodec, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write all of it in one file, as transformers does; the half that was not loaded comes from the model's folder.

    Args:
        vlm: The model, read from a folder with its SigLIP weights.
        codec: Its image codec.
        tensors: The language model's, by name.
        folder: An existing folder.
    """
    if vlm.folder is None:
        raise InputError(f"cannot write {folder}: the model was not read from a folder that has its SigLIP weights")
    # transformers' class is complete only with the half that reads pixels.
    own = codec_tensors(codec)
    for prefix in UNDERSTANDING:
        own |= {prefix + name: tensor for name, tensor in load_tensors(vlm.folder, prefix).items()}
    write_weights(vlm, {**tensors, **own}, folder)
    write_image_processor(
        codec.scale,
        folder,
        image_processor_type="JanusImageProcessor",
        processor_class="JanusProcessor",
        size={"height": codec.side_px, "width": codec.side_px},
    )


def janus_codec_shape(folder: Path) -> tuple[int, int]:
    """Return tokens an image and codes, from the configuration."""
    config = read_config(folder, JanusConfig).vq_config
    return config.num_patches**2, config.num_embeddings


FAMILY = Family(load_janus, read_janus_codec, write_janus, janus_codec_shape)
