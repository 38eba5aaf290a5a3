"""Embed and caption images through transformers: CLIP, DINO and BLIP, each from a local folder in its released form.

Images are prepared by the folder's own processor, in its PIL form, so that figures do not depend on torchvision.
Batches have one size, the last one filled up, so that neither order nor number of the images changes a result beyond
rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wm.errors import InputError
from wm.images import Pixels
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, neutralise, read_json, refusing
from wm.models.folders import quiet_transformers
from wm.models.identity import fingerprint_of
from wm.models.tensor_checks import check_amount, count_numbers
from wm.models.unreadable import check_folder_exists
from wm.models.weights import list_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Vectors: TypeAlias = npt.NDArray[np.float32]
DinoPreparation: TypeAlias = Literal["magicbrush", "processor"]

MAX_CAPTION_TOKENS = 50
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class ClipEncoder:
    """CLIP's two towers, for the similarity of images with images and texts."""

    model: Any
    image_processor: Any
    tokenizer: Any
    digest: str  # of configuration, weights and preparation
    batch_size: int = 32

    def embed_images(self, images: Sequence[Pixels]) -> Vectors:
        """Embed images of any size: unit vectors (N, D)."""
        return _embed_images(images, self.image_processor, self._project_images, self.model, self.batch_size)

    def _project_images(self, pixels_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, cut to the model's length: unit vectors (N, D)."""
        length = self.model.config.text_config.max_position_embeddings
        vectors = []
        for batch, size in _fill_batches(texts, self.batch_size):
            # To the full length: padding to the longest would make a text depend on its neighbours.
            tokens = self.tokenizer(
                list(batch), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(self.model.device)
            features = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            vectors.append(_to_unit(features)[:size])
        return _stack(vectors)


@dataclass(frozen=True)
class DinoEncoder:
    """DINO's vision transformer, whose class token describes an image."""

    model: Any
    image_processor: Any
    digest: str
    batch_size: int = 32

    def embed_images(self, images: Sequence[Pixels]) -> Vectors:
        """Embed images of any size by the class token of the last layer: unit vectors (N, D)."""
        return _embed_images(images, self.image_processor, self._class_token, self.model, self.batch_size)

    def _class_token(self, pixels_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=pixels_BCHW).last_hidden_state[:, 0])


@dataclass(frozen=True)
class BlipCaptioner:
    """BLIP's captioner."""

    model: Any
    image_processor: Any
    tokenizer: Any
    digest: str
    batch_size: int = 8

    @torch.inference_mode()
    def caption(self, images: Sequence[Pixels]) -> list[str]:
        """Write a greedy caption for each image of any size."""
        captions: list[str] = []
        limit = min(MAX_CAPTION_TOKENS, self.model.config.text_config.max_position_embeddings - 1)
        for batch, size in _fill_batches(images, self.batch_size):
            pixels = self.image_processor(images=list(batch), return_tensors="pt")["pixel_values"].to(self.model.device)
            tokens = self.model.generate(pixel_values=pixels, do_sample=False, num_beams=1, max_new_tokens=limit)
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            captions += [text.strip() for text in texts[:size]]
        return captions


def load_clip(folder: str | Path, *, device: str = "cpu", batch_size: int = 32) -> ClipEncoder:
    """Load CLIP from a folder, such as ``openai/clip-vit-base-patch32``.

    Args:
        folder: A local folder in the form of transformers.
        device: Device of torch.
        batch_size: Images or texts of a pass.

    Returns:
        The encoder.

    Raises:
        InputError: The folder is missing, or holds no CLIP.
    """
    from transformers import CLIPModel

    path = Path(folder)
    model, digest = load_checked_model(path, CLIPModel, "clip", device)
    with refusing(f"{path} has no preparation of CLIP's images and texts"):
        return ClipEncoder(model, _load_processor(path), load_tokenizer(path), digest, batch_size)


def load_dino(
    folder: str | Path, *, device: str = "cpu", batch_size: int = 32, preparation: DinoPreparation = "magicbrush"
) -> DinoEncoder:
    """Load DINO from a folder, such as ``facebook/dino-vits16``, or another vision transformer of DINO's kind.

    Args:
        folder: A local folder in the form of transformers.
        device: Device of torch.
        batch_size: Images of a pass.
        preparation: ``magicbrush``: as the common protocol of image editing has it, the short side to 8/7 of the
            model's size (256 for 224) bicubic, centre crop, ImageNet's mean and deviation; ``processor``: the folder's
            own.

    Returns:
        The encoder.

    Raises:
        InputError: The folder is missing, or holds no such model.
    """
    from transformers import CLIPImageProcessorPil, Dinov2Model, ViTModel

    path = Path(folder)
    kind = read_model_type(path, ("vit", "dinov2"))
    classes: dict[str, Any] = {"vit": ViTModel, "dinov2": Dinov2Model}
    # The pooler of a classifier, which DINO was released without, is not used.
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    model, digest = load_checked_model(path, classes[kind], kind, device, **options)
    if preparation == "processor":
        with refusing(f"{path} has no preparation of images"):
            return DinoEncoder(model, _load_processor(path), f"{digest}-processor", batch_size)
    side_px = model.config.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": round(side_px * 8 / 7)},
        crop_size={"height": side_px, "width": side_px},
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
    )
    return DinoEncoder(model, processor, f"{digest}-{preparation}", batch_size)


