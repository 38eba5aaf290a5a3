"""Take over PEFT adapters that other programs trained (plain PEFT, LLaMA-Factory, ms-swift).

Such a folder lacks the manifest that names base, codec and task, and its tensors may bear other names: of raw state
dicts, of an older version of the base's class, of the authors' own class. They are brought to the names of today's
class, everything is compared with the base's shapes (of whose weights none is read but the codec's), and a folder is
written that :func:`wm.models.load_model` takes. Nothing is trained, and no value is changed.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from wm.errors import InputError
from wm.models.adapters import ADAPTER_WEIGHTS, attach, quiet_peft, read_adapter_config
from wm.models.folder_checks import read_json, refusing
from wm.models.foreign_names import (
    CODEC,
    LAYER,
    UNUSED,
    canonical_name,
    to_base_name,
    to_explicit_config,
    to_saved_name,
)
from wm.models.identity import base_id_of
from wm.models.layer_patterns import check_patterns
from wm.models.manifest import ADAPTER_CONFIG, MANIFEST, Manifest, fetch_model, is_adapter, name_base, read_manifest
from wm.models.prompts import Task
from wm.models.skeleton import load_skeleton
from wm.models.vlm import UnifiedVLM
from wm.models.weights import read_header, read_stored
from wm.runs import write_json

PEFT_TYPES = ("LORA", "IA3", "LOHA", "LOKR", "ADALORA", "VERA")
"""Kinds of adapters that are taken over."""
TASK_TYPES = (None, "", "CAUSAL_LM")
_UNSUPPORTED = {
    "alora_invocation_tokens": "which switch the adapter on at a token",
    "arrow_config": "a router over several adapters",
    "lora_bias": "which cannot be added into layers without a bias",
    "layer_replication": "which repeats layers of the base",
    "megatron_config": "for layers of Megatron",
    "target_parameters": "adapters of single parameters",
    "use_qalora": "for a quantised base",
}
"""Keys of a LoRA configuration that must not be set: the engine runs the base's own layers."""


@dataclass(frozen=True)
class AdapterConversion:
    """What was taken over. ``renamed``: tensors that got another name; ``unused``: those left out because no prediction
    depends on them."""

    manifest: Manifest
    tensors: int
    renamed: int
    unused: int


def convert_adapter(adapter: str | Path, base: str | Path, out: Path, *, task: Task, home: Path) -> AdapterConversion:
    """Check an adapter folder against a base and write it with its manifest.

    Args:
        adapter: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: Full model folder that it was trained on.
        out: Existing empty folder to write into.
        task: What it was trained for.
        home: Where ``out`` will be in the end; the manifest names the base relative to it.

    Returns:
        What was taken over.

    Raises:
        InputError: It is no adapter of this base, of a kind that is not supported, or pickled.
    """
    # 1. Check what can be checked without the adapter's tensors.
    folder, base_folder = _check_folders(adapter, base)
    config = _read_adapter_config(folder)
    vlm = load_skeleton(base_folder)
    base_id = base_id_of(base_folder)
    _check_tokenizer(folder, vlm)
    check_patterns(config, [name for name, _ in vlm.module.named_modules()], folder / ADAPTER_CONFIG)
    if task == "idm":  # a family that reads no pairs of images refuses here, not in the first job that uses the adapter
        codes = [0] * vlm.tokens_per_image
        vlm.layout("idm", source=codes, target=codes)
    # 2. Bring names and configuration to those of today's class.
    adapted = _adapt(folder, base_folder, vlm, config)
    # 3. Write, and attach what was written to the base's shapes as loading does.
    manifest = Manifest(
        family=vlm.family,
        kind="adapter",
        base_id=base_id,
        codec_id=vlm.codec_id,
        task=task,
        action_slot_tokens=vlm.action_slot_tokens,
        base_path=name_base(base_folder, home),
    )
    tensors = {adapted.saved_names[name]: tensor.contiguous() for name, tensor in adapted.tensors.items()}
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    # The start of training (PiSSA, OLoRA, …) takes numbers, which the shapes lack; it plays no part in the check.
    start = {"init_lora_weights": True} if config["peft_type"] == "LORA" else {}
    write_json(out / ADAPTER_CONFIG, adapted.config | start)
    try:
        with quiet_peft(), _quiet_meta():
            attach(vlm, out, manifest)
    except InputError as error:
        reason = str(error).replace(str(out), str(folder))
        counts = _layer_counts(adapted.saved_names.values(), vlm)
        raise InputError(f"{folder} is no adapter of {base_folder}: {counts}{reason}") from error
    write_json(out / ADAPTER_CONFIG, adapted.config)
    manifest.write(out)
    num_renamed = sum(name != saved_name for name, saved_name in adapted.saved_names.items())
    return AdapterConversion(manifest, len(tensors), num_renamed, adapted.num_unused)


