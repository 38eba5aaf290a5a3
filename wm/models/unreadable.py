"""Explain model folders of layouts that are not read: which layout is, and what to download or run instead.

Only names and small files are looked at; nothing of the folder is loaded, run or fetched.
"""

import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

from wm.errors import InputError, MissingPathError
from wm.models.folder_checks import read_json
from wm.models.variants import is_emu3_5, is_lumina
from wm.models.weights import has_weights

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
READ_LAYOUTS = {
    "chameleon": "hf download leloy/Anole-7b-v0.1-hf --local-dir MODEL",
    "liquid": "hf download Junfeng5/Liquid_V1_7B --local-dir MODEL",
    "emu3": "hf download BAAI/Emu3-Gen-hf --local-dir MODEL",
    "janus": "hf download deepseek-community/Janus-Pro-7B --local-dir MODEL",
    "lumina": "hf download Alpha-VLLM/Lumina-mGPT-2.0 --local-dir MODEL",
    "emu3_5": "hf download BAAI/Emu3.5 --local-dir MODEL",
}
"""The command that downloads a folder of the layout that is read, by family."""
_FAMILY_WORDS = {
    "anole": "chameleon", "chameleon": "chameleon", "liquid": "liquid", "emu3.5": "emu3_5", "emu3": "emu3",
    "janus": "janus", "lumina": "lumina",
}  # fmt: skip
_MODEL_PARENTS = ("models", "model", "weights")
_LOCAL_PARENTS = (*_MODEL_PARENTS, "runs", "run", "data", "out", "outputs", "checkpoints", "adapters")
"""Folders that people keep models in; no account of the hub that publishes a model of these families is called so."""
_LUMINA_CLASSES = ("ChameleonXLLMXForConditionalGeneration", "ChameleonXLLMXForConditionalGeneration_ck")
_CONVERTERS = {
    "emu3": "src/transformers/models/emu3/convert_emu3_weights_to_hf.py --vq_model_id VQ --llm_model_id THIS "
    "--output_dir MODEL",
    "janus": "src/transformers/models/janus/convert_janus_weights_to_hf.py --local_dir THIS --output_dir MODEL",
}


def check_folder_exists(folder: Path) -> None:
    """Raise :class:`InputError` if there is no folder at a path, saying what seems to be meant.

    Args:
        folder: A path that should be a model folder.

    Raises:
        InputError: It is a file, a name of the Hugging Face hub, or nothing.
    """
    try:
        if folder.is_dir():
            return
        is_file = folder.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{str(folder)[:200]!r} cannot be read: {error}") from error
    if is_file:
        raise InputError(f"{folder} is a file, expected a model folder{_file_hint(folder)}")
    raise MissingPathError(folder, "model folder", hub_hint(folder))


def hub_hint(folder: str | Path) -> str:
    """Write what to run where a name of the Hugging Face hub was given in place of a folder.

    Args:
        folder: A path that is no folder.

    Returns:
        The end of a message, empty where the path cannot be such a name.
    """
    # A path with more parts, or a drive, is no name of the hub.
    if not _HUB_ID.fullmatch(str(folder)):
        return ""
    # Neither is a folder that this project's recipes stand for, nor one beside others that are there.
    parent, name = str(folder).split("/")
    if parent.lower() in _LOCAL_PARENTS or Path(parent).is_dir():
        return _placeholder_hint(folder, name)
    return (
        f"; models are read from folders, nothing is downloaded: if {folder} is a name of the Hugging Face hub, run "
        f"`{_download_of(str(folder))}` and give that folder"
    )


def _placeholder_hint(folder: str | Path, name: str) -> str:
    """Name the real repository that a recipe's path stands for, where its name says which."""
    family = next((family for word, family in _FAMILY_WORDS.items() if word in name.lower()), "")
    # What a run has trained, such as runs/anole-idm, cannot be downloaded.
    if not family or str(folder).split("/")[0] not in _MODEL_PARENTS or re.search(r"idm|fdm|adapter", name.lower()):
        return ""
    return f"; download it: `{READ_LAYOUTS[family].replace('MODEL', shlex.quote(str(folder)))}`"


def find_release_models(folder: Path) -> list[Path]:
    """List the folders of Meta's original layout of Chameleon (Anole's too) at a path; nothing is read.

    Args:
        folder: A release (``models/7b``, …, ``tokenizer``), its ``models``, one of these, or a flat folder of it all.

    Returns:
        Folders that hold ``params.json`` or ``consolidated*.pth``; none for a folder with Hugging Face's weights.
    """
    # Converted folders may keep the release's files beside the weights.
    if not folder.is_dir() or has_weights(folder) or (folder / "adapter_config.json").is_file():
        return []
    if _is_release_model(folder):
        return [folder]
    if (folder / "config.json").is_file():
        return []  # a Hugging Face folder whose weights are not there
    inside = [*sorted(folder.glob("models/*/")), *sorted(folder.glob("*/"))]
    return [path for path in inside if _is_release_model(path)]


def _is_release_model(folder: Path) -> bool:
    return (folder / "params.json").is_file() or any(folder.glob("consolidated*.pth"))


def convert_command(release: Path) -> str:
    """Write the command that brings an original release over, and the folder to give then."""
    out = release.with_name(f"{release.name}-hf") if release.name else release / "hf"
    command = f"wm convert release={shlex.quote(str(release))} out={shlex.quote(str(out))}"
    return f"run `{command}` once and give {out}"


