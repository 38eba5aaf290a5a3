"""Positions of the tokens of a chat with images: one after the other, or in time, height and width.

The Qwen family and others (M-RoPE) give each patch of an image its row and column; the class of transformers itself is
asked where.

Shape suffixes: B rows, T tokens.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor


class PositionFinder:
    """Finds positions as a model's class counts them.

    Args:
        model: Of transformers.
    """

    def __init__(self, model: Any) -> None:
        # Most have it beside the decoder, some on the model itself.
        owners = (model.base_model, model)
        self._rope: Callable[..., tuple[Tensor, Tensor]] | None = next(
            (owner.get_rope_index for owner in owners if hasattr(owner, "get_rope_index")), None
        )
        self._names = signature(self._rope).parameters.keys() if self._rope is not None else set()

    @property
    def has_axes(self) -> bool:
        """Whether positions are in time, height and width."""
        return self._rope is not None

    @property
    def needs_types(self) -> bool:
        """Whether the kind of each token is asked for."""
        return "mm_token_type_ids" in self._names

    def find(
        self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, grids: Sequence[tuple[int, ...] | None]
    ) -> Tensor:
        """Return positions (3, B, T), or (B, T) of a class without axes; those of padding mean nothing.

        Args:
            ids_BT: Token ids, on the CPU.
            mask_BT: 1 for tokens, 0 for padding.
            types_BT: Kind of each token, where :attr:`needs_types`.
            grids: Patches in time, height and width of each image.
        """
        if self._rope is None:
            return (mask_BT.cumsum(1) - 1).clamp(min=0)
        # A class may have axes and a processor that reports no grids.
        sizes = [grid for grid in grids if grid is not None]
        inputs = {
            "input_ids": ids_BT,
            "mm_token_type_ids": types_BT,
            "image_grid_thw": torch.tensor(sizes) if sizes else None,
            "attention_mask": mask_BT,
        }
        # Not every class asks for all of them.
        positions_3BT, _ = self._rope(**{name: inputs[name] for name in self._names & inputs.keys()})
        return positions_3BT
