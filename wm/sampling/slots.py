"""Lay out the tokens of an image: its codes, and in some families an end of each row but the last.

To the engine a row end is one more code, the number after the codebook's last: it is never sampled, its slots always
hold it, and it is left out of the results. L slots are N codes and the row ends between them.
"""

import torch
from torch import Tensor

from wm.models.vlm import UnifiedVLM


class Slots:
    """The slots of one family's images. ``count``: L. ``rows``: vocabulary id of each code, then of the row end."""

    def __init__(self, vlm: UnifiedVLM) -> None:
        self.row_end = len(vlm.image_rows)
        line = vlm.row_tokens or vlm.tokens_per_image
        ends = (vlm.tokens_per_image - 1) // line
        self.count = vlm.tokens_per_image + ends
        # The row end is the code after the last, so that one table maps codes and row ends to the vocabulary.
        self.rows = vlm.image_rows
        if ends:
            self.rows = torch.cat((vlm.image_rows, vlm.image_rows.new_tensor([vlm.row_end_id])))
        # An end after each line but the last, which the family's closing tokens end.
        is_end = (torch.arange(self.count) + 1) % (line + 1) == 0 if ends else torch.zeros(self.count, dtype=torch.bool)
        self._is_end: list[bool] = is_end.tolist()
        self._code_positions = (~is_end).nonzero().flatten()
        self.is_end_L = is_end.to(vlm.device)

    def spread(self, values_N: Tensor, fill: float) -> Tensor:
        """Spread (..., N) over slots (..., L), with ``fill`` at row ends.

        Args:
            values_N: One value for each code (..., N).
            fill: Value of the row ends.
        """
        if self.count == values_N.shape[-1]:
            return values_N
        spread = values_N.new_full((*values_N.shape[:-1], self.count), fill)
        spread[..., self._code_positions.to(values_N.device)] = values_N
        return spread

    def codes(self, values_L: Tensor) -> Tensor:
        """Take the codes from the first l slots (..., l)."""
        # No copy where there are no ends among them.
        positions = self._code_positions[self._code_positions < values_L.shape[-1]]
        return values_L if len(positions) == values_L.shape[-1] else values_L[..., positions.to(values_L.device)]

    def settle(self, codes_R: Tensor, position: int) -> Tensor:
        """Return what fills a slot: the sampled codes, or the row end.

        Args:
            codes_R: Sampled codes.
            position: The slot, the same for all.
        """
        return torch.full_like(codes_R, self.row_end) if self._is_end[position] else codes_R

    def settle_at(self, codes_RS: Tensor, positions_RS: Tensor) -> Tensor:
        """Do as :meth:`settle`, with a position for each code.

        Args:
            codes_RS: Sampled codes.
            positions_RS: int64, slots.
        """
        # Families without row ends pay nothing for them.
        if self.count == len(self._code_positions):
            return codes_RS
        return codes_RS.masked_fill(self.is_end_L[positions_RS], self.row_end)


def count_line_slots(vlm: UnifiedVLM) -> int:
    """Count the slots of one line of the image, its end among them."""
    return vlm.row_tokens + 1 if vlm.row_tokens else max(1, round(vlm.tokens_per_image**0.5))