def explain_release(folder: Path) -> None:
    """Raise :class:`InputError` for an original release, which is read after conversion only.

    Args:
        folder: A folder that should be a full model.

    Raises:
        InputError: It is one; the message says the command.
    """
    if find_release_models(folder):
        raise InputError(f"{folder} is an original release of Chameleon (or Anole): {convert_command(folder)}")


def explain_unreadable(folder: Path) -> None:
    """Raise :class:`InputError` for a folder of a known layout that is not read.

    Args:
        folder: A folder that should be a full model, of whatever layout.

    Raises:
        InputError: It is one of another program or of an authors' own release; the message says what to download or
            run.
    """
    check_folder_exists(folder)
    explain_release(folder)
    # The cache of the hub keeps the files two folders deeper.
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    if snapshots:
        raise InputError(f"{folder} is a repository of the Hugging Face cache; give its snapshot: {snapshots[-1]}")
    if (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is a pipeline of diffusers, which has no language model over image codes{_read()}")
    if (folder / "config.json").exists():
        _explain_config(folder, read_json(folder / "config.json"))
    else:
        _explain_without_config(folder)


def _explain_without_config(folder: Path) -> None:
    # Whatever is there says what was downloaded instead.
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        raise InputError(
            f"{folder} holds {gguf[0].name}: GGUF files of llama.cpp are not read, as they leave the image codes' part "
            f"out; expected safetensors with config.json{_read()}"
        )
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds an adapter alone, expected a full model")
    if any((folder / name).is_file() for name in ("text_tokenizer.json", "vqgan.ckpt")):
        raise InputError(f"{folder} holds a tokenizer or an image codec alone, expected a full model{_read()}")
    if (folder / "tokenizer" / "vqgan.ckpt").is_file():
        raise InputError(
            f"{folder} holds the tokenizer of an original release, but no params.json and consolidated*.pth in "
            f"models/7b or so; its image codec alone is {folder / 'tokenizer'}"
        )
    weights = sorted(path.name for pattern in ("*.safetensors", "*.bin", "*.pt") for path in folder.glob(pattern))
    if weights:
        raise InputError(f"{folder} holds {weights[0]} but no config.json; download the complete model folder{_read()}")


def _explain_config(folder: Path, config: dict[str, Any]) -> None:
    # Layouts that transformers does not know, or that differ from its own under the same name.
    model_type, architectures = config.get("model_type"), config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if model_type == "Emu3" and not is_emu3_5(folder, config):
        _refuse_original(folder, "emu3", f"Emu3 (model_type {model_type!r}, with its VQ model in another folder)")
    if model_type == "Emu3VisionVQ" or "Emu3VisionVQModel" in names:
        raise InputError(
            f"{folder} is Emu3's VQ model alone (Emu3-VisionTokenizer); expected language model and VQ model in one "
            f"folder, as transformers writes it: `{READ_LAYOUTS['emu3']}`"
        )
    if model_type == "glm_image":
        raise InputError(
            f"{folder} is the autoregressive half of GLM-Image, whose image ids only the pipeline's diffusion half "
            "turns into pixels, and which writes no text; give the pipeline's folder (with model_index.json) as an "
            "editor"
        )
    if model_type == "multi_modality" and any(key.startswith("gen_") for key in config):
        _refuse_original(folder, "janus", f"Janus (model_type {model_type!r})")
    if model_type == "chameleon" and any(name in _LUMINA_CLASSES for name in names) and not is_lumina(config):
        raise InputError(
            f"{folder} is the first Lumina-mGPT ({names[0]}), a Chameleon with another prompt and without its image "
            f"tokenizer, which is not read; expected Lumina-mGPT 2.0, `{READ_LAYOUTS['lumina']}`, or transformers' "
            f"layout of Chameleon or Anole: `{READ_LAYOUTS['chameleon']}`"
        )


def _refuse_original(folder: Path, family: str, subject: str) -> NoReturn:
    raise InputError(
        f"{folder} is the authors' own layout of {subject}, which needs code of its own and is not read; expected "
        f"transformers' layout: `{READ_LAYOUTS[family]}`, or convert it with `python {_CONVERTERS[family]}` of "
        "transformers' sources"
    )


def _read() -> str:
    return "; what is read: " + ", ".join(f"{family} (`{command}`)" for family, command in READ_LAYOUTS.items())


def _download_of(hub_id: str) -> str:
    """Return the command for a repository, or for the one in transformers' layout where it is an authors' own."""
    # The authors' own repositories are in another layout; those in transformers' have other names.
    name = hub_id.lower()
    local = hub_id.split("/")[1]
    if name.startswith("deepseek-ai/janus-pro-"):
        hub_id = f"deepseek-community/Janus-Pro-{hub_id.rsplit('-', 1)[1]}"
    elif name in ("baai/emu3-gen", "baai/emu3-chat"):
        hub_id += "-hf"
    return f"hf download {hub_id} --local-dir {local}"


def _file_hint(file: Path) -> str:
    if file.suffix == ".gguf":
        return f"; GGUF files of llama.cpp are not read{_read()}"
    if file.suffix in (".safetensors", ".bin", ".json", ".pt"):
        return f": {file.parent}"
    return ""
