"""Vision features of images, computed once and handed to the language model in place of pixels.

The classes of transformers take what their encoder made of images as ``mm_encoder_outputs``, and their processors say
which text stands for an image. Not known here: what is asked about images.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from wm.dynamics.observation import Observation, pixels_of
from wm.models.pixels.chats import begins, move_to, process
from wm.sampling.batches import halving

_PAIRS_AT_ONCE = 8
"""Pairs of images that the vision encoder reads in one pass; ours."""


class UnsupportedModelError(Exception):
    """A class or processor of transformers whose vision features cannot be kept."""


@dataclass(frozen=True)
class ImageFeatures:
    """An image as the language model reads it.

    Attributes:
        placeholder: The text that stands for it in a chat.
        features: A vector for each of its tokens, (N, H).
        deep_features: The same for each layer that adds features of its own (DeepStack of Qwen3-VL).
        grid_thw: Patches in time, height and width, where positions depend on them.
    """

    placeholder: str
    features: Tensor
    deep_features: tuple[Tensor, ...] = ()
    grid_thw: tuple[int, ...] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all vectors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.features, *self.deep_features))


class FeatureStore:
    """Computes features of images, and keeps those that were used last.

    Args:
        model: Of transformers, in evaluation mode.
        processor: Its processor.
        prefix: A chat with two images, whose placeholders are not replaced yet.
        max_bytes: Bound on what is kept between calls; 0: nothing.

    Raises:
        UnsupportedModelError: The class or its processor has no way to do this.
    """

    def __init__(self, model: Any, processor: Any, prefix: str, max_bytes: int) -> None:
        self._model, self._processor, self._prefix, self._max_bytes = model, processor, prefix, max_bytes
        self._kept: OrderedDict[tuple[str, str], ImageFeatures] = OrderedDict()
        self._num_bytes = 0
        self.num_encoded = 0
        """Images that the vision encoder has read."""
        encode = getattr(model.base_model, "get_image_features", None)
        if encode is None or "mm_encoder_outputs" not in signature(model.forward).parameters:
            raise UnsupportedModelError(f"{type(model).__name__} takes no features in place of pixels")
        self._encode: Callable[..., Any] = encode
        token_id = getattr(model.config, "image_token_id", None)
        if not isinstance(token_id, int):
            raise UnsupportedModelError(f"{type(model).__name__} has no token for images")
        self.image_token_id = token_id
        self._image_token = processor.tokenizer.convert_ids_to_tokens(token_id)
        # How the class wants its features: in one tensor, or one an image.
        self._output_class: Callable[..., Any] | None = None
        self._is_tensor = False

    @torch.no_grad()
    def read(self, observations: Sequence[Observation]) -> list[ImageFeatures]:
        """Return features of every image; those that are not kept are computed, each of equal ones once.

        Args:
            observations: Images.
        """
        keys = [(item.codec_id, item.text) for item in observations]
        # Held here too: what is kept may be less than a call needs.
        features = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: item for key, item in zip(keys, observations, strict=True) if key not in features}
        # Codes are decoded for what is missing alone.
        pixels = dict(zip(missing, pixels_of(list(missing.values())), strict=True))
        names = list(pixels)

        def encode(start: int, stop: int) -> None:
            batch = names[2 * start : 2 * stop]
            computed = self._compute([pixels[name] for name in batch])
            features.update(zip(batch, computed, strict=True))

        halving(encode, (len(names) + 1) // 2, _PAIRS_AT_ONCE)
        for key in keys:
            self._keep(key, features[key])
        return [features[key] for key in keys]

    def clear(self) -> None:
        """Drop everything that is kept."""
        self._kept.clear()
        self._num_bytes = 0

    def to_inputs(self, images: Sequence[ImageFeatures]) -> dict[str, Any]:
        """Build the argument by which the model takes features in place of pixels.

        Args:
            images: In the order of their placeholders, row by row.
        """
        if not images:
            return {}
        if self._output_class is None:
            raise RuntimeError("read() computes features first")
        # The model writes them over the placeholders in this order.
        vectors = [image.features for image in images]
        output = self._output_class(pooler_output=torch.cat(vectors) if self._is_tensor else vectors)
        if images[0].deep_features:
            # By layer, then by image.
            output.deepstack_features = [
                list(layer) for layer in zip(*(image.deep_features for image in images), strict=True)
            ]
        return {"mm_encoder_outputs": {"image": output}}

    def _keep(self, key: tuple[str, str], image: ImageFeatures) -> None:
        """Move an image to the end of what is kept, and drop the first ones over the bound."""
        if key not in self._kept:
            self._kept[key] = image
            self._num_bytes += image.num_bytes
        self._kept.move_to_end(key)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes

    def _compute(self, pixels: Sequence[Any]) -> list[ImageFeatures]:
        """Compute features of images, in chats of two: some processors read one image alone in another way."""
        # The last one is doubled where their number is odd.
        padded = [*pixels, pixels[-1]] if len(pixels) % 2 else list(pixels)
        num_pairs = len(padded) // 2
        pairs = [padded[2 * pair : 2 * pair + 2] for pair in range(num_pairs)]
        try:
            inputs = self._processor(
                text=[self._prefix] * num_pairs,
                images=pairs,
                padding=True,
                add_special_tokens=not begins(self._prefix, self._processor.tokenizer.bos_token),
                return_text_replacement_offsets=True,
                return_tensors="pt",
            )
        except ValueError:
            # An image that the plain way does not take either is named, one by one; else it is the offsets' fault.
            for pair in pairs:
                process(self._processor, [self._prefix], [pair], padding_side="right")
            raise
        if "text_replacement_offsets" not in inputs:
            raise UnsupportedModelError(f"{type(self._processor).__name__} does not say what stands for an image")
        placeholders = [item["replacement"] for row in inputs["text_replacement_offsets"] for item in row]
        names = signature(self._encode).parameters.keys() & inputs.keys()
        # Whatever the encoder asks for: sizes, grids and masks differ by class.
        output = self._encode(
            **{name: move_to(inputs[name], self._model.device, self._model.dtype) for name in names}, return_dict=True
        )
        self.num_encoded += len(pixels)
        self._output_class, self._is_tensor = type(output), isinstance(output.pooler_output, Tensor)
        counts = [text.count(self._image_token) for text in placeholders]
        features = _split(output.pooler_output, counts)
        layers = [_split(layer, counts) for layer in getattr(output, "deepstack_features", None) or []]
        grids = inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else [None] * len(padded)
        images = [
            ImageFeatures(text, vectors, tuple(layer[index] for layer in layers), tuple(grid) if grid else None)
            for index, (text, vectors, grid) in enumerate(zip(placeholders, features, grids, strict=True))
        ]
        return images[: len(pixels)]


def _split(vectors: Any, counts: Sequence[int]) -> list[Tensor]:
    """Split the vectors of all images, as a tensor or a list of any grouping, into those of each."""
    parts = [vectors] if isinstance(vectors, Tensor) else list(vectors)
    if not all(isinstance(part, Tensor) for part in parts):
        raise UnsupportedModelError("its features are of another form")
    flat_TH = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    if len(flat_TH) != sum(counts):
        raise UnsupportedModelError(f"it makes {len(flat_TH)} features for {sum(counts)} tokens")
    # Copies: a view would keep the vectors of all images alive.
    return [part.clone() for part in torch.split(flat_TH, list(counts))]
