"""Bring the tensor names of adapters that other programs trained to those of today's class of the base.

Names differ by wrappers, by the version of the class, and by the authors' own class. Shapes and values are not known
here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm.errors import InputError
from wm.models.adapters import ADAPTER_WEIGHTS
from wm.models.folder_checks import refusing
from wm.models.vlm import UnifiedVLM

_PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(^module\.|\b_orig_mod\.|\b_fsdp_wrapped_module\.)")
_ADAPTER_NAME = re.compile(r"(?<=\.)((?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))|modules_to_save)\.(\w+)")
_PARAMETER = re.compile(r"\.(?:lora_\w+|ia3_l|hada_\w+|lokr_\w+|vera_\w+)(?:\.|$)")
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_DECODERS = sorted(
    [
        *("", "model.", "model.model.", "language_model.", "language_model.model.", "model.language_model."),
        *("text_model.", "text_model.model.", "model.text_model.", "model.text_model.model."),
    ],
    key=len,
    reverse=True,
)
"""What the language model's layers are called under, in today's classes, older ones and the authors' own."""
_HEADS = ("lm_head", "model.lm_head", "language_model.lm_head", "text_model.lm_head")
UNUSED = re.compile(r"^(?:model\.)?(?:vision_model|vision_tower|aligner)\.")
"""Parts of a base that read pixels for understanding: no prediction passes through them."""
CODEC = re.compile(r"^(?:model\.)?vqmodel\.")


def canonical_name(name: str) -> str:
    """Return a tensor's name without wrappers, PEFT's prefix and the adapter's name."""
    # Wrappers of torch.compile, DDP and FSDP may be inside each other.
    name = _WRAPPERS.sub("", name).removeprefix(_PREFIX)

    def without_adapter_name(match: re.Match[str]) -> str:
        return match[0] if match[2] in ("weight", "bias") else match[1]

    return _ADAPTER_NAME.sub(without_adapter_name, name).replace(".modules_to_save.", ".")


def to_base_name(name: str, vlm: UnifiedVLM) -> str:
    """Return the name under which the base's class has the layer; the same name if it has it already or has none like
    it.

    Args:
        name: As :func:`canonical_name` returns it.
        vlm: The base, of which shapes are enough.
    """
    inner = vlm.inner
    modules = {path for path, _ in inner.named_modules()}
    layer = _PARAMETER.split(name)[0] if _PARAMETER.search(name) else name.rpartition(".")[0]
    # An adapter of a wrapped layer names the layer inside.
    layer = layer.removesuffix(".base_layer")
    # A name that the class has needs no guess.
    if layer in modules:
        return name
    decoder = next(path for path, module in inner.named_modules() if module is vlm.decoder)
    # The longest prefix first: a shorter one would leave a part of it in the name.
    for prefix in _DECODERS:
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.startswith(("layers.", "embed_tokens.", "norm.")):
            return f"{decoder}.{rest}"
    # The head is outside the decoder in every class of today.
    head = next((prefix for prefix in _HEADS if name.startswith(f"{prefix}.")), None)
    return name if head is None else f"lm_head{name.removeprefix(head)}"


def to_explicit_config(config: Mapping[str, Any], names: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Build the configuration of a LoRA with its layers under other names: every layer by its full name, with its own
    rank and alpha where they differ.

    Args:
        config: The adapter's own, by key.
        names: Canonical names of the tensors to names in the base.
        folder: The adapter's folder, named in errors.
    """
    if config["peft_type"] != "LORA":
        raise InputError(
            f"{folder / ADAPTER_WEIGHTS}: names of another class than the base's can be taken over of LoRA only"
        )
    layers = {
        _PARAMETER.split(old)[0]: _PARAMETER.split(new)[0] for old, new in names.items() if _PARAMETER.search(old)
    }
    # What chose the layers by other names must not choose again.
    explicit = dict(config) | {"target_modules": sorted(set(layers.values()))}
    explicit |= dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    for key, default in (("rank_pattern", config.get("r")), ("alpha_pattern", config.get("lora_alpha"))):
        values = {new: _pattern_value(config.get(key) or {}, old, default) for old, new in layers.items()}
        explicit[key] = {new: value for new, value in values.items() if value != default}
    # Complete modules beside the adapter are named too, and have moved as the layers have.
    if saved := config.get("modules_to_save"):
        others = {old: new for old, new in names.items() if not _PARAMETER.search(old)}
        paths = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in others.items()}
        explicit["modules_to_save"] = [paths.get(name, name) for name in saved]
    return explicit


def _pattern_value(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """Return the value of the first pattern that fits a layer, as PEFT looks for it."""
    with refusing(f"a pattern of the adapter's ranks or alphas does not fit {layer}"):
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
    return default


def to_saved_name(name: str, expected: set[str]) -> str:
    """Return a tensor's name as PEFT writes it: some without ``.weight`` at the end, those that all layers share (VeRA)
    without the prefix.

    Args:
        name: As :func:`to_base_name` returns it.
        expected: Names under which PEFT saves such an adapter.
    """
    full = _PREFIX + name
    return next((option for option in (full, full.removesuffix(".weight"), name) if option in expected), full)
