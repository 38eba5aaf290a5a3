"""Model folders in and out: full Hugging Face folders and PEFT adapter folders, each with its manifest.

A folder is written aside and renamed, so that a half-written one is never mistaken for a model.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from wm.errors import InputError
from wm.models.adapters import ADAPTER_CONFIG, attach, is_adapter, merged
from wm.models.causal import CausalVLM, Facts
from wm.models.chameleon_files import read_chameleon_module, read_tokenizer
from wm.models.codec.codec import ImageCodec
from wm.models.codec.files import chameleon_codec_shape, read_codec
from wm.models.families.chameleon import ChameleonVLM
from wm.models.folder_checks import check_no_code, read_json, refusing
from wm.models.folders import Family
from wm.models.manifest import MANIFEST, Manifest, model_folder, need_same_codec, read_manifest
from wm.models.protocol import Task, UnifiedVLM
from wm.models.release.read import find_release
from wm.models.release.weights import open_original
from wm.models.sharing import need_shareable, twin_of
from wm.models.unreadable import check_folder_exists, explain_unreadable
from wm.models.weights import CODEC_PREFIX, fingerprint, fingerprint_of
from wm.runs import write_json


def base_id_of(folder: str | Path) -> str:
    """Fingerprint of a full model folder: configuration and language-model weights.

    The image codec is left out: it has its own identity. An original release has the identity of the Hugging
    Face folder that :func:`save_model` writes of it. See :func:`wm.models.weights.fingerprint_of`.
    """
    path = model_folder(folder)
    with refusing(f"{path} is no model folder that can be read"):
        release = find_release(path)
        if release is not None:
            config, locations = open_original(release)
            return "chameleon-" + fingerprint_of(json.loads(config.to_json_string()), locations)
        family = read_json(path / "config.json").get("model_type", "unknown")
        return f"{family}-" + fingerprint(path, keep=lambda name: not name.startswith((CODEC_PREFIX, "vqmodel.")))


def load_codec(
    path: str | Path, device: str | torch.device = "cpu", *, decoder: str | Path | None = None
) -> ImageCodec:
    """Read the image codec of a full model folder of any layout, or of an adapter folder's base. Reads no other
    weights.

    Args:
        path: A full model folder, or an adapter's.
        device: Where to put the codec.
        decoder: A ``vqgan.ckpt`` (or a folder with one) to take the decoder from, for a Hugging Face folder that came
            without; a file of that name inside such a folder is found by itself.

    Returns:
        The codec, in float32.

    Raises:
        InputError: Tensors do not fit, or encoder, codebook or decoder are not those that the folder's manifest names.
    """
    folder = model_folder(path)
    decoder_path = Path(decoder) if decoder is not None else None
    manifest: Manifest | None
    # An adapter has no codec of its own, but its manifest names the one that it was trained with.
    if (folder / ADAPTER_CONFIG).is_file():
        manifest, base_folder = adapter_base(folder)
        codec = load_codec(base_folder, device, decoder=decoder)
    else:
        manifest = read_manifest(folder)
        with refusing(f"{folder} holds no image codec that can be read"):
            codec = family_of(folder).read_codec(folder, device, decoder_path)
    if manifest is not None:
        need_same_codec(codec.codec_id, manifest.codec_id, folder)
        if decoder_path is None and codec.has_decoder and manifest.decoder_id not in ("", codec.decoder_id):
            raise InputError(
                f"{folder} was made with the codec and decoder {manifest.decoder_id}, but those here are "
                f"{codec.decoder_id}; give decoder= to use another decoder"
            )
    return codec


def load_chameleon(
    folder: Path, device: str | torch.device, dtype: torch.dtype, facts: Facts | None = None
) -> ChameleonVLM:
    """Load a full Chameleon folder. A manifest, where there is one, must name the codec that is in the folder."""
    facts = facts or _facts_of(folder, read_codec(folder))
    return ChameleonVLM(
        read_chameleon_module(folder, device, dtype),
        read_tokenizer(folder),
        base_id=facts.base_id,
        codec_id=facts.codec_id,
        tokens_per_image=facts.tokens_per_image,
        num_codes=facts.num_codes,
        action_slot_tokens=facts.action_slot_tokens,
        folder=folder,
    )


def _facts_of(folder: Path, codec: ImageCodec) -> Facts:
    manifest = read_manifest(folder)
    if manifest is not None:
        need_same_codec(codec.codec_id, manifest.codec_id, folder)
    base_id = base_id_of(folder)
    if manifest is not None and manifest.kind == "base" and manifest.base_id != base_id:
        raise InputError(f"{folder}: {MANIFEST} names base {manifest.base_id}, but the weights are {base_id}")
    slot_tokens = manifest.action_slot_tokens if manifest is not None else 0
    return Facts(base_id, codec.codec_id, codec.tokens_per_image, codec.num_codes, slot_tokens, folder)


FAMILIES = {
    "chameleon": "wm.models.checkpoints",
    "gemma": "wm.models.families.liquid",
    "emu3": "wm.models.families.emu3",
    "janus": "wm.models.families.janus",
}
"""The module whose ``FAMILY`` reads and writes folders, by the ``model_type`` of their ``config.json``."""


def family_of(folder: Path) -> Family:
    """Return the family of a full folder; :class:`InputError` if it is none of :data:`FAMILIES`.

    A folder without ``config.json`` that is an original release, or a tokenizer of one, is Chameleon's. Nothing that
    the folder names is run: one that needs code is refused.
    """
    if find_release(folder):
        return _family("chameleon")
    explain_unreadable(folder)
    model_type = read_json(folder / "config.json").get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{folder}: model_type is {model_type!r:.60}; supported: {', '.join(FAMILIES)}")
    check_no_code(folder)
    return _family(model_type)


def _family(model_type: str) -> Family:
    family: Family = import_module(FAMILIES[model_type]).FAMILY
    return family


def load_model(
    path: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    merge: bool = False,
    over: UnifiedVLM | None = None,
) -> UnifiedVLM:
    """Load a full model folder, or an adapter folder onto its base, in evaluation mode.

    Args:
        path: A model folder, or the folder of the run that trained it.
        base: An adapter's base folder; None: the one that its manifest names.
        device: Where to put the weights.
        dtype: Type of the weights.
        merge: Add an adapter into the weights: faster to run, equal up to rounding, and no longer an adapter.
        over: The base as it was loaded before, whose weights are then not read again but shared, as is their device
            and type; see :mod:`wm.models.sharing`.

    Returns:
        The model.

    Raises:
        InputError: The folder is no model, tensors are missing or misshapen, the adapter was made for another base or
            codec (both are named), or it cannot share its base.
    """
    folder = model_folder(path)
    check_folder_exists(folder)
    if over is not None:
        return _load_over(folder, over, base, merge)
    if not (folder / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise InputError(f"{folder} is no adapter (no {ADAPTER_CONFIG}), so base={base} cannot be used")
        return _load_full(folder, device, dtype)
    manifest = need_manifest(folder)
    base_folder = _base_folder(folder, manifest, base)
    # Compared before gigabytes are loaded: an adapter of another base would load without an error.
    _need_base(folder, manifest, base_id_of(base_folder), base_folder)
    vlm = _load_full(base_folder, device, dtype)
    adapted = attach(vlm, folder, manifest)
    vlm.module = merged(adapted, folder) if merge else adapted
    return vlm


def base_of(path: str | Path, base: str | Path | None = None) -> tuple[Path, str]:
    """Where the weights are that a model folder needs beside adapters, and their id: an adapter's base, or the full
    folder itself. Raises :class:`InputError` as :func:`load_model` does; nothing is loaded."""
    folder = model_folder(path)
    if not (folder / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise InputError(f"{folder} is no adapter (no {ADAPTER_CONFIG}), so base={base} cannot be used")
        return folder, base_id_of(folder)
    manifest = need_manifest(folder)
    base_folder = _base_folder(folder, manifest, base)
    actual_id = base_id_of(base_folder)
    _need_base(folder, manifest, actual_id, base_folder)
    return base_folder, actual_id


def _load_over(folder: Path, over: UnifiedVLM, base: str | Path | None, merge: bool) -> UnifiedVLM:
    if merge:
        raise InputError(f"{folder}: merging would change the weights that it shares with others")
    if not (folder / ADAPTER_CONFIG).is_file():
        if base_of(folder, base)[1] != over.base_id:
            raise InputError(
                f"{folder} is a full model with weights of its own, no adapter of {over.base_id}: it cannot share them"
            )
        if folder != over.folder:  # type: ignore[attr-defined]
            need_same_codec(load_codec(folder).codec_id, over.codec_id, folder)
        return twin_of(over)
    manifest = need_manifest(folder)
    _need_base(folder, manifest, over.base_id, "the base to be shared")
    need_shareable(folder)
    vlm = twin_of(over)
    vlm.module = attach(vlm, folder, manifest)
    return vlm


def _need_base(folder: Path, manifest: Manifest, actual_id: str, where: str | Path) -> None:
    if actual_id != manifest.base_id:
        raise InputError(f"adapter {folder} was trained on base {manifest.base_id}, but {where} is {actual_id}")


def save_model(
    vlm: UnifiedVLM,
    path: str | Path,
    *,
    kind: Literal["base", "full", "adapter"] | None = None,
    task: Task | None = None,
    codec: ImageCodec | None = None,
    recipe_digest: str = "",
    state_dict: Mapping[str, Tensor] | None = None,
) -> Manifest:
    """Write a model folder that :func:`load_model` and the Hugging Face classes load; an existing one is replaced.

    Args:
        vlm: The model, with or without an adapter.
        path: The folder to write.
        kind: None: ``adapter`` for a model that carries one, ``full`` otherwise.
        task: What the model was trained for; None for a base.
        codec: Its tensors become part of a full folder; None: those of the folder that the model was read from.
        recipe_digest: Digest of the recipe that made the model.
        state_dict: Replaces the module's own tensors (gathered from several processes; for an adapter, those of the
            PEFT model).

    Returns:
        The manifest that was written.

    Raises:
        InputError: ``kind`` does not fit the model, the codec is absent or another one, or the family cannot be saved.
    """
    model = _need_family(vlm)
    has_adapter = model.module is not model.inner
    kind = kind or ("adapter" if has_adapter else "full")
    if (kind == "adapter") != has_adapter:
        raise InputError(f"kind={kind!r}, but the model has {'an' if has_adapter else 'no'} adapter")
    out = Path(path)
    if kind != "adapter" and codec is None:
        if model.folder is None:
            raise InputError(f"cannot write {out}: give the codec, the model was not read from a folder that has one")
        codec = family_of(model.folder).read_codec(model.folder, "cpu", None)
    if codec is not None:
        need_same_codec(codec.codec_id, model.codec_id, out)
    # Written beside its place and renamed: a process that is killed leaves no half of a model.
    with written_aside(out) as aside:
        base_path = ""
        if kind == "adapter":
            model.module.save_pretrained(aside, state_dict=state_dict, save_embedding_layers=False)
            if model.folder is not None:
                base_path = os.path.relpath(model.folder.resolve(), out.resolve())
        else:
            assert codec is not None
            tensors = state_dict if state_dict is not None else model.inner.state_dict()
            _family(model.inner.config.model_type).write(model, codec, tensors, aside)
        manifest = Manifest(
            family=model.family,
            kind=kind,
            base_id=base_id_of(aside) if kind == "base" else model.base_id,
            codec_id=model.codec_id,
            decoder_id=(codec.decoder_id or "") if kind != "adapter" and codec is not None else "",
            task=task,
            recipe_digest=recipe_digest,
            action_slot_tokens=model.action_slot_tokens,
            base_path=base_path,
        )
        manifest.write(aside)
    return manifest


def _load_full(folder: Path, device: str | torch.device, dtype: torch.dtype) -> UnifiedVLM:
    with refusing(f"{folder} is no model that can be loaded"):
        release = find_release(folder)
        if release is not None:
            release.need_model()
        family = family_of(folder)
        vlm: UnifiedVLM = family.load(folder, device, dtype, _facts_of(folder, family.read_codec(folder, "cpu", None)))
    return vlm


def adapter_base(folder: Path) -> tuple[Manifest, Path]:
    """Read the manifest of an adapter folder, and the folder of the base that it names."""
    manifest = need_manifest(folder)
    return manifest, _base_folder(folder, manifest, None)


def need_manifest(folder: Path) -> Manifest:
    """Read the manifest of an adapter folder; :class:`InputError` that says how to write one if there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            f"adapter {folder} has no {MANIFEST}, which names the base and codec it was made for; one that was trained "
            f"elsewhere gets it by: python -m jobs.convert adapter={folder} base=BASE task=idm out=OUT"
        )
    return manifest


