"""Load a forward and an inverse model of any kinds from their folders, after checking what needs no weights: whether
each can be in its role, and whether the settings are for such models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from wm.dynamics.code_models import CodeForward, CodeInverse
from wm.dynamics.editor_forward import check_editor_folder
from wm.dynamics.editor_settings import EditorSettings
from wm.dynamics.loading import kind_of, load_forward_model, load_inverse_model, name_model
from wm.dynamics.pairs import ModelPair
from wm.dynamics.pixel_check import check_pixel_files
from wm.dynamics.pixel_settings import PixelsSettings
from wm.dynamics.roles import BaseSharing, find_shared_base, load_roles
from wm.errors import InputError
from wm.models.checkpoints import load_codec
from wm.models.codec.codec import ImageCodec
from wm.models.families import FORWARD_ONLY
from wm.models.folder_checks import read_json
from wm.models.kinds import ModelKind
from wm.models.manifest import adapter_base, is_adapter, model_folder, read_adapter_manifest, read_manifest
from wm.models.unreadable import hub_hint


@dataclass(frozen=True)
class PairFolders:
    """Where two models are, and how they are loaded.

    Attributes:
        fdm: Folder of the forward model.
        idm: Folder of the inverse model.
        base: Base of those that are adapters of a unified model; the one that the manifest names without it.
        base_sharing: How two unified models hold their base.
        editor: How the forward model is called, if it is an image editor.
        pixels: How the inverse model is asked, if it reads pixels.
    """

    fdm: str
    idm: str
    base: str | None = None
    base_sharing: BaseSharing = "merged"
    editor: EditorSettings = field(default_factory=EditorSettings)
    pixels: PixelsSettings = field(default_factory=PixelsSettings)

    def check(self) -> None:
        """Check all that needs no weights: what :meth:`check_roles` does, and the contents that loading would refuse.

        Raises:
            InputError: As :meth:`check_roles`; or an editor's folder, call or a chat template cannot be used.
        """
        fdm_kind, idm_kind = self.check_roles()
        if fdm_kind == "editor":
            editor = self.editor
            check_editor_folder(
                self.fdm, editor.pipeline, safety_checker=editor.safety_checker, settings=editor.settings,
                scheduler=editor.scheduler, table="editor.",
            )  # fmt: skip
        if idm_kind == "pixels":
            check_pixel_files(self.idm, self._base_of("idm"), self.pixels.prompt)

    def check_roles(self) -> tuple[ModelKind, ModelKind]:
        """Check by the configurations whether each model can be in its role, and the settings fit both.

        Returns:
            The kinds of the forward and of the inverse model.

        Raises:
            InputError: A model cannot be in its role, was trained for the other, or a setting is for another kind of
                model.
        """
        fdm_kind, idm_kind = kind_of(self.fdm, self._base_of("fdm")), kind_of(self.idm, self._base_of("idm"))
        if fdm_kind == "pixels":
            raise InputError(f"fdm = {self.fdm!r} reads images and makes none; expected a unified model or an editor")
        if idm_kind == "editor":
            raise InputError(f"idm = {self.idm!r} is an image editor: it makes images and says no action")
        for role, folder, kind in (("fdm", self.fdm, fdm_kind), ("idm", self.idm, idm_kind)):
            # An adapter of a model of pixels may be another program's; one of codes has to name its codec.
            needs_manifest = kind == "codes" and is_adapter(folder)
            manifest = read_adapter_manifest(folder) if needs_manifest else read_manifest(folder)
            # The other way round both would load, and predict noise.
            if manifest is not None and manifest.task not in (None, role):
                raise InputError(f"{role} = {folder!r} was trained as {manifest.task}")
        if idm_kind == "codes":
            self._check_reads_codes()
        self._check_sharing(fdm_kind, idm_kind)
        # Settings of a model that there is none of would be without effect.
        if self.base and self.base not in (self._base_of("fdm"), self._base_of("idm")):
            raise InputError(
                f"base = {self.base!r}, but neither fdm nor idm is an adapter of a model with image codes; leave it out"
            )
        if fdm_kind != "editor":
            self.editor.check_unused(self.fdm)
        if idm_kind != "pixels":
            self.pixels.check_unused(self.idm)
        elif self.pixels.base:
            self._check_pixels_base(self.pixels.base)
        return fdm_kind, idm_kind

    def codec_folder(self, role: str) -> str:
        """Return the folder that the codec of a unified model is loaded from.

        Args:
            role: ``fdm`` or ``idm``.
        """
        return str(self._base_of(role) or getattr(self, role))

    def has_other_codec(self, codec: ImageCodec) -> bool:
        """Find by the folders whether the inverse model has another codec than the forward model.

        Args:
            codec: That of the forward model.
        """
        manifest = read_manifest(self.idm)
        codec_id = manifest.codec_id if manifest is not None else load_codec(self.codec_folder("idm")).codec_id
        return codec_id != codec.codec_id

    def load(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        codec: ImageCodec | None = None,
    ) -> ModelPair:
        """Load both models.

        Args:
            device: Where the weights go.
            dtype: Their type.
            codec: Of the forward model; loaded without it.

        Raises:
            InputError: As :meth:`check_roles`; a folder is no such model; or there are two codecs, of which the forward
                model's has no decoder.
        """
        fdm_kind, idm_kind = self.check_roles()
        if fdm_kind == idm_kind == "codes":
            return self._load_codes(codec, device, dtype)
        if fdm_kind != "editor":
            # Before any weights: what the forward model makes has to become pixels.
            codec = codec or load_codec(self.codec_folder("fdm"), device)
            codec.check_decoder()
        editor: Mapping[str, Any] = self.editor.arguments() if fdm_kind == "editor" else {}
        pixels: Mapping[str, Any] = self.pixels.arguments() if idm_kind == "pixels" else {}
        where: Mapping[str, Any] = {"device": device, "dtype": dtype}
        forward = load_forward_model(self.fdm, base=self._base_of("fdm"), codec=codec, **where, **editor)
        inverse = load_inverse_model(self.idm, base=self._base_of("idm"), **where, **pixels)
        return ModelPair(forward, inverse)

    def _base_of(self, role: str) -> str | None:
        """Return the given base of an adapter; None for a full model, and where the adapter's manifest names it."""
        folder = self.fdm if role == "fdm" else self.idm
        if not is_adapter(folder):
            return None
        manifest = read_manifest(folder)
        # Another program's adapter says nothing: whose base was given decides.
        reads_pixels = manifest.reads_pixels if manifest is not None else role == "idm" and bool(self.pixels.base)
        return (self.pixels.base if reads_pixels else self.base) or None

    def _check_pixels_base(self, base: str) -> None:
        if not is_adapter(self.idm):
            raise InputError(f"pixels.base = {base!r}, but idm = {self.idm!r} is no adapter; leave it out")
        if not model_folder(base).is_dir():
            raise InputError(f"pixels.base = {base!r}: no such model folder{hub_hint(base)}")

    def _check_reads_codes(self) -> None:
        folder = model_folder(self.idm)
        if is_adapter(folder):
            folder = adapter_base(folder, self.base)
        # An original release has no configuration: what loads it says what to do.
        config = folder / "config.json"
        model_type = read_json(config).get("model_type") if config.is_file() else None
        if isinstance(model_type, str) and model_type in FORWARD_ONLY:
            raise InputError(f"idm = {self.idm!r}: {FORWARD_ONLY[model_type]}")

    def _check_sharing(self, fdm_kind: ModelKind, idm_kind: ModelKind) -> None:
        if self.base_sharing == "merged":
            return
        for role, kind in (("fdm", fdm_kind), ("idm", idm_kind)):
            if kind != "codes":
                description = "an image editor" if kind == "editor" else "a model that reads pixels"
                raise InputError(
                    f"base_sharing = shared is for two adapters of one unified model, and {role} = "
                    f"{getattr(self, role)!r} is {description}; expected merged"
                )
        # Shared weights need two adapters of one base.
        find_shared_base(self.fdm, self.idm, self.base)

    def _load_codes(self, codec: ImageCodec | None, device: str | torch.device, dtype: torch.dtype) -> ModelPair:
        roles = load_roles(
            self.fdm, self.idm, base_sharing=self.base_sharing, base=self.base or None, device=device, dtype=dtype
        )
        codec = codec or load_codec(self.codec_folder("fdm"), device)
        forward = CodeForward(roles.fdm, codec, name_model(self.fdm, roles.fdm.model.base_id))
        if roles.idm.model.codec_id == codec.codec_id:
            other = codec
        else:
            # Codes of another codebook are other images: pixels are exchanged.
            codec.check_decoder()
            other = load_codec(self.codec_folder("idm"), device)
        return ModelPair(forward, CodeInverse(roles.idm, other, name_model(self.idm, roles.idm.model.base_id)))
