"""A vision-language model that reads pixels, as training holds it: module, processor, and the base that it is."""

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wm.errors import InputError
from wm.files.mirror import publish
from wm.models.folder_checks import refusing
from wm.models.folder_writing import replace_folder
from wm.models.identity import base_id_of
from wm.models.manifest import Manifest, fetch_model, is_adapter, name_base, read_manifest
from wm.models.pixels.chats import write_chat
from wm.models.pixels.folders import build_skeleton, check_pixel_folder, load_pixel_folder, load_pixel_processor
from wm.models.prompts import Task
from wm.models.remote import to_local
from wm.models.tensor_checks import check_amount, count_numbers
from wm.models.weights import list_tensors

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PROCESSOR_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_OWN_FILES = ("config.json", "wm_model.json", "run.json")


class PixelModel:
    """Any class of ``AutoModelForImageTextToText`` with its processor; the module may carry a PEFT adapter."""

    module: "PreTrainedModel | PeftModel"

    def __init__(self, module: "PreTrainedModel", processor: Any, base_id: str, folder: Path) -> None:
        """Put a model together; nothing is read.

        Args:
            module: The model of transformers.
            processor: Its processor.
            base_id: Fingerprint of the base; empty for a skeleton.
            folder: The base's.
        """
        self.module, self.processor = module, processor
        self.base_id, self.folder = base_id, folder

    @property
    def inner(self) -> "PreTrainedModel":
        """The model of transformers itself, under the adapter where there is one."""
        get_base = getattr(self.module, "get_base_model", None)
        return get_base() if get_base is not None else self.module

    @property
    def family(self) -> str:
        """The configuration's ``model_type``."""
        return str(self.inner.config.model_type)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.inner.device
        return device

    @property
    def max_positions(self) -> int:
        """Tokens that a row may have; without bound where the configuration names none."""
        return int(getattr(self.inner.config.get_text_config(), "max_position_embeddings", None) or 2**31)

    @cached_property
    def prefix(self) -> str:
        """The chat with two images and the question, up to where the answer begins."""
        return write_chat(self.processor)

    @property
    def language_modules(self) -> list[str]:
        """Names of the modules below :attr:`inner` that read and write tokens; all beside them is vision and projector.

        Raises:
            InputError: They cannot be separated.
        """
        # The head may share the embeddings' matrix, and is a module of its own all the same.
        decoder, head = self.inner.get_decoder(), self.inner.get_output_embeddings()
        names = [name for name, module in self.inner.named_modules() if module is decoder or module is head]
        if "" in names or decoder is self.inner.base_model:
            raise InputError(
                f"{self.folder} ({self.family}): language model and vision tower cannot be separated; choose "
                "lora.train_vision = true"
            )
        return names


def load_pixel_base(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> PixelModel:
    """Load a full model folder to be trained.

    Args:
        path: The folder, or that of the run that trained it.
        device: Where the weights go.
        dtype: Their type.

    Raises:
        InputError: As :func:`wm.models.pixels.folders.load_pixel_folder`, and for an adapter.
    """
    folder = _full_folder(path)
    # First, as it costs seconds and says what is wrong with the files.
    base_id = base_id_of(folder)
    model, processor = load_pixel_folder(folder, device=device, dtype=dtype)
    return PixelModel(model, processor, base_id, folder)


def load_pixel_skeleton(path: str | Path) -> PixelModel:
    """Load configuration and processor, and the model without weights, on the ``meta`` device.

    Args:
        path: A full model folder, whose weights need not be there.

    Raises:
        InputError: As :func:`load_pixel_base`.
    """
    folder = _full_folder(path)
    # What needs code, or is no such folder, is refused before anything is built.
    check_pixel_folder(folder)
    with refusing(f"{folder} is no model that reads images and text"):
        skeleton = build_skeleton(folder)
        # Of a dry run weights need not be there.
        if any(folder.glob("*.safetensors")):
            check_amount(skeleton, count_numbers(list_tensors(folder)), str(folder))
    return PixelModel(skeleton, load_pixel_processor(folder), "", folder)


def save_pixel_model(
    model: PixelModel,
    path: str | Path,
    *,
    task: Task,
    recipe_digest: str = "",
    state_dict: Mapping[str, Tensor] | None = None,
) -> Manifest:
    """Write a plain PEFT folder, or a complete folder with processor and chat template; one that is there is replaced.

    Args:
        model: The model, with or without an adapter.
        path: The folder to write; one given by its URI is uploaded.
        task: What it was trained for.
        recipe_digest: Digest of the recipe that made it.
        state_dict: Replaces the module's own tensors (gathered from several processes).

    Returns:
        The manifest that was written.
    """
    is_adapted = model.module is not model.inner
    # Written beside its place and renamed: a process that is killed leaves no half of a model.
    out = to_local(path)
    with replace_folder(out) as folder:
        model.module.save_pretrained(folder, state_dict=state_dict)
        # An adapter's processor is that of its base.
        if not is_adapted:
            copy_processor(model.folder, folder)
        manifest = Manifest(
            family=model.family,
            kind="adapter" if is_adapted else "full",
            base_id=model.base_id,
            codec_id="",
            task=task,
            recipe_digest=recipe_digest,
            base_path=name_base(model.folder, out) if is_adapted else "",
        )
        manifest.write(folder)
    # Of a mirrored path the caller knows when the rest of an output is ready.
    if "://" in str(path):
        publish(out)
    return manifest


def copy_processor(source: Path, folder: Path) -> None:
    """Copy the files of tokenizer, image processor and chat template as they are.

    Args:
        source: A complete folder.
        folder: Where they go; files that are there stay.
    """
    # By their endings: classes of processors differ in the names of their files.
    for file in sorted(source.iterdir()):
        is_index = file.name.endswith(".index.json")
        if not file.is_file() or file.suffix not in _PROCESSOR_SUFFIXES or file.name in _OWN_FILES or is_index:
            continue
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _full_folder(path: str | Path) -> Path:
    folder = fetch_model(path)
    if is_adapter(folder):
        raise InputError(f"{folder} is an adapter; expected a full model that reads pixels: merge it into one before")
    manifest = read_manifest(folder)
    # Part of the prompt layout of codes: a chat has no such slot.
    if manifest is not None and manifest.action_slot_tokens:
        raise InputError(
            f"{folder}: its manifest has action_slot_tokens = {manifest.action_slot_tokens}, expected 0 for a model "
            "that reads pixels"
        )
    return folder
