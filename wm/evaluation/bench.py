"""Hold what all units of an evaluation share, and load the models that they ask. Knows nothing of what is asked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch

from wm.dynamics import BaseSharing, Role, Sampling, load_role
from wm.dynamics.code_models import CodeForward, CodeInverse
from wm.dynamics.loading import load_forward_model
from wm.dynamics.pixel_inverse import load_pixel_inverse
from wm.dynamics.protocols import ForwardModel, InverseModel
from wm.dynamics.verify import NO_GUARD
from wm.dynamics.vlm_scorer import PROMPT, VLMScorer, load_vlm_scorer
from wm.errors import InputError
from wm.evaluation.counterfactuals import Counterfactuals
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.images import ActionCheck, JudgeMany
from wm.evaluation.probe import Scorer
from wm.evaluation.scorers import fdm_scorer, idm_scorer, pixel_scorer
from wm.models import ImageCodec, base_of, read_manifest
from wm.models.kinds import ModelKind
from wm.models.manifest import fetch_model

_MODELS_KEPT = 3


@dataclass(frozen=True)
class Entry:
    """A model to evaluate."""

    name: str
    path: str
    role: Literal["idm", "fdm"]
    label: str  # name in the tables; entries that share it are runs of other training seeds
    run: int = 0  # training seed
    verifier: str = ""  # name of the entry whose IDM verifies this FDM; empty: none
    base: str = ""  # base folder of an adapter
    kind: ModelKind = "codes"  # pixels: an IDM of transformers; editor: an FDM of diffusers
    prompt: str = ""  # question of an IDM that reads pixels; empty: that of this package
    editor: Mapping[str, Any] = field(default_factory=dict)  # of an editor: arguments of load_editor_forward

    @property
    def is_verifier(self) -> bool:
        """Return whether it can score the candidates of a forward model."""
        return self.role == "idm"

    @property
    def has_likelihoods(self) -> bool:
        """Return whether it can be probed: an editor gives images, and no likelihood of one."""
        return self.kind != "editor"

    def takes_margins(self, wish: bool | None) -> bool:
        """Return whether action sensitivity is measured by its verifier.

        Args:
            wish: What was asked for; None: of models without likelihoods alone.
        """
        is_measured = not self.has_likelihoods if wish is None else wish
        return self.role == "fdm" and bool(self.verifier) and is_measured


@dataclass(frozen=True)
class Bench:
    """The held-out set, the codec, the judge, the entries and the settings of an evaluation."""

    held_out: HeldOut
    codec: ImageCodec | None  # None: no model has image codes
    judge_many: JudgeMany | None
    action_is_right: ActionCheck | None
    entries: dict[str, Entry]
    num_candidates: int
    sampling: Sampling
    batch_size: int
    max_new_tokens: int
    device: str
    dtype: torch.dtype = torch.float32
    base_sharing: BaseSharing = "merged"
    num_draft_tokens: int = 0  # codes drafted a pass in speculative sampling; 0: one code a pass
    max_unchanged: float = NO_GUARD  # the copy guard of the choice among candidates
    counterfactuals: Counterfactuals | None = None  # of each triplet an action that contradicts its own

    def load_role(self, name: str) -> Role:
        """Load the model of an entry with image codes and its runner; the last few stay loaded.

        Args:
            name: Of the entry.

        Raises:
            InputError: The model has another codec than the bench.
        """
        entry = self.entries[name]
        role = load_cached_role(entry.path, entry.base, self.device, self.dtype, self.base_sharing)
        if self.codec is None or role.model.codec_id != self.codec.codec_id:
            raise InputError(
                f"{entry.path} speaks codec {role.model.codec_id}, the evaluation's codec is "
                f"{self.codec.codec_id if self.codec else 'none'}"
            )
        return role

    def load_inverse(self, name: str) -> InverseModel:
        """Load the inverse model of an entry, which reads codes or pixels; the last few stay loaded.

        Args:
            name: Of the entry.

        Raises:
            InputError: It cannot be loaded, or has another codec than the bench.
        """
        entry = self.entries[name]
        if entry.kind == "pixels":
            return load_cached_pixels(entry.path, entry.base, self.device, self.dtype, entry.prompt)
        return CodeInverse(self.load_role(name), self.codec)

    def load_forward(self, name: str) -> ForwardModel:
        """Load the forward model of an entry, which makes codes or is an image editor; the last few stay loaded.

        Args:
            name: Of the entry.

        Raises:
            InputError: As :meth:`load_inverse`.
        """
        entry = self.entries[name]
        if entry.kind == "editor":
            return _load_cached_editor(entry.path, self.device, self.dtype, json.dumps(dict(entry.editor)))
        return CodeForward(self.load_role(name), self.codec)

    def load_scorer(self, name: str) -> Scorer:
        """Load the model of an entry as a scorer of the probe."""
        entry = self.entries[name]
        if entry.kind == "pixels":
            return pixel_scorer(self.load_inverse(name), self.held_out, batch_size=self.batch_size)
        role = self.load_role(name)
        build_scorer = idm_scorer if entry.role == "idm" else fdm_scorer
        return build_scorer(role.model, batch_size=self.batch_size, runner=role.runner)


@lru_cache(maxsize=1)
def load_cached_scorer(path: str, device: str, dtype: torch.dtype) -> VLMScorer:
    """Load a model that reads pixels, to be asked questions; the last one stays loaded.

    Args:
        path: Its folder.
        device: Where its weights go.
        dtype: Their type.
    """
    return load_vlm_scorer(fetch_model(path), device=device, dtype=dtype)


@lru_cache(maxsize=1)
def load_cached_pixels(path: str, base: str, device: str, dtype: torch.dtype, prompt: str) -> InverseModel:
    """Load a model that reads pixels as an inverse model; the last one stays loaded.

    Args:
        path: Its folder, full or an adapter.
        base: Base folder of an adapter; empty: the one that its manifest names.
        device: Where its weights go.
        dtype: Their type.
        prompt: The question; empty: that of this package.
    """
    return load_pixel_inverse(path, base=base or None, device=device, dtype=dtype, prompt=prompt or PROMPT)


@lru_cache(maxsize=1)
def _load_cached_editor(path: str, device: str, dtype: torch.dtype, settings: str) -> ForwardModel:
    """Load an image editor; ``settings`` is JSON, so that it can be looked up."""
    return load_forward_model(path, device=device, dtype=dtype, **json.loads(settings))


def load_entry_role(path: str, base: str, device: str, dtype: torch.dtype, base_sharing: BaseSharing) -> Role:
    """Load a model with image codes and its runner.

    Args:
        path: A full model or an adapter.
        base: Base folder of an adapter; empty: the one that its manifest names.
        device: Where the weights go.
        dtype: Their type.
        base_sharing: Whether adapters of one base are applied beside one copy of it.
    """
    manifest = read_manifest(path)
    # Over a shared base only an adapter can be applied; other models have weights of their own.
    alone = base_sharing == "merged" or (manifest is not None and manifest.kind == "full")
    over = None if alone else _load_base(str(fetch_model(base_of(path, base or None)[0]).resolve()), device, dtype)
    return load_role(path, base=base or None, device=device, dtype=dtype, over=over)


@lru_cache(maxsize=1)
def _load_base(path: str, device: str, dtype: torch.dtype) -> Role:
    return load_role(path, device=device, dtype=dtype)


load_cached_role = lru_cache(maxsize=_MODELS_KEPT)(load_entry_role)
"""The same; the last few stay loaded, as those that verify each other do."""
