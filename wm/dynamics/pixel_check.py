"""Try a pixel-reading model before it is used: whether it takes two images, and which shortcuts give the same scores.

A shortcut that fails or gives another score is not taken, with a line in the log: a class of transformers that nobody
has tried here is read the plain way, never wrongly.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wm.dynamics.observation import Observation, pixels_of
from wm.dynamics.vlm_images import FeatureStore
from wm.dynamics.vlm_pairs import PairReader
from wm.dynamics.vlm_scorer import VLMScorer
from wm.dynamics.vlm_scoring import score_pairs
from wm.errors import InputError
from wm.images import Pixels
from wm.models.folder_checks import one_line, refusing
from wm.models.manifest import adapter_base, is_adapter, model_folder, read_manifest
from wm.models.pixels.chats import PROMPT, check_no_special, write_chat
from wm.models.pixels.folders import check_pixel_folder, load_pixel_processor
from wm.models.remote import is_in_bucket

logger = logging.getLogger(__name__)

_SIZES = ((64, 96), (96, 64), (64, 64))
_ACTION = "move the object to the left"
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Relative difference of two sums of log-probabilities that is rounding; ours, as the next."""
_COARSE_TOLERANCE = 0.03
"""The same of bfloat16 and float16, which have 8 and 11 bits."""


@dataclass(frozen=True)
class Shortcuts:
    """What of a model's work is not done twice.

    Attributes:
        reader: Reads images from features that are kept; None: the processor and the model read pixels every time.
        shares_prefix: What several rows begin with is read once.
    """

    reader: PairReader | None = None
    shares_prefix: bool = False


def check_device(device: str | torch.device, dtype: torch.dtype) -> None:
    """Check that weights can go to a device in a type.

    Args:
        device: Where they shall go.
        dtype: Their type.

    Raises:
        InputError: There is no such device here, or the type is none of weights.
    """
    # Before gigabytes are read for it.
    with refusing(f"device = {str(device)!r:.60}"):
        kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device = {str(device)!r}: there is no GPU here; expected cpu")
    if not dtype.is_floating_point:
        raise InputError(f"dtype = {dtype}: expected float32, bfloat16 or float16")


def check_two_images(processor: Any, prompt: str, folder: Path) -> None:
    """Check that a processor and its chat template take two images.

    Args:
        processor: The model's.
        prompt: The question.
        folder: Named in errors.

    Raises:
        InputError: The prompt holds a special token, the template leaves an image out, or the processor takes one
            alone.
    """
    # It would end the question, or open a third image.
    check_no_special(processor.tokenizer, prompt, "prompt")
    prefix, token = write_chat(processor, prompt), getattr(processor, "image_token", None)
    if token is not None and prefix.count(token) != 2:
        raise InputError(
            f"{folder}: the chat template writes {prefix.count(token)} of the two images (as {token!r}); expected a "
            "model that takes two images"
        )
    with refusing(f"{folder}: the processor does not take two images"):
        processor(text=[prefix], images=[_noise()[:2]], return_tensors="pt")


def check_pixel_files(path: str | Path, base: str | Path | None, prompt: str) -> None:
    """Check a model by its files and try its processor and chat template with two images; no weights are read.

    Args:
        path: Its folder, full or an adapter, whose processor is its base's.
        base: Base of an adapter; None: the one that its manifest names.
        prompt: The question; empty: that of ``wm train``.

    Raises:
        InputError: The folder is damaged or runs code, the base is not there, or two images or the question cannot be
            given.
    """
    folder, question = model_folder(path), prompt or PROMPT
    # An adapter of another program says nothing of its base.
    if is_adapter(folder):
        folder = adapter_base(folder, base) if read_manifest(folder) or base is None else model_folder(base)
    # Of a bucket only the configuration is here: whoever loads the model fetches the rest, and checks it.
    if is_in_bucket(folder):
        return
    check_pixel_folder(folder)
    # The question is tried too: a template may leave an image out.
    check_two_images(load_pixel_processor(folder, question), question, folder)


def find_shortcuts(scorer: VLMScorer, folder: Path, image_cache_bytes: int) -> Shortcuts:
    """Try a model on noise, and find the shortcuts that give the same scores as the plain way.

    Args:
        scorer: The plain way.
        folder: Named in errors and in the log.
        image_cache_bytes: Bound on the features that are kept between calls.

    Raises:
        InputError: The model cannot read what its processor makes of two images.
    """
    if scorer.model.config.is_encoder_decoder:
        raise InputError(f"{folder}: {type(scorer.model).__name__} has an encoder for text; expected a decoder alone")
    # Two candidates of one source: both shortcuts have something to do.
    first, *others = (Observation.from_pixels(image) for image in _noise())
    sources, actions = [first, first], [_ACTION, _ACTION.split(maxsplit=1)[0]]
    # Another processor makes patches of another size, or writes too few tokens for them.
    with refusing(f"{folder}: the model cannot read what its processor makes of two images (is it another model's?)"):
        plain = scorer.score_actions(pixels_of(sources), pixels_of(others), actions)
    expected = [score.logprob for score in plain]
    if not np.isfinite(expected).all():
        raise InputError(f"{folder}: log-probabilities are nan or infinite; its weights are damaged")
    name = type(scorer.model).__name__
    try:
        store = FeatureStore(scorer.model, scorer.processor, scorer.prefix, image_cache_bytes)
        reader = PairReader(scorer.model, scorer.processor, scorer.prefix, store)
        _compare(score_pairs(reader, sources, others, actions, is_shared=False), expected, scorer)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a class makes of arguments that it does not know
        logger.warning("%s: features of images are computed anew each time: %s", name, one_line(error))
        return Shortcuts()
    try:
        _compare(score_pairs(reader, sources, others, actions), expected, scorer)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        logger.warning("%s: a source is read anew for each of its candidates: %s", name, one_line(error))
        return Shortcuts(reader)
    finally:
        # Noise comes no second time.
        store.clear()
    return Shortcuts(reader, shares_prefix=True)


def _compare(scores: Sequence[Any], expected: Sequence[float], scorer: VLMScorer) -> None:
    # Relative to the sum where it is large, as rounding is.
    tolerance = _TOLERANCES.get(scorer.model.dtype, _COARSE_TOLERANCE)
    for score, value in zip(scores, expected, strict=True):
        if not abs(score.logprob - value) <= tolerance * max(1.0, abs(value)):
            raise ValueError(f"scores differ from the plain way ({score.logprob:.6g} for {value:.6g})")


def _noise() -> list[Pixels]:
    # Of several shapes, so that rows and columns of patches cannot be mistaken for each other.
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]
