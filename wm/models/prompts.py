"""The one prompt layout. Training labels, scores and sampling prefixes all come from here.

Inverse dynamics:  ``bos boi SOURCE eoi boi TARGET eoi | ACTION eos``
Forward dynamics:  ``bos boi SOURCE eoi ACTION boi | TARGET``

What stands after ``|`` is the completion (paper section 3: one triplet, two conditional models).
The begin-of-image token before TARGET belongs to the prompt: sampling starts right after it, and the image
ends by its fixed length, so no end-of-image token is learned.

A family whose images are more than ``boi CODES eoi`` says so by its :class:`ImageFrame`: what stands before and
after the codes, and which token ends a row of them. Such tokens are given, neither learned nor sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wm.errors import InputError

Task: TypeAlias = Literal["idm", "fdm"]
"""``idm``: (source, target) to action. ``fdm``: (source, action) to target."""


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
    """What stands around and between an image's codes, as vocabulary ids.

    ``row_end`` comes after every ``row_tokens`` codes but the last ones, whose end belongs to ``closing``; 0:
    the codes are one run.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    row_tokens: int = 0
    row_end: int = -1

    def given(self, ids: Sequence[int]) -> Segment:
        """Return the codes of an image of the prompt, row ends among them."""
        return Segment(tuple(flatten(self.drawn(ids))), False, True)

    def drawn(self, ids: Sequence[int]) -> list[Segment]:
        """Return the codes of a completion; row ends between them are no part of it."""
        step = self.row_tokens or max(1, len(ids))
        segments: list[Segment] = []
        for start in range(0, len(ids), step):
            segments += [_text(self.row_end)] if start else []
            segments.append(Segment(tuple(ids[start : start + step]), True, True))
        return segments


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
    """Segments of a prompt, or of prompt and completion, from vocabulary ids.

    ``action`` may be None for ``idm`` and ``target`` for ``fdm``: then only the prefix is built. With
    ``action_slot_tokens`` > 0 a forward prompt pads a shorter action with ``special.pad`` to that length
    (source and target then keep a constant distance); a longer action stays as it is. Without ``frame`` an
    image is ``boi CODES eoi``.
    """
    frame = frame or ImageFrame((special.boi,), (special.eoi,))
    opening = [_text(special.bos, *frame.opening), frame.given(source), _text(*frame.closing)]
    if task == "idm":
        if target is None:
            raise InputError("an inverse-dynamics prompt needs the target image")
        prefix = [*opening, _text(*frame.opening), frame.given(target), _text(*frame.closing)]
        return prefix if action is None else [*prefix, Segment((*action, special.eos), True, False)]
    if task != "fdm":
        raise InputError(f"unknown task {task!r}; expected 'idm' or 'fdm'")
    if action is None:
        raise InputError("a forward-dynamics prompt needs an action")
    # A fixed distance between source and target, whatever the length of the action.
    padding = (special.pad,) * max(0, action_slot_tokens - len(action))
    prefix = [*opening, _text(*action, *padding, *frame.opening)]
    return prefix if target is None else [*prefix, *frame.drawn(target)]


def flatten(segments: Sequence[Segment]) -> list[int]:
    """All ids of the segments, in order."""
    return [token for segment in segments for token in segment.ids]


def pack(segments_list: Sequence[Sequence[Segment]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """One right-padded batch: ``ids_BT`` int64, ``is_completion_BT`` and ``is_image_BT`` bool (false on
    padding).

    Attention is causal, so padding on the right changes nothing before it and no attention mask is needed.
    """
    if not segments_list:
        raise InputError("cannot pack an empty batch")
    length = max(sum(len(segment.ids) for segment in segments) for segments in segments_list)
    ids_BT = torch.full((len(segments_list), length), pad_id, dtype=torch.int64)
    is_completion_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    is_image_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for row, segments in enumerate(segments_list):
        # Columns are filled segment by segment; what remains is padding.
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
