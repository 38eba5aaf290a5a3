"""Call a pipeline of diffusers so that an image depends on its source, action and seed alone: the arguments of a class,
the noise of each image, progress, and images that are none. Which rows share a call is not decided here.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from wm.dynamics.protocols import OnSamples, SampleFailure
from wm.errors import InputError
from wm.images import Pixels
from wm.models.folder_checks import refusing

Setting: TypeAlias = bool | int | float | str
"""An argument of a pipeline's call."""
Callback: TypeAlias = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""What diffusers calls after a denoising step: pipeline, step, time and tensors, which are returned."""

BATCHED = ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline")
"""Pipelines that take an image for each prompt; others read a list of images as several references of one prompt."""
SEEDS_BATCHED = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline", "FluxKontextPipeline")
"""Pipelines that make several images of one image and prompt, each with a generator of its own. Not GLM-Image's: it
samples all image tokens with the first generator, so that a candidate would depend on its batch."""
_LISTED = ("GlmImagePipeline",)
"""Pipelines that take an image in a list alone, and need the size of the image to make."""
_LISTED_STEP_PX = 32
"""Both sides of those are multiples of it, the width of an image token."""
_OURS = ("image", "prompt", "generator", "num_images_per_prompt", "output_type", "return_dict", "latents", "kwargs")
"""Arguments that are not settings: they decide which images there are, and in which form."""


def list_call_settings(pipeline: Any) -> dict[str, object]:
    """List the arguments of a pipeline's call that are settings, with their defaults.

    Args:
        pipeline: Of diffusers, or its class.
    """
    parameters = signature(pipeline.__call__).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in _OURS
        and parameter.default is not Parameter.empty
        and not name.startswith("callback")
        and not name.endswith(("_embeds", "_embeds_mask", "_kwargs", "ip_adapter_image", "sigmas", "timesteps"))
    }


def check_call_settings(pipeline: Any, name: str, settings: Collection[str], table: str = "") -> None:
    """Check that a pipeline's call takes settings.

    Args:
        pipeline: Of diffusers, or its class.
        name: That of the class.
        settings: Names.
        table: Recipe's table that they are in, with its dot.

    Raises:
        InputError: One is no argument of the call, or one that is not a setting.
    """
    allowed = list_call_settings(pipeline)
    if unknown := [key for key in settings if key not in allowed]:
        raise InputError(
            f"{table}settings.{unknown[0]}: {name} takes no such argument; expected one of {', '.join(sorted(allowed))}"
        )


class StepMeter:
    """Report the denoising steps of all images that are asked for, whatever batches they are made in."""

    def __init__(self, on_progress: OnSamples | None, num_images: int) -> None:
        self._on_progress, self._num_images = on_progress, num_images
        self._num_before = self._num_batch = 0
        self._steps = 1

    def begin(self, num_before: int, num_batch: int) -> None:
        """Begin a call.

        Args:
            num_before: Images that are made already.
            num_batch: Images of the call.
        """
        self._num_before, self._num_batch = num_before, num_batch

    def report(self, num_done: int, steps: int) -> None:
        """Report a step of the call.

        Args:
            num_done: Steps of the call that are done.
            steps: Their number.
        """
        self._steps = steps
        if self._on_progress is not None:
            self._on_progress(self._num_before * steps + self._num_batch * num_done, self._num_images * steps)

    def finish(self) -> None:
        """Report the end of the call: a pipeline may have no callback."""
        self.report(self._steps, self._steps)


def call_pipeline(
    pipeline: Any,
    settings: Mapping[str, Setting],
    images: Sequence[Image.Image],
    actions: Sequence[str],
    seeds: Sequence[int],
    *,
    meter: StepMeter,
) -> list[Pixels | SampleFailure]:
    """Make one image of each source in one call.

    Args:
        pipeline: Of diffusers.
        settings: Arguments of its call.
        images: Sources; of pipelines of :data:`SEEDS_BATCHED` one and the same, of others several only where the
            pipeline is in :data:`BATCHED`.
        actions: As many.
        seeds: As many.
        meter: Its call has begun.

    Returns:
        An image for each, or why there is none.

    Raises:
        InputError: The pipeline cannot be called so, or gives another number of images.
    """
    name = type(pipeline).__name__
    arguments = _list_arguments(name, settings, images, actions, seeds)
    # Pipelines of before 2024 have none: their progress is that of calls.
    has_callback = "callback_on_step_end" in signature(pipeline.__call__).parameters
    if has_callback:
        arguments["callback_on_step_end"] = _build_callback(meter)
    # The library's own exceptions become one line; those of the listener stay what they are.
    with _own_noise(pipeline, seeds[0]), _passing_on(), refusing(f"{name} with settings {dict(settings)}"):
        output = pipeline(**arguments, output_type="pil")
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
        edited = [np.array(image.convert("RGB")) for image in output.images]
    if len(edited) != len(images):
        raise InputError(f"{name} gave {len(edited)} images for {len(images)}; give settings that make one each")
    meter.finish()
    return [_check_image(image, bool(flag)) for image, flag in zip(edited, flags, strict=True)]


def _list_arguments(
    name: str,
    settings: Mapping[str, Setting],
    images: Sequence[Image.Image],
    actions: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    # On the CPU: the noise is the same on every device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    # Not as lists of one: most editors take lists as several references.
    arguments: dict[str, Any] = {"image": images[0], "prompt": actions[0], "generator": generators[0]}
    if name in _LISTED:
        width_px, height_px = (side // _LISTED_STEP_PX * _LISTED_STEP_PX for side in images[0].size)
        arguments |= {"image": [images[0]], "width": width_px, "height": height_px}
    # After what the class needs, so that a size in the settings counts.
    arguments |= settings
    if len(images) > 1 and name in SEEDS_BATCHED:
        arguments |= {"generator": generators, "num_images_per_prompt": len(images)}
    elif len(images) > 1:
        arguments |= {"image": list(images), "prompt": list(actions), "generator": generators}
        # One for each prompt: the pipelines refuse another type than that of the prompts.
        negatives = {key: text for key, text in settings.items() if key.startswith("negative_prompt")}
        arguments |= {key: [text] * len(images) for key, text in negatives.items()}
    return arguments


class _ListenerError(BaseException):
    """Carries an exception of a listener through a library that would take it for its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@contextmanager
def _passing_on() -> Iterator[None]:
    try:
        yield
    except _ListenerError as carrier:
        raise carrier.error from None


def _build_callback(meter: StepMeter) -> Callback:
    def report(pipeline: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        try:
            # Schedulers of second order make more steps than the setting says.
            meter.report(step + 1, getattr(pipeline, "num_timesteps", None) or step + 1)
        except Exception as error:  # whatever the caller's listener raises
            raise _ListenerError(error) from error
        return tensors

    return report


@contextmanager
def _own_noise(pipeline: Any, seed: int) -> Iterator[None]:
    """Keep a call from the process's random numbers: some pipelines take or seed those beside their generators."""
    device = getattr(pipeline, "device", None)
    cuda = [device] if isinstance(device, torch.device) and device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def _check_image(image: Pixels, is_flagged: bool) -> Pixels | SampleFailure:
    # The checker hands out a black image, which would be scored as a prediction.
    if is_flagged:
        return SampleFailure("safety_checker", "the pipeline's safety checker withheld the image")
    if not image.any():
        return SampleFailure("black_image", "every pixel is black, as after NaN in half precision")
    return image
