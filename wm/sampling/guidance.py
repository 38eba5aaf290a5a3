"""Decode candidates of several sources on one cache, with or without classifier-free guidance.

Guidance has two scales, as in Chameleon's release: three rows a candidate, one after the full prompt, one after the
prompt without its text, one after nothing; their logits are mixed as in InstructPix2Pix (arXiv 2211.09800, equation
3; the release's ``InBatchInstructCFGLogitsProcessor``):
``none + image scale x (image - none) + text scale x (full - image)``.
What replaces a text or an image that is left out is the family's to say
(:meth:`wm.models.UnifiedVLM.unconditional_prefixes`): each was trained with another prompt for it.

Shape suffixes: C conditions (3, or 1 without guidance), P sources, K candidates of each, R = P x K rows, S new tokens
a row, V image codes, H hidden width.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wm.models.vlm import UnifiedVLM
from wm.sampling.checks import check_finite
from wm.sampling.model_runner import ModelRunner, PrefixCache, StepInput
from wm.sampling.noise import Sampling
from wm.sampling.slots import Slots

CONDITIONS = 3


def count_conditions(sampling: Sampling) -> int:
    """Count the rows of each candidate: 3 with guidance."""
    return CONDITIONS if sampling.is_guided else 1


def guided_prefixes(vlm: UnifiedVLM, prefixes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Put the prompts of guidance behind the prefixes: all without their text, then all without anything.

    Args:
        vlm: The model, whose family says what replaces a text or an image.
        prefixes: Vocabulary ids, one or more each.
    """
    vlm.check_guidance()
    image, none = zip(*(vlm.unconditional_prefixes(prefix) for prefix in prefixes), strict=True)
    return [*map(list, prefixes), *image, *none]


def mix_logits(logits_CRV: Tensor, text_scale: float, image_scale: float) -> Tensor:
    """Mix the logits of (full prompt, without text, without anything), stacked, to (R, V).

    Args:
        logits_CRV: One (R, V) for each condition, in the order of :func:`guided_prefixes`.
        text_scale: Scale of what the text adds to the image.
        image_scale: Scale of what the image adds to nothing.
    """
    full_RV, image_RV, none_RV = logits_CRV.unbind(0)
    return none_RV + image_scale * (image_RV - none_RV) + text_scale * (full_RV - image_RV)


