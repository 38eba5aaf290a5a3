"""Load the folder of a vision-language model that reads pixels: any class of ``AutoModelForImageTextToText``.

Safetensors alone are read, nothing is downloaded, and no code of the folder is run. Adapters are not known here.
"""

from inspect import signature
from pathlib import Path
from typing import Any

import torch

from wm.errors import InputError
from wm.models.chat_templates import check_chat_template
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, neutralise, read_json, refusing
from wm.models.folders import quiet_transformers
from wm.models.pixels.chats import PROMPT, build_chat, write_chat
from wm.models.tensor_checks import check_amount, count_numbers
from wm.models.unreadable import check_folder_exists, explain_unreadable
from wm.models.weights import list_tensors

_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def load_pixel_folder(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prompt: str = PROMPT,
) -> tuple[Any, Any]:
    """Load model and processor.

    Args:
        folder: Holds model, processor and chat template.
        device: Where the weights go.
        dtype: Their type.
        prompt: The question, with which the template is tried.

    Returns:
        The model, in evaluation mode, and its processor, whose tokenizer has a token for padding.

    Raises:
        InputError: For a folder of another kind of model, or without processor or chat template.
    """
    path = Path(folder)
    check_pixel_folder(path)
    # The weights last: they take longest.
    processor = load_pixel_processor(path, prompt)
    return load_pixel_model(path, device=device, dtype=dtype), processor


def load_pixel_model(path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load the model of a folder, in evaluation mode.

    Args:
        path: A folder that :func:`check_pixel_folder` has passed.
        device: Where the weights go.
        dtype: Their type.

    Raises:
        InputError: It is another kind of model, or tensors are missing.
    """
    with refusing(f"{path} is no model that reads images and text"):
        model, missing = _read_model(path, dtype)
    # transformers would fill them with random numbers.
    if missing:
        raise InputError(f"{path}: {len(missing)} tensors are missing: {', '.join(missing[:6])}")
    return model.to(device).eval()


def check_pixel_folder(path: Path) -> None:
    """Check what of a folder can be known before anything is built.

    Args:
        path: The folder.

    Raises:
        InputError: It is not there, runs code, or holds something else.
    """
    check_folder_exists(path)
    read_json(path / "config.json")
    explain_unreadable(path)
    check_no_code(path)
    # transformers would attach it by itself, unchecked.
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{path} holds an adapter beside a model, expected a model alone: merge it before")
    check_config(read_json(path / "config.json"), path / "config.json")


def load_pixel_processor(path: Path, prompt: str = PROMPT) -> Any:
    """Load the processor of a folder, and try its chat template.

    Args:
        path: A folder that :func:`check_pixel_folder` has passed.
        prompt: The question, with which the template is tried.

    Returns:
        The processor, whose tokenizer has a token for padding.

    Raises:
        InputError: There is none, or it has no chat template that can be used.
    """
    with refusing(f"{path} is no model that reads images and text"):
        processor = _read_processor(path)
    # Without one the model would see a prompt that it was never trained on.
    if not getattr(processor, "chat_template", None):
        raise InputError(f"{path} has no chat template, which the question is asked with")
    if processor.tokenizer.eos_token is None:
        raise InputError(f"{path}: the tokenizer names no end-of-sequence token")
    # Padding is masked, so that any token will do.
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    # Jinja cannot be interrupted here: another process tries the template first.
    tokens = {role: value for role, value in processor.tokenizer.special_tokens_map.items() if isinstance(value, str)}
    check_chat_template(processor.chat_template, build_chat(prompt), tokens, path)
    with refusing(f"{path}: the chat template cannot be used"):
        write_chat(processor, prompt)
    return processor


def build_skeleton(folder: Path) -> Any:
    """Build the model of a folder's configuration on the ``meta`` device.

    Args:
        folder: A folder that :func:`check_pixel_folder` has passed.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(_read_config(folder), trust_remote_code=False)


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return neutralise(getattr(config, "thinker_config", config))  # of Qwen2.5-Omni only what reads and writes text


def _read_model(folder: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Load the model; also return the names of tensors that the files do not hold."""
    from transformers import AutoModelForImageTextToText
    from transformers.integrations import is_deepspeed_zero3_enabled

    # Built without memory first: a config that asks for far more than the files hold is refused before it is built.
    # Not where DeepSpeed shards what is built: then the skeleton was checked before, see load_pixel_skeleton.
    if not is_deepspeed_zero3_enabled():
        check_amount(build_skeleton(folder), count_numbers(list_tensors(folder)), str(folder))
    if any(folder.glob("shard-*-model-*.safetensors")):  # which transformers would prefer to what was checked
        raise InputError(f"{folder} holds shards of a distributed checkpoint, expected model.safetensors or its shards")
    with quiet_transformers():
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=_read_config(folder),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return model, sorted(report["missing_keys"])


def _read_processor(folder: Path) -> Any:
    """Load the folder's processor; without torchvision its video half cannot be built, and is left out."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import processor_class_from_name

    with quiet_transformers():
        try:
            return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (ImportError, ValueError) as error:
            processor_class = processor_class_from_name(_read_processor_name(folder))
            if processor_class is None or "torchvision" not in str(error).lower():
                raise
        template = next((_read_template(file) for name in _TEMPLATES if (file := folder / name).is_file()), None)
        parts: dict[str, Any] = dict.fromkeys(processor_class.get_attributes())
        for part, auto in (("tokenizer", AutoTokenizer), ("image_processor", AutoImageProcessor)):
            parts[part] = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The class checks its parts by kind, and None is none of them.
    images_only = type(
        processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": lambda *_: None}
    )
    settings = _read_processor_settings(folder, processor_class)
    return images_only(**parts, **settings, chat_template=template or parts["tokenizer"].chat_template)


def _read_processor_settings(folder: Path, processor_class: Any) -> dict[str, Any]:
    """Read what a processor is made of beside its parts, such as the number of tokens of an image."""
    file = folder / "processor_config.json"
    names = signature(processor_class.__init__).parameters.keys() - {*processor_class.get_attributes(), "chat_template"}
    return {key: value for key, value in read_json(file).items() if key in names} if file.is_file() else {}


def _read_template(file: Path) -> str:
    return file.read_text() if file.suffix == ".jinja" else str(read_json(file)["chat_template"])


def _read_processor_name(folder: Path) -> str:
    # Newer files first: versions of transformers have moved the name.
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file() and "processor_class" in (values := read_json(folder / file)):
            return str(values["processor_class"])
    return ""
