"""The one prompt layout. Training labels, scores and sampling prefixes all come from here.

Inverse dynamics:  ``bos boi SOURCE eoi boi TARGET eoi | ACTION eos``
Forward dynamics:  ``bos boi SOURCE eoi ACTION boi | TARGET``
Questions:         ``bos boi IMAGE eoi QUESTION | ANSWER eos``

Nothing is trained on questions: they show what a model of either direction still knows (paper, Table 2).
After ``|`` comes the completion (paper section 3: one triplet, two conditional models).
The begin-of-image token before TARGET belongs to the prompt: sampling starts right after it, and the image
ends by its fixed length, so no end-of-image token is learned.

A family whose images are more than ``boi CODES eoi`` says so by its :class:`ImageFrame`: the tokens before and
after the codes, and which one ends a row of them. Such tokens are fed, neither learned nor sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wm.errors import InputError

Task: TypeAlias = Literal["idm", "fdm"]
"""``idm``: (source, target) to action. ``fdm``: (source, action) to target. Models are trained on one of them."""


class Segment(NamedTuple):
    """A run of vocabulary ids of one kind. ``is_completion``: the part that is learned, scored or sampled."""

    ids: tuple[int, ...]
    is_completion: bool
    is_image: bool


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the structure tokens."""

    bos: int
    eos: int
    pad: int
    boi: int
    eoi: int


