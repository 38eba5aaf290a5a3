"""Image editors of diffusers as forward models: the image before and an action in, K images after it out.

What they make has the frame of their source, whatever size a pipeline works in: see
:func:`wm.dynamics.editor.fit_to_source`.
Not known here: how a pipeline is called, and what verifies its images.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from wm.dynamics.editor import Fit, ImageEditor, candidate_seed, fit_to_source
from wm.dynamics.editor_calls import BATCHED, Setting, check_call_settings
from wm.dynamics.observation import Observation, pixels_of
from wm.dynamics.protocols import OnSamples, SampleFailure, Samples
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.settings import Search
from wm.errors import InputError
from wm.images import Pixels
from wm.models.kinds import ModelKind
from wm.models.manifest import fetch_model, model_folder
from wm.models.pipeline_folders import fingerprint_pipeline, name_pipeline, name_precision
from wm.models.pipelines import find_editor_class, find_scheduler_class, load_pipeline, read_parts
from wm.models.remote import is_in_bucket
from wm.sampling.noise import Sampling

BATCH_SIZE = 8
"""Images of a call where the pipeline makes several and nothing else was asked for: the default number of candidates.
Fewer where memory does not suffice."""
AUTHORS_RESOLUTION = 512
"""Pixels of the long side that InstructPix2Pix's authors scale to; other editors scale by themselves."""


class EditorArguments(TypedDict):
    """What :func:`load_editor_forward` takes beside an editor's folder."""

    pipeline: str
    settings: Mapping[str, Setting]
    scheduler: str
    resolution: int | None
    fit: Fit
    safety_checker: bool


@dataclass(frozen=True)
class EditorForward:
    """An image editor as :class:`wm.dynamics.protocols.ForwardModel`.

    Attributes:
        editor: Its pipeline and settings.
        model_id: Name for records.
        kind: ``editor``.
        on_progress: Called with the denoising steps that are done of a call of :meth:`sample`, and their number, where
            the caller has no other listener.
    """

    editor: ImageEditor
    model_id: str = ""
    kind: ModelKind = "editor"
    on_progress: OnSamples | None = None

    def check_action(self, action: str) -> None:
        """Check that the pipeline reads all of an action; see :meth:`wm.dynamics.editor.ImageEditor.check_action`.

        Args:
            action: A text.
        """
        self.editor.check_action(action)

    def check_search(self, search: Search, sampling: Sampling) -> None:
        """Refuse drafts and any way of sampling codes; see :func:`check_editor_search`.

        Args:
            search: How a prediction is searched for.
            sampling: How codes would be sampled.
        """
        check_editor_search(search, sampling)

    def sample(
        self,
        sources: Sequence[Observation],
        actions: Sequence[str],
        *,
        candidates: range,
        sampling: Sampling,
        seeds: Sequence[int],
        num_draft_tokens: int = 0,
        batch_size: int | None = None,
        on_progress: OnSamples | None = None,
    ) -> Samples:
        """Edit each source, once a candidate. Neither batch nor order changes one, up to rounding.

        Args:
            sources: Images before.
            actions: As many.
            candidates: Numbers of the candidates.
            sampling: Its defaults; see :meth:`check_search`.
            seeds: One a row.
            num_draft_tokens: 0.
            batch_size: Images of a call at most; :data:`BATCH_SIZE` or that of the editor without it. A pipeline that
                makes one a call makes one.
            on_progress: Called with the denoising steps that are done, of all images, and their number.

        Returns:
            Images of their sources' size, or why there is none.

        Raises:
            InputError: A setting is none of an editor, the pipeline cannot be called, or gives fewer images or images
                of another aspect.
        """
        check_editor_search(Search(num_draft_tokens=num_draft_tokens), sampling)
        check_equal_lengths(sources=len(sources), actions=len(actions), seeds=len(seeds))
        # Each source as one array: rows that share it go into one call.
        images = pixels_of(sources)
        rows = [(row, candidate) for row in range(len(sources)) for candidate in candidates]
        results = self.editor.edit(
            [images[row] for row, _ in rows],
            [actions[row] for row, _ in rows],
            [candidate_seed(seeds[row], "", candidate) for row, candidate in rows],
            batch_size=batch_size,
            on_progress=on_progress or self.on_progress,
        )
        # Failures stay in their places: a candidate's number is its seed's.
        samples: list[list[Observation | SampleFailure]] = [[] for _ in sources]
        for (row, _), result in zip(rows, results, strict=True):
            samples[row].append(result if isinstance(result, SampleFailure) else self._observe(result, images[row]))
        return Samples(samples)

    def _observe(self, image: Pixels, source: Pixels) -> Observation:
        editor_input = self.editor.fit_source(source)
        return Observation.from_pixels(fit_to_source(image, source, editor_input, self.editor.fit))