class Candidates:
    """The sources' prefixes, read once, and K candidates of each that grow from them.

    Args:
        vlm: The model; its family says what the prompts of guidance are.
        runner: Runs the model.
        sampling: Scales of guidance; nothing else of it is used.
        prefixes: Vocabulary ids, one or more each.
    """

    def __init__(
        self, vlm: UnifiedVLM, runner: ModelRunner, sampling: Sampling, prefixes: Sequence[Sequence[int]]
    ) -> None:
        self.runner, self._sampling, self._rows_of_code = runner, sampling, Slots(vlm).rows
        self.conditions = count_conditions(sampling)
        if sampling.is_guided:
            prefixes = guided_prefixes(vlm, prefixes)
        self._all, self._last_PH = runner.prefill(prefixes)
        # Checked once a prompt, where the host waits anyway; in every step it would stall the device.
        check_finite(self._last_PH, "hidden states of the prompt", vlm)
        self._prefix = self._all
        # No rows yet: :meth:`start` reserves them, and static steps have their own.
        self._rows = runner.reserve(0, 0)

    def start(self, each: int, capacity: int, sources: Sequence[int] | None = None) -> Tensor:
        """Begin anew with ``each`` candidates a source of ``capacity`` tokens each; return the first token's logits
        (R, V).

        Args:
            each: Candidates of each source, K.
            capacity: Tokens of each candidate.
            sources: Indices of the sources that get candidates; all without.
        """
        self._prefix, last_PH = self._all, self._last_PH
        if sources is not None:
            num_sources = self._all.count // self.conditions
            index = [c * num_sources + source for c in range(self.conditions) for source in sources]
            self._prefix, last_PH = self._all.select(index), last_PH[index]
        self._rows = self.runner.reserve(self._prefix.count * each, capacity)
        return self.build_head()(last_PH.repeat_interleave(each, dim=0))

    def stop(self) -> None:
        """Free the rows; :meth:`start` reserves others."""
        self._prefix, self._rows = self._all, self.runner.reserve(0, 0)

    @property
    def prefix(self) -> PrefixCache:
        """Keys and values of all sources, under all conditions."""
        return self._all

    def start_logits(self, each: int) -> Tensor:
        """Compute the logits (R, V) of the first token of ``each`` candidates a source."""
        return self.build_head()(self._last_PH.repeat_interleave(each, dim=0))

    def extend(self, codes_RS: Tensor, positions: int | Tensor, filled: int) -> Tensor:
        """Compute the logits (R, S, V) after each of S codes, the first of which belongs to ``positions``; see
        :meth:`wm.sampling.model_runner.ModelRunner.extend`.

        Args:
            codes_RS: Codes, row ends among them.
            positions: Position of the first code in its row, the same for all, or int64 (R,).
            filled: Length of the longest row after this.
        """
        ids = self._rows_of_code[codes_RS].repeat(self.conditions, 1)
        # All conditions grow by the same codes: guidance mixes their logits, not their images.
        if isinstance(positions, Tensor):
            positions = positions.repeat(self.conditions)
        hidden = self.runner.extend(ids, self._prefix, self._rows, positions, filled)
        return self.build_head()(hidden.flatten(0, 1)).view(*codes_RS.shape, -1)

    @property
    def error_gain(self) -> float:
        """By how much mixing enlarges errors of the conditions' logits that are independent: 1 without guidance."""
        text, image = self._sampling.guidance_scale, self._sampling.image_guidance_scale
        # The coefficients of :func:`mix_logits`; variances add by their squares.
        return math.hypot(1 - image, image - text, text) if self.conditions > 1 else 1.0

    def build_input(self, code_R: Tensor, position: int) -> StepInput:
        """Build the part of one code a row in a pass of several batches.

        Args:
            code_R: Codes, row ends among them.
            position: Their position, the same in all rows.
        """
        return StepInput(self._rows_of_code[code_R].repeat(self.conditions), self._prefix, self._rows, position)

    def keep(self, sources: Sequence[int], rows: Sequence[int]) -> None:
        """Drop all but these sources and rows, equally many of each source, in this order.

        Args:
            sources: Indices of the sources that stay.
            rows: Indices of the rows that stay, those of a source neighbours.
        """
        num_sources, num_rows = self._prefix.count // self.conditions, self._rows.num_rows // self.conditions
        conditions = range(self.conditions)
        # Prefixes are large and mostly stay: copied only when a source leaves.
        if list(sources) != list(range(num_sources)):
            self._prefix = self._prefix.select([c * num_sources + source for c in conditions for source in sources])
        # Rows go condition by condition, as the prefixes do.
        index = torch.tensor([c * num_rows + row for c in conditions for row in rows], device=self.runner.device)
        self._rows = self._rows.select(index)

    def build_head(self) -> Callable[[Tensor], Tensor]:
        """Build the map of hidden states (C x R, H) to logits (R, V), conditions mixed; it refers to no source."""
        runner, mix_conditions = self.runner, _build_mixer(self.conditions, self._sampling)
        return lambda hidden_XH: mix_conditions(runner.image_logits(hidden_XH))

    def mix(self, logits_XV: Tensor) -> Tensor:
        """Mix the conditions of logits (C x R, V) to (R, V)."""
        return _build_mixer(self.conditions, self._sampling)(logits_XV)


def _build_mixer(conditions: int, sampling: Sampling) -> Callable[[Tensor], Tensor]:
    scales = sampling.guidance_scale, sampling.image_guidance_scale
    # Nothing to mix: the scales play no part.
    if conditions == 1:
        return lambda logits_XV: logits_XV
    return lambda logits_XV: mix_logits(logits_XV.view(conditions, -1, logits_XV.shape[-1]), *scales)