class _Adapted(NamedTuple):
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    """By their names in the file."""
    saved_names: dict[str, str]
    """Name in the file to the name that PEFT gives it today."""
    num_unused: int


def _adapt(folder: Path, base_folder: Path, vlm: UnifiedVLM, config: dict[str, Any]) -> _Adapted:
    """Find the names of an adapter's tensors in today's class, and the configuration that finds these layers."""
    locations = read_header(folder / ADAPTER_WEIGHTS)
    names = {name: canonical_name(name) for name in locations}
    base_names = {name: to_base_name(canonical, vlm) for name, canonical in names.items()}
    unused = {name for name, base_name in base_names.items() if UNUSED.match(base_name)}
    in_codec = [name for name, base_name in base_names.items() if CODEC.match(base_name)]
    tensors = dict(read_stored({name: location for name, location in locations.items() if name not in unused}))
    _check_codec(folder, in_codec, tensors)
    unused |= set(in_codec)
    used = {name: base_name for name, base_name in base_names.items() if name not in unused}
    _check_layers(folder, base_folder, vlm, used.values())
    # Where all names are today's, the adapter's own configuration finds its layers, and is kept as it is.
    if unused or any(base_name != names[name] for name, base_name in used.items()):
        config = to_explicit_config(config, {names[name]: base_name for name, base_name in used.items()}, folder)
    # PEFT's own names, so that its loader finds every tensor.
    expected = _expected(vlm, config, folder)
    saved_names = {name: to_saved_name(base_name, expected) for name, base_name in used.items()}
    num_doubles = len(saved_names) - len(set(saved_names.values()))
    if num_doubles:
        raise InputError(f"{folder / ADAPTER_WEIGHTS}: {num_doubles} tensors have a name that another one has too")
    return _Adapted(config, {name: tensors[name] for name in used}, saved_names, len(unused))


def _check_folders(adapter: str | Path, base: str | Path) -> tuple[Path, Path]:
    folder, base_folder = fetch_model(adapter), fetch_model(base)
    for key, path in (("adapter", folder), ("base", base_folder)):
        if not path.is_dir():
            raise InputError(f"{key} = {str(path)!r}: no such folder")
    # Training programs write an adapter for each checkpoint into a folder of their own.
    if not is_adapter(folder):
        inside = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
        hint = f"; it has adapters in {', '.join(inside[:5])}" if inside else ""
        raise InputError(f"adapter = {str(folder)!r} has no {ADAPTER_CONFIG}, so it is no PEFT adapter{hint}")
    if is_adapter(base_folder):
        raise InputError(f"base = {str(base_folder)!r} is an adapter itself; expected the full model it was trained on")
    # It names its base already; writing another would hide that.
    if read_manifest(folder) is not None:
        raise InputError(f"adapter = {str(folder)!r} has a {MANIFEST} already: use it as it is")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = folder / "adapter_model.bin"
        hint = (
            f"; {pickled.name} is pickled and never read: write it anew by safetensors.torch.save_file("
            f"torch.load({pickled.name!r}, weights_only=True), {ADAPTER_WEIGHTS!r})"
        )
        raise InputError(f"no {ADAPTER_WEIGHTS} in {folder}{hint if pickled.is_file() else ''}")
    return folder, base_folder


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the configuration, of a kind and with keys that this version of PEFT knows and the engine can run."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config, where = read_json(folder / ADAPTER_CONFIG), folder / ADAPTER_CONFIG
    kind = config.get("peft_type")
    # Others have not been compared with their program's own predictions.
    if kind not in PEFT_TYPES:
        raise InputError(f"{where}: peft_type = {kind!r}; supported: {', '.join(PEFT_TYPES)}")
    # Another task has another head, or its own arguments.
    if config.get("task_type") not in TASK_TYPES:
        raise InputError(f"{where}: task_type = {config['task_type']!r}; expected CAUSAL_LM or none")
    for key, meaning in _UNSUPPORTED.items():
        if config.get(key):
            raise InputError(f"{where}: {key} = {config[key]!r:.60}, {meaning}, is not supported")
    known_keys = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__.keys() | {"peft_type", "auto_mapping"}
    # PEFT would pass over a key of a later version, whatever it does to the layers.
    unknown = sorted(
        key for key, value in config.items() if key not in known_keys and value not in (None, False, {}, [])
    )
    if unknown:
        raise InputError(f"{where}: {unknown[0]} = {config[unknown[0]]!r:.60} is unknown to the installed PEFT")
    # The checks of every adapter come before PEFT builds anything: no code, no sizes that cannot be.
    read_adapter_config(folder, {name: entry.shape for name, entry in read_header(folder / ADAPTER_WEIGHTS).items()})
    return config