def load_blip(folder: str | Path, *, device: str = "cpu", batch_size: int = 8) -> BlipCaptioner:
    """Load BLIP's captioner from a folder, such as ``Salesforce/blip-image-captioning-large``.

    Args:
        folder: A local folder in the form of transformers.
        device: Device of torch.
        batch_size: Images of a pass.

    Returns:
        The captioner.

    Raises:
        InputError: The folder is missing, or holds no such model.
    """
    from transformers import BlipForConditionalGeneration

    path = Path(folder)
    model, digest = load_checked_model(path, BlipForConditionalGeneration, "blip", device)
    with refusing(f"{path} has no preparation of BLIP's images and texts"):
        return BlipCaptioner(model, _load_processor(path), load_tokenizer(path), digest, batch_size)


def read_model_type(folder: Path, kinds: Sequence[str]) -> str:
    """Check a folder's configuration before anything of transformers reads it.

    Args:
        folder: A model folder.
        kinds: Values of ``model_type`` that are expected.

    Returns:
        Its ``model_type``.

    Raises:
        InputError: The folder is missing, names code, or holds another model.
    """
    check_folder_exists(folder)
    check_no_code(folder)
    values = read_json(folder / "config.json")
    check_config(values, folder / "config.json")
    kind = str(values.get("model_type"))
    if kind not in kinds:
        raise InputError(f"{folder} holds a model of type {kind!r:.60}; expected {' or '.join(kinds)}")
    return kind


def load_checked_model(
    folder: Path, model_class: "type[PreTrainedModel]", kind: str, device: str, **options: bool
) -> tuple[Any, str]:
    """Load a model in evaluation mode.

    Args:
        folder: Its folder.
        model_class: Its class in transformers.
        kind: Its ``model_type``.
        device: Device of torch.
        options: For the class.

    Returns:
        The model in float32, and the digest of its configuration and weights.

    Raises:
        InputError: The folder holds no such model, or lacks tensors of it.
    """
    from transformers import AutoConfig

    read_model_type(folder, (kind,))
    with refusing(f"{folder} holds no {model_class.__name__} that can be read"):
        config = neutralise(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        stored = list_tensors(folder)
        # Built without memory first: a configuration that asks for far more than the files hold is refused.
        with torch.device("meta"):
            skeleton = model_class(config, **options)
        check_amount(skeleton, count_numbers(stored), str(folder))
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, **options,
            )  # fmt: skip
    # transformers would fill them with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{folder}: {len(missing)} tensors are missing: {', '.join(missing[:6])}")
    return model.to(device).eval(), f"{kind}-{fingerprint_of(read_json(folder / 'config.json'), stored)}"


def _load_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checked folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@torch.inference_mode()
def _embed_images(
    images: Sequence[Pixels], processor: Any, embed: Callable[[Tensor], Tensor], model: Any, batch_size: int
) -> Vectors:
    vectors = []
    for batch, size in _fill_batches(images, batch_size):
        pixels_BCHW = processor(images=list(batch), return_tensors="pt")["pixel_values"].to(model.device)
        vectors.append(_to_unit(embed(pixels_BCHW))[:size])
    return _stack(vectors)


def _fill_batches(items: Sequence[Any], batch_size: int) -> Iterator[tuple[Sequence[Any], int]]:
    """Cut items into batches of one size, and say how many of each are not there to fill it."""
    for begin in range(0, len(items), batch_size):
        batch = items[begin : begin + batch_size]
        yield [*batch, *[batch[0]] * (batch_size - len(batch))], len(batch)


def _to_unit(vectors_ND: Tensor) -> Vectors:
    unit_ND = torch.nn.functional.normalize(vectors_ND.float(), dim=-1)
    return cast(Vectors, unit_ND.cpu().numpy())


def _stack(vectors: Sequence[Vectors]) -> Vectors:
    return np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)
