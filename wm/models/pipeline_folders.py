"""Name what a pipeline's folder holds: its class, its content. Nothing of diffusers is needed here."""

from pathlib import Path

import torch

from wm.errors import InputError
from wm.models.folder_checks import read_json
from wm.models.identity import fingerprint_of
from wm.models.pipelines import INDEX, Precision, read_parts
from wm.models.weights import read_header

_CONFIGS = ("config.json", "scheduler_config.json")


def name_pipeline(folder: Path) -> str:
    """Return the class that a pipeline's folder names.

    Args:
        folder: With an index of diffusers.

    Raises:
        InputError: There is no index, or it names no class.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"no {INDEX} in {folder}; expected an image editor in the form of diffusers")
    name = read_json(folder / INDEX).get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError(f"{folder / INDEX} names the pipeline {name!r:.80}; expected a class of diffusers")
    return name


def name_precision(dtype: torch.dtype) -> Precision:
    """Return the name of a type that pipelines have.

    Args:
        dtype: Of weights.

    Raises:
        InputError: It is another one.
    """
    names: dict[torch.dtype, Precision] = {
        torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16",
    }  # fmt: skip
    if dtype not in names:
        raise InputError(f"dtype = {dtype}: expected one of {', '.join(names.values())}")
    return names[dtype]


def fingerprint_pipeline(folder: Path, class_name: str) -> str:
    """Hash the configurations and weights of all parts that are there, large tensors by samples.

    Args:
        folder: Of diffusers.
        class_name: The class that it names.

    Returns:
        16 hexadecimal digits, as of :func:`wm.models.identity.fingerprint_of`.
    """
    # A safety checker that nobody loads need not be there.
    absent = [name for name in read_json(folder / INDEX) if not (folder / name).is_dir()]
    parts = read_parts(folder, class_name, absent)
    # A scheduler has no weights, and decides about an image as they do.
    files = [folder / INDEX, *(folder / part / name for part in parts for name in _CONFIGS)]
    # What a mere saving by another version writes begins with an underscore.
    configs = {
        str(file.relative_to(folder)): {name: value for name, value in read_json(file).items() if name[0] != "_"}
        for file in files
        if file.is_file()
    }
    tensors = {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in read_header(file).items()
    }
    return fingerprint_of(configs, tensors)