def _check_tokenizer(folder: Path, vlm: UnifiedVLM) -> None:
    """Refuse an adapter whose own tokenizer, if one is beside it, gives a token another id than the base's."""
    if not (folder / "tokenizer.json").is_file():
        return
    values = read_json(folder / "tokenizer.json")
    # The file's own numbers: building the tokenizer takes seconds.
    model = values.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    own: dict[str, int] = dict(words) if isinstance(words, dict) else {}
    with refusing(f"{folder / 'tokenizer.json'} is no tokenizer"):
        own |= {token["content"]: token["id"] for token in values.get("added_tokens") or []}
    # Another numbering would make other words of the same ids, without an error.
    base = vlm.tokenizer.get_vocab()
    others = sorted(name for name, number in own.items() if base.get(name) != number)
    if others:
        theirs = base.get(others[0], "none")
        raise InputError(
            f"{folder / 'tokenizer.json'}: {len(others)} tokens have another id than in the base, {others[0]!r} among "
            f"them ({own[others[0]]}, in the base {theirs})"
        )


def _check_codec(folder: Path, names: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse an adapter that changes the image codec. One that a list of layer names put there stays at its start,
    where its second factor is zero: it is left out."""
    for name in names:
        # A product with zeros adds nothing, whatever its other factor is.
        if "lora_B" in name and not tensors[name].any():
            continue
        if "lora_A" in name and not tensors.get(name.replace("lora_A", "lora_B"), tensors[name]).any():
            continue
        raise InputError(f"adapter {folder} changes the image codec by {name}: its codes would be no one's")


def _check_layers(folder: Path, base: Path, vlm: UnifiedVLM, names: Iterable[str]) -> None:
    count = len(vlm.decoder.layers)
    last = max((int(number) for name in names for number in LAYER.findall(name)), default=-1)
    if last >= count:
        raise InputError(f"adapter {folder} has tensors of {last + 1} layers, but base {base} has {count}")


def _layer_counts(names: Iterable[str], vlm: UnifiedVLM) -> str:
    """Say, for a message, if the adapter stops before the base does."""
    last = max((int(number) for name in names for number in LAYER.findall(name)), default=-1)
    count = len(vlm.decoder.layers)
    return f"it has tensors of {last + 1} layers, the base has {count}; " if last + 1 < count else ""


def _expected(vlm: UnifiedVLM, config: Mapping[str, Any], folder: Path) -> set[str]:
    """List the names under which PEFT saves such an adapter of the base."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    # PEFT itself is asked, on a copy without numbers: names differ by kind and version.
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    values = {key: value for key, value in config.items() if key in kind.__dataclass_fields__}
    if config["peft_type"] == "LORA":
        values["init_lora_weights"] = True
    with refusing(f"adapter {folder} does not fit its base"), quiet_peft(), _quiet_meta():
        adapted = PeftModel(copy.deepcopy(vlm.module), kind(**values | {"inference_mode": True}))
        return set(get_peft_model_state_dict(adapted, save_embedding_layers=False))


@contextmanager
def _quiet_meta() -> Iterator[None]:
    """Torch warns of numbers that are copied to tensors without any, which is the point of a check of shapes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*non-meta parameter.*no-op")
        yield
