"""Write the Hugging Face folder of an original release, file by file.

The weights keep the type and the values that they are stored in. A folder that is not finished has no ``config.json``,
so that nothing takes it for a model; files that are complete are kept when the conversion runs again.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from transformers import ChameleonForConditionalGeneration

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec
from wm.models.codec.files import read_codec
from wm.models.codec.taming import VQGAN_CKPT
from wm.models.families.chameleon import ChameleonVLM, write_chameleon_processor
from wm.models.folder_checks import refusing
from wm.models.folder_writing import codec_tensors, write_config
from wm.models.folders import build_skeleton
from wm.models.identity import base_id_of
from wm.models.manifest import Manifest
from wm.models.pickled import check_downloaded
from wm.models.release.read import find_release, read_original_tokenizer
from wm.models.release.weights import open_original
from wm.models.vlm import Facts
from wm.models.weights import INDEX, StoredTensor, describe_tensor, has_weights, read_header, read_stored
from wm.runs import write_json

MAX_FILE_BYTES = 2 << 30
"""Tensors of one weight file together, which are in memory while it is written."""
_SPARE_BYTES = 64 << 20
"""Left free on the disk: configuration, tokenizer and headers are smaller."""


@dataclass(frozen=True)
class WeightFile:
    """One file of the folder to write."""

    name: str
    tensors: dict[str, StoredTensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def is_complete(self, folder: Path) -> bool:
        """Return whether it is in a folder; files get their name when they are complete."""
        path = folder / self.name
        if not path.is_file():
            return False
        # Another version may have divided the tensors otherwise.
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in read_header(path).items()}
        return shapes == {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Conversion:
    """A release that was checked, and the files to write of it."""

    vlm: ChameleonVLM
    """Its model without weights."""
    codec: ImageCodec
    files: Sequence[WeightFile]

    @property
    def num_tensors(self) -> int:
        """Tensors of all files."""
        return sum(len(file.tensors) for file in self.files)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(file.num_bytes for file in self.files)


def plan_conversion(path: str | Path) -> Conversion:
    """Check an original release; of its language model no weights are read.

    Args:
        path: The release's root, its model folder, or a flat folder of all files.

    Returns:
        What to write.

    Raises:
        InputError: A file is absent or damaged, tensors are missing, misshapen or too many, or tokenizer, vocabulary
            and codec do not fit the model.
    """
    root = Path(path)
    # Otherwise the search for a release would report what is missing.
    if has_weights(root):
        raise InputError(f"release = {str(root)!r} is in the Hugging Face layout already: use it as it is")
    release = find_release(root)
    with refusing(f"{root} is no release that can be read"):
        # 1. The parts, each by itself.
        config, stored = open_original(release)
        check_downloaded(release.tokenizer / VQGAN_CKPT)
        codec = read_codec(release.tokenizer / VQGAN_CKPT)
        tokenizer = read_original_tokenizer(release)
        # 2. The model without weights: vocabulary, tokenizer and codec must fit.
        module = build_skeleton(ChameleonForConditionalGeneration, config, release.model)
        del module.model.vqmodel
        config.dtype = config.vq_config.dtype
        facts = Facts("", codec.codec_id, codec.tokens_per_image, codec.num_codes, folder=release.model)
        vlm = ChameleonVLM(module, tokenizer, facts)
    tensors = stored | {name: describe_tensor(root, tensor) for name, tensor in codec_tensors(codec).items()}
    return Conversion(vlm, codec, _divide(tensors))


def _divide(tensors: dict[str, StoredTensor]) -> list[WeightFile]:
    """Divide tensors into files, the same ones whenever it is done."""
    # A tensor larger than a file gets one of its own.
    groups: list[dict[str, StoredTensor]] = [{}]
    num_bytes = 0
    for name, tensor in tensors.items():
        if groups[-1] and num_bytes + tensor.num_bytes > MAX_FILE_BYTES:
            groups.append({})
            num_bytes = 0
        groups[-1][name] = tensor
        num_bytes += tensor.num_bytes
    if len(groups) == 1:
        return [WeightFile("model.safetensors", groups[0])]
    return [
        WeightFile(f"model-{index:05d}-of-{len(groups):05d}.safetensors", group)
        for index, group in enumerate(groups, start=1)
    ]


def check_free_space(conversion: Conversion, folder: Path) -> None:
    """Check that a conversion fits on the disk.

    Args:
        conversion: Whose complete files in ``folder`` need no space any more.
        folder: It need not exist yet.

    Raises:
        InputError: It does not fit.
    """
    num_bytes = sum(file.num_bytes for file in conversion.files if not file.is_complete(folder)) + _SPARE_BYTES
    # The folder need not exist: its nearest parent is on the same disk.
    disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(disk).free
    if num_bytes > free:
        raise InputError(f"{folder} needs {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free there")


def write_weight_files(conversion: Conversion, folder: Path) -> Iterator[WeightFile]:
    """Write the weight files that are not complete.

    Args:
        conversion: What to write.
        folder: An existing folder, perhaps with files of an attempt that was ended.

    Yields:
        Each file, as soon as it is complete.
    """
    for file in conversion.files:
        if not file.is_complete(folder):
            # Tensors of one file at a time are in memory.
            tensors = {name: tensor.contiguous() for name, tensor in read_stored(file.tensors)}
            temporary = folder / f".{file.name}.{os.getpid()}.tmp"
            try:
                save_file(tensors, temporary, metadata={"format": "pt"})
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())  # or a power cut leaves the name without its content
                temporary.replace(folder / file.name)
            finally:
                temporary.unlink(missing_ok=True)
        yield file


def finish_folder(conversion: Conversion, folder: Path) -> Manifest:
    """Write what makes a folder of weight files a model: index, tokenizer, configurations and manifest.

    Args:
        conversion: What was written.
        folder: Holds all its weight files.

    Returns:
        The manifest; the base's id is that which the release itself had in earlier versions.
    """
    # Of processes that were killed while writing.
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    if len(conversion.files) > 1:
        shards = {name: file.name for file in conversion.files for name in file.tensors}
        write_json(folder / INDEX, {"metadata": {"total_size": conversion.num_bytes}, "weight_map": shards})
    write_chameleon_processor(conversion.codec, folder)
    # The configuration comes after the weights: without it the folder is no model.
    write_config(conversion.vlm, folder)
    manifest = Manifest(
        family=conversion.vlm.family,
        kind="base",
        base_id=base_id_of(folder),
        codec_id=conversion.codec.codec_id,
        decoder_id=conversion.codec.decoder_id or "",
    )
    manifest.write(folder)
    return manifest