def check_editor_search(search: Search, sampling: Sampling) -> None:
    """Raise :class:`InputError` for settings that editors do not have.

    Args:
        search: How a prediction is searched for.
        sampling: How codes would be sampled.
    """
    if search.num_draft_tokens:
        raise InputError(
            f"search.num_draft_tokens = {search.num_draft_tokens}: an image editor has no tokens to draft; expected 0"
        )
    # Not ignored in silence: a temperature would be believed to have an effect.
    defaults = Sampling()
    for name in Sampling.model_fields:
        if getattr(sampling, name) != getattr(defaults, name):
            raise InputError(
                f"sampling.{name} = {getattr(sampling, name)}: it is for models of image codes; an image editor has "
                "settings of its own, such as editor.settings.guidance_scale"
            )


def load_editor_forward(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    pipeline: str = "",
    settings: Mapping[str, Setting] | None = None,
    resolution: int | None = None,
    fit: Fit = "crop",
    scheduler: str = "",
    safety_checker: bool = True,
    batch_size: int | None = None,
) -> EditorForward:
    """Load an image editor as a forward model.

    Args:
        path: A folder in the form of diffusers.
        device: Where the weights go.
        dtype: Their type.
        pipeline: Class of diffusers, which the folder must name too; empty: the one that it names.
        settings: Arguments of the pipeline's call by their own names; its defaults without.
        resolution: Pixels of the long side that sources are scaled to, both sides to multiples of 64; 0: as they are;
            :data:`AUTHORS_RESOLUTION` for InstructPix2Pix and 0 for others without it.
        fit: How what multiples of 64 leave over is treated, see :func:`wm.dynamics.editor.fit_resolution`.
        scheduler: Class of diffusers that replaces the folder's scheduler; empty: the folder's own.
        safety_checker: Load the folder's safety checker, if it has one.
        batch_size: Images of a call at most; :data:`BATCH_SIZE` without it.

    Returns:
        The forward model.

    Raises:
        InputError: As :func:`wm.models.pipelines.load_pipeline`; or a setting is none of the pipeline's call.
    """
    folder = fetch_model(path)
    # The folder's word alone is enough: what it names must be an editor of diffusers.
    class_name = pipeline or name_pipeline(folder)
    loaded = load_pipeline(
        folder, class_name, dtype=name_precision(dtype), device=str(device), scheduler=scheduler,
        safety_checker=safety_checker,
    )  # fmt: skip
    if resolution is None:
        resolution = AUTHORS_RESOLUTION if class_name in BATCHED else 0
    editor = ImageEditor(loaded, settings or {}, resolution, fit=fit)
    if editor.takes_batches or batch_size is not None:
        # Another number than 1 of a pipeline that makes one a call is an error, which says so.
        editor = ImageEditor(loaded, settings or {}, resolution, batch_size or BATCH_SIZE, fit)
    return EditorForward(editor, f"{class_name}-{fingerprint_pipeline(folder, class_name)}")


def check_editor_folder(
    path: str | Path,
    pipeline: str = "",
    *,
    safety_checker: bool = True,
    settings: Collection[str] = (),
    scheduler: str = "",
    table: str = "",
) -> None:
    """Check all of an editor that needs no weights: they take minutes to load.

    Args:
        path: A folder in the form of diffusers.
        pipeline: Class of diffusers; empty: the one that the folder names.
        safety_checker: Whether the folder's safety checker will be loaded.
        settings: Names of the arguments that its call will be given.
        scheduler: Class of diffusers that will replace the folder's scheduler; empty: none.
        table: Recipe's table of these settings, with its dot, for errors.

    Raises:
        InputError: diffusers is not installed; the folder is damaged, names code or no editor; a setting is none of its
            call; or there is no such scheduler.
    """
    folder = model_folder(path)
    class_name = pipeline or name_pipeline(folder)
    # Of a bucket only the index is here: whoever loads the editor fetches its parts, and checks them.
    if not is_in_bucket(folder):
        read_parts(folder, class_name, [] if safety_checker else ["safety_checker"])
    check_call_settings(find_editor_class(class_name), class_name, settings, table)
    if scheduler:
        find_scheduler_class(scheduler)
