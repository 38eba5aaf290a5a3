"""Train the rows of embeddings and head that belong to image codes beside a LoRA adapter (PEFT's trainable tokens).

A vocabulary that was given image codes has rows for them that low-rank adapters of the layers cannot reach. They are
kept and written apart from the frozen matrix: 8,192 rows of Liquid's 264,192.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM

if TYPE_CHECKING:
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer


def own_row_targets(vlm: UnifiedVLM) -> dict[str, list[int]]:
    """Return PEFT's ``trainable_token_indices``. The head of tied embeddings follows them.

    Args:
        vlm: The model, before it gets an adapter.

    Returns:
        Module name to vocabulary ids of the image codes.

    Raises:
        InputError: The image codes of the family are no rows of the vocabulary.
    """
    is_plain = type(vlm).head is UnifiedVLM.head and type(vlm).body is UnifiedVLM.body
    if not is_plain:
        raise InputError(
            f"lora.train_image_rows: image codes of family {vlm.family!r} are no rows of its vocabulary, expected a "
            "family that embeds them as words; train the complete model (lora.enabled=false) instead"
        )
    rows: list[int] = vlm.image_rows.tolist()
    names = {module: name for name, module in vlm.inner.named_modules()}
    targets = {names[vlm.decoder.embed_tokens]: rows}
    if vlm.inner.lm_head.weight is not vlm.decoder.embed_tokens.weight:
        targets[names[vlm.inner.lm_head]] = rows
    return targets


def look_up_rows(vlm: UnifiedVLM) -> None:
    """Make embeddings with trainable rows look these up, where PEFT copies the complete matrix at every step."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    for module in vlm.module.modules():
        # Not the head: the loss reads its own rows without calling it.
        if type(module) is TrainableTokensLayer and isinstance(module.base_layer, nn.Embedding):
            module.__class__ = _looked_up_class(TrainableTokensLayer)


def _looked_up_class(former: type["TrainableTokensLayer"]) -> type["TrainableTokensLayer"]:
    def forward(self: "TrainableTokensLayer", ids: Tensor, *args: object, **kwargs: object) -> Tensor:
        # Anything but one plain adapter is left to PEFT.
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1:
            return former.forward(self, ids, *args, **kwargs)  # type: ignore[no-any-return]
        # PEFT would copy the complete matrix with the trained rows in it; here they replace what was looked up.
        own_QH = self.trainable_tokens_delta[active[0]]
        base_BTH = self.base_layer(ids)
        position_V = _positions(self, active[0], ids.device)
        position_BT = position_V[ids]
        scale = self._get_embed_scale()
        looked_up_BTH = torch.nn.functional.embedding(position_BT.clamp_min(0), own_QH).to(base_BTH.dtype)
        looked_up_BTH = looked_up_BTH if scale is None else looked_up_BTH * scale.to(base_BTH.dtype)
        return torch.where((position_BT >= 0)[..., None], looked_up_BTH, base_BTH)

    return type(former.__name__, (former,), {"forward": forward, "__module__": former.__module__})


def _positions(layer: "TrainableTokensLayer", adapter: str, device: torch.device) -> Tensor:
    """Return int64 (vocabulary,): the position of an id among the trained rows, or -1."""
    positions: Tensor | None = vars(layer).get("_wm_positions")
    if positions is None or positions.device != device:
        ids = torch.tensor(layer.token_indices[adapter], device=device)
        # Made once: from then on a lookup of ids on their device.
        positions = torch.full((layer.base_layer.num_embeddings,), -1, dtype=torch.int64, device=device)
        positions[ids] = torch.arange(len(ids), device=device)
        vars(layer)["_wm_positions"] = positions
    return positions
