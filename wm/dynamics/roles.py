"""Load both roles for one device: a forward and an inverse model, over one copy of their base's weights or two.

``merged``: each role's adapter is merged into weights of its own. Fast, and two models' worth of memory.
``shared``: one base in memory, each role's low-rank adapters applied beside it, batch by batch. What both roles need of
the base, its copies for quick products among it, is there once; a pass costs two thin products more a matrix. Only
adapters of one base can share it: a fully fine-tuned model has weights of its own.

Answers of the two agree up to rounding: ``(W + BA) x`` against ``W x + B (A x)``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.checkpoints import base_of, load_model
from wm.models.manifest import is_adapter, model_folder
from wm.models.sharing import check_shareable, held_bytes
from wm.models.vlm import UnifiedVLM
from wm.sampling.model_runner import ModelRunner
from wm.sampling.runners import build_model_runner

BaseSharing: TypeAlias = Literal["merged", "shared"]
"""How two roles hold their base, as the module's text explains."""


@dataclass(frozen=True)
class Role:
    """A model and its runner, built once and used for every call."""

    model: UnifiedVLM
    runner: ModelRunner

    def weights(self) -> Iterator[Tensor]:
        """Iterate over the tensors of weights that the two hold; some come more than once."""
        module = self.model.module
        return chain(module.parameters(), module.buffers(), self.runner.weights())


@dataclass(frozen=True)
class Roles:
    """Forward and inverse dynamics."""

    fdm: Role
    idm: Role

    def num_bytes(self) -> int:
        """Return the bytes of all weights; what both roles hold counts once."""
        return held_bytes(chain(self.fdm.weights(), self.idm.weights()))


def load_role(
    path: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    rows: int = 8,
    over: Role | None = None,
) -> Role:
    """Load one model; an adapter is merged into the weights, so that there is no second copy of them.

    Args:
        path: A full model or an adapter.
        base: Base of an adapter; the one that its manifest names without it.
        device: Where the weights go.
        dtype: Their type.
        rows: How many token rows a pass usually has (a hint).
        over: The bare base, whose weights are shared instead; ``device`` and ``dtype`` are then its own.

    Raises:
        InputError: As :func:`wm.models.load_model`.
    """
    # Beside the base: its packed copies serve this role too.
    if over is not None:
        model = load_model(path, base=base, over=over.model)
        return Role(model, build_model_runner(model, rows=rows, merge=False, beside=over.runner))
    # Merged: a pass then costs what the bare base costs.
    model = load_model(path, base=base, device=device, dtype=dtype, merge=True)
    return Role(model, build_model_runner(model, rows=rows))


def load_roles(
    fdm: str | Path,
    idm: str | Path,
    *,
    base_sharing: BaseSharing = "merged",
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    rows: int = 8,
) -> Roles:
    """Load both roles from their folders, each a full model or an adapter. They may have two codecs, of which then each
    reads pixels (:mod:`wm.dynamics.pairs`).

    Args:
        fdm: The forward model.
        idm: The inverse model.
        base_sharing: How they hold their base. With ``shared`` both must be adapters of one base, or that base itself.
        base: Base of those that are adapters; the one that the manifest names without it.
        device: Where the weights go.
        dtype: Their type.
        rows: How many token rows a pass usually has (a hint).

    Raises:
        InputError: For models that cannot share a base, before weights are read.
    """
    # Refused before any weights are read: loading takes minutes.
    over = None
    if base_sharing == "shared":
        over = load_role(find_shared_base(fdm, idm, base), device=device, dtype=dtype, rows=rows)
    roles = [
        load_role(path, base=_base_for(path, base), device=device, dtype=dtype, rows=rows, over=over)
        for path in (fdm, idm)
    ]
    return Roles(*roles)


def find_shared_base(fdm: str | Path, idm: str | Path, base: str | Path | None = None) -> Path:
    """Find the folder of the base whose weights both roles can share; loads nothing.

    Args:
        fdm: The forward model.
        idm: The inverse model.
        base: Base of those that are adapters; the one that the manifest names without it.

    Raises:
        InputError: For models of two bases, and for adapters that change their base.
    """
    # 1. One base: a full model is its own.
    bases = {name: base_of(path, _base_for(path, base)) for name, path in (("fdm", fdm), ("idm", idm))}
    (folder, first), (_, second) = bases["fdm"], bases["idm"]
    if first != second:
        parts = [
            f"{name} {path} is " + ("an adapter of " if where != model_folder(path) else "a full model: ") + base_id
            for (name, (where, base_id)), path in zip(bases.items(), (fdm, idm), strict=True)
        ]
        raise InputError(f"sharing weights needs both roles over one base, but {' and '.join(parts)}")
    # 2. Nothing but low-rank parts beside it: what is shared must not change.
    for path in (fdm, idm):
        if is_adapter(path):
            check_shareable(model_folder(path))
    return folder


def _base_for(path: str | Path, base: str | Path | None) -> str | Path | None:
    """Return the base of an adapter, None for a full model."""
    return base if is_adapter(path) else None