def _base_folder(folder: Path, manifest: Manifest, base: str | Path | None) -> Path:
    if base is None and not manifest.base_path:
        raise InputError(f"adapter {folder} does not say where its base is; give base=")
    base_folder = (
        model_folder(base) if base is not None else Path(os.path.normpath(folder.resolve() / manifest.base_path))
    )
    try:
        is_folder = base_folder.is_dir()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        is_folder = False
    if not is_folder:
        raise InputError(
            f"adapter {folder}: its base {manifest.base_id} is not at {str(base_folder)!r:.300}; give base="
        )
    # Adapters of adapters are not made here, and a chain of them may be a circle.
    if is_adapter(base_folder):
        raise InputError(f"adapter {folder}: its base {base_folder} is an adapter itself, expected a full model folder")
    return base_folder


def _need_family(vlm: UnifiedVLM) -> CausalVLM:
    if not isinstance(vlm, CausalVLM):
        raise InputError(f"cannot save a model of family {vlm.family!r}; supported: {', '.join(FAMILIES)}")
    return vlm


def _write_full(vlm: ChameleonVLM, codec: ImageCodec, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the Hugging Face folder; the decoder stands beside the tensors that the class knows, as in Anole."""
    config = vlm.inner.config
    tensors = dict(tensors)
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    tensors |= {CODEC_PREFIX + name: tensor for name, tensor in codec.vqgan.state_dict().items()}
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(ready, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["ChameleonForConditionalGeneration"]
    config.save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", preprocessor_config(codec))


def preprocessor_config(codec: ImageCodec) -> dict[str, Any]:
    """Build the ``preprocessor_config.json`` that transformers reads beside a model of this codec."""
    scale = codec.scale
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "processor_class": "ChameleonProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": codec.side_px},
        "resample": 1,
        "do_center_crop": True,
        "crop_size": {"height": codec.side_px, "width": codec.side_px},
        "do_rescale": True,
        "rescale_factor": scale.rescale,
        "do_normalize": True,
        "image_mean": [scale.mean] * 3,
        "image_std": [scale.std] * 3,
    }


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """Make a new folder beside ``out`` that takes its name at the end, and vanishes if anything goes wrong."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield aside
        aside.chmod(0o755)
        # A folder cannot be replaced in one step: the old one is moved away first, and removed last.
        if out.exists():
            retired = aside.with_name(aside.name + ".old")
            out.rename(retired)
            aside.rename(out)
            shutil.rmtree(retired)
        else:
            aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _read_codec(folder: Path, device: str | torch.device, decoder: Path | None) -> ImageCodec:
    return read_codec(folder, device, decoder=decoder)


FAMILY = Family(load_chameleon, _read_codec, _write_full, chameleon_codec_shape)
