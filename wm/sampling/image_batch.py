"""Decode a batch of images: candidates of several sources under the same settings, at one position.

Shape suffixes: B sources, K candidates, R = B x K rows, X = rows of all conditions, L slots of an image, l those
filled, V image codes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wm.sampling.decoding import decode_step
from wm.sampling.guidance import Candidates
from wm.sampling.kernels.cuda_graphs import build_static_steps
from wm.sampling.model_runner import StepInput
from wm.sampling.noise import Sampling, sample_tokens
from wm.sampling.slots import Slots


class ImageBatch:
    """Images that grow together, a batch of :func:`~wm.sampling.decoding.decode_step`.

    Args:
        candidates: The prefixes, read.
        noise_RN: float64 in [0, 1), of each code.
        each: Candidates of each prefix.
        sampling: How a code is sampled.
        slots: The family's image layout.
    """

    def __init__(self, candidates: Candidates, noise_RN: Tensor, each: int, sampling: Sampling, slots: Slots) -> None:
        self._candidates, self._sampling, self._slots = candidates, sampling, slots
        self.each = each
        noise_RL = slots.spread(noise_RN.to(candidates.runner.device), 0)
        # A step's noise is side by side in memory.
        self._noise_LR = noise_RL.T.contiguous()
        self.codes_RL = torch.zeros(noise_RL.shape, dtype=torch.int64, device=noise_RL.device)
        """What fills the slots, up to ``position``."""
        self.position = 0
        self._logits_RV = torch.zeros(0)

    @property
    def num_rows(self) -> int:
        """Rows of a pass, those of guidance among them."""
        return len(self.codes_RL) * self._candidates.conditions

    @property
    def is_complete(self) -> bool:
        """Return whether all slots are filled."""
        return self.position == self._slots.count

    def copy_codes(self) -> Tensor:
        """Copy the codes so far, without row ends: int64 (R, n) on the CPU."""
        return self._slots.codes(self.codes_RL[:, : self.position]).to("cpu", copy=True)

    def start(self) -> None:
        """Reserve the rows and compute the logits of the first codes."""
        self._logits_RV = self._candidates.start(self.each, self._slots.count)

    @property
    def pending(self) -> StepInput | None:
        """The last codes; None before the first."""
        if not self.position:
            return None
        return self._candidates.build_input(self.codes_RL[:, self.position - 1], self.position - 1)

    def set_logits(self, logits_XV: Tensor) -> None:
        """Take the logits of the next codes, of all conditions."""
        self._logits_RV = self._candidates.mix(logits_XV)

    def sample(self) -> Tensor:
        """Sample the next code of each row, int64 (R,); the row end where it is due."""
        # Sampled at row ends as well: a step then has one shape.
        code_R = sample_tokens(self._logits_RV, self._noise_LR[self.position], self._sampling)
        return self._slots.settle(code_R, self.position)

    def append(self, sample: Tensor) -> None:
        """Fill the next slot of each row."""
        self.codes_RL[:, self.position] = sample
        self.position += 1

    def keep(self, sources: Sequence[int]) -> None:
        """Drop all sources but these (indices, in this order)."""
        # Rows of a source are neighbours.
        rows = [source * self.each + row for source in sources for row in range(self.each)]
        index = torch.tensor(rows, device=self.codes_RL.device)
        self._candidates.keep(sources, rows)
        self._noise_LR, self.codes_RL = self._noise_LR[:, index], self.codes_RL[index]
        self._logits_RV = self._logits_RV[index]

    def decode(self, line: int) -> Iterator[None]:
        """Decode to the end, alone; pause after every ``line`` slots and at the end.

        By recorded or static steps where the runner has them, else step by step.
        """
        runner = self._candidates.runner
        steps = build_static_steps(self._candidates, self._noise_LR, self.each, self._sampling, self._slots)
        if steps is None:
            self.start()
        else:
            self.codes_RL = steps.codes_RL
        length = self._slots.count
        while self.position < length:
            if steps is None:
                decode_step(runner, [self], runner.image_logits)
            else:
                steps.advance(self.position)
                self.position += 1
            # Put back at the end alone, and without these codes: an image that is left half-way must not lend its
            # buffers to another.
            if steps is not None and self.position == length:
                self.codes_RL = self.codes_RL.clone()
                runner.static_steps = steps
            if self.position % line == 0 or self.position == length:
                yield