@dataclass(frozen=True)
class ImageFrame:
    """The tokens around and between an image's codes, as vocabulary ids."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    row_tokens: int = 0
    """Codes in a row; 0: the codes are one run."""
    row_end: int = -1
    """Comes after every row but the last one, whose end belongs to ``closing``."""

    def prompt_segment(self, ids: Sequence[int]) -> Segment:
        """Build the segment of an image in the prompt, row ends among its codes."""
        return Segment(tuple(flatten(self.completion_segments(ids))), False, True)

    def completion_segments(self, ids: Sequence[int]) -> list[Segment]:
        """Build the segments of an image that is the completion; the row ends between them are no part of it."""
        # An empty image still needs a step of 1.
        step = self.row_tokens or max(1, len(ids))
        segments: list[Segment] = []
        for start in range(0, len(ids), step):
            segments += [_text(self.row_end)] if start else []
            segments.append(Segment(tuple(ids[start : start + step]), True, True))
        return segments


def check_codes(name: str, codes: Sequence[int], tokens_per_image: int, num_codes: int) -> list[int]:
    """Check the codes of an image.

    Args:
        name: Of the image, for errors.
        codes: Codebook ids: a list, or an array or tensor of any kind.
        tokens_per_image: How many there should be.
        num_codes: Codes of the codebook.

    Returns:
        The codes as plain numbers.

    Raises:
        InputError: A wrong number of codes, or one outside the codebook.
    """
    shape: tuple[int, ...]
    # Lists of numbers, as the sampler has them, need no conversion.
    if isinstance(codes, list | tuple) and all(type(code) is int for code in codes):
        values, shape = list(codes), (len(codes),)
    else:
        tensor = torch.as_tensor(codes)
        if tensor.is_floating_point():
            raise InputError(f"{name} image: expected codebook ids, whole numbers, got {tensor.dtype}")
        values, shape = tensor.to(torch.int64).tolist(), tuple(tensor.shape)
    if shape != (tokens_per_image,):
        raise InputError(f"{name} image: expected {tokens_per_image} codes, got shape {shape}")
    # Two passes in C before the search in Python, which errors alone need.
    if min(values) < 0 or max(values) >= num_codes:
        bad = next(code for code in values if not 0 <= code < num_codes)
        raise InputError(f"{name} image: code {bad} is outside the codebook [0, {num_codes})")
    return values


def layout(
    task: Task,
    *,
    special: SpecialIds,
    source: Sequence[int],
    action: Sequence[int] | None,
    target: Sequence[int] | None,
    action_slot_tokens: int = 0,
    frame: ImageFrame | None = None,
) -> list[Segment]:
    """Build a prompt, or prompt and completion, from vocabulary ids.

    Args:
        task: Which image or text is the completion.
        special: The structure tokens.
        source: The source image's codes.
        action: None for ``idm``: the prefix alone.
        target: The target image's codes; None for ``fdm``: the prefix alone.
        action_slot_tokens: Length to which a forward prompt pads a shorter action with ``special.pad``; a longer one
            stays as it is.
        frame: The tokens around an image's codes; None: ``boi CODES eoi``.

    Returns:
        Segments, those of the completion last.

    Raises:
        InputError: The task is unknown, or its prompt lacks a part.
    """
    frame = frame or ImageFrame((special.boi,), (special.eoi,))
    opening = [_text(special.bos, *frame.opening), frame.prompt_segment(source), _text(*frame.closing)]
    if task == "idm":
        if target is None:
            raise InputError("an inverse-dynamics prompt needs the target image")
        prefix = [*opening, _text(*frame.opening), frame.prompt_segment(target), _text(*frame.closing)]
        return prefix if action is None else [*prefix, Segment((*action, special.eos), True, False)]
    if task != "fdm":
        raise InputError(f"unknown task {task!r}; expected 'idm' or 'fdm'")
    if action is None:
        raise InputError("a forward-dynamics prompt needs an action")
    # A fixed distance between source and target, whatever the length of the action.
    padding = (special.pad,) * max(0, action_slot_tokens - len(action))
    prefix = [*opening, _text(*action, *padding, *frame.opening)]
    return prefix if target is None else [*prefix, *frame.completion_segments(target)]


def layout_question(
    *,
    special: SpecialIds,
    image: Sequence[int],
    question: Sequence[int],
    answer: Sequence[int] | None,
    frame: ImageFrame | None = None,
) -> list[Segment]:
    """Build the prompt of a question about one image, or prompt and answer, from vocabulary ids.

    Args:
        special: The structure tokens.
        image: The image's codes.
        question: Of one token at least.
        answer: None: the prefix alone.
        frame: The tokens around an image's codes; None: ``boi CODES eoi``.

    Returns:
        Segments, the answer last.
    """
    frame = frame or ImageFrame((special.boi,), (special.eoi,))
    opening = [_text(special.bos, *frame.opening), frame.prompt_segment(image)]
    prefix = [*opening, _text(*frame.closing, *question)]
    return prefix if answer is None else [*prefix, Segment((*answer, special.eos), True, False)]


def drop_text(prefix: Sequence[int], frame: ImageFrame, num_codes: int, padding: Sequence[int] = ()) -> list[int]:
    """Leave the text out of a forward prompt, as guidance needs it.

    Args:
        prefix: Vocabulary ids of ``bos SOURCE ACTION`` and the opening of the target.
        frame: The tokens around and between an image's codes.
        num_codes: Codes of an image.
        padding: What stays in place of the text: where actions are padded to a fixed length, source and target keep
            their distance.

    Returns:
        ``bos SOURCE``, the padding, and the opening of the target.
    """
    # By length, not by tokens: the text may hold the digits that write an image's size.
    row_ends = (num_codes - 1) // frame.row_tokens if frame.row_tokens else 0
    source_end = 1 + len(frame.opening) + num_codes + row_ends + len(frame.closing)
    return [*prefix[:source_end], *padding, *frame.opening]


def flatten(segments: Sequence[Segment]) -> list[int]:
    """Return all ids of the segments, in order."""
    return [token for segment in segments for token in segment.ids]


def pack(segments_list: Sequence[Sequence[Segment]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pack sequences into one batch, padded on the right.

    Attention is causal, so padding on the right changes nothing before it and no attention mask is needed.

    Args:
        segments_list: A list of segments for each row.
        pad_id: Vocabulary id of the padding.

    Returns:
        ``ids_BT`` int64, ``is_completion_BT`` and ``is_image_BT`` bool (false on padding).

    Raises:
        InputError: There are no sequences.
    """
    if not segments_list:
        raise InputError("cannot pack an empty batch")
    # As long as the longest: the rest of each row stays padding.
    length = max(sum(len(segment.ids) for segment in segments) for segments in segments_list)
    ids_BT = torch.full((len(segments_list), length), pad_id, dtype=torch.int64)
    is_completion_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    is_image_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for row, segments in enumerate(segments_list):
        start = 0
        for segment in segments:
            span = slice(start, start + len(segment.ids))
            ids_BT[row, span] = torch.tensor(segment.ids, dtype=torch.int64)
            is_completion_BT[row, span] = segment.is_completion
            is_image_BT[row, span] = segment.is_image
            start = span.stop
    return ids_BT, is_completion_BT, is_image_BT


def _text(*ids: int) -> Segment:
    return Segment(ids, False, False)
