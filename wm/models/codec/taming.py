"""Read ``vqgan.ckpt`` and ``vqgan.yaml``: Chameleon's image tokenizer as its release and Liquid's have it.

The checkpoint is that of taming-transformers: ``state_dict`` with ``encoder.*``, ``decoder.*``,
``quantize.embedding.weight``, ``quant_conv.*``, ``post_quant_conv.*`` and, if training left them in, ``loss.*``,
which are ignored. The tensors have the names that :class:`wm.models.codec.vqgan.VQGAN` has.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from wm.errors import InputError
from wm.models.config_bounds import check_config
from wm.models.folder_checks import one_line, refusing
from wm.models.pickled import check_downloaded, read_pickled, tensors_of

VQGAN_CKPT, VQGAN_YAML = "vqgan.ckpt", "vqgan.yaml"
IGNORED_PREFIX = "loss."
_RENAMED = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "z_channels": "latent_channels",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "resolution": "resolution",
}
_FIXED = {"in_channels": 3, "out_ch": 3, "double_z": False, "use_linear_attn": False, "resamp_with_conv": True}
_FIXED |= {"give_pre_end": False, "tanh_out": False}
"""The architecture that the code builds."""
_DEFAULTS = _FIXED | {"double_z": True, "in_channels": None, "out_ch": None}
"""What a file means that leaves a key out."""
MAX_YAML_BYTES = 1 << 20
"""The largest ``vqgan.yaml`` that is read; the released one has 500 bytes."""


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Read YAML without aliases, which let a file of a kilobyte describe gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class VqganCheckpoint:
    """What ``vqgan.ckpt`` holds."""

    file: Path
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...]
    """Names of tensors of its training (``loss.*``), which play no part here."""


def read_vqgan_checkpoint(path: Path) -> VqganCheckpoint:
    """Read the tensors of ``vqgan.ckpt``; ``path`` is the file or a folder that holds it (or its ``tokenizer``)."""
    file = vqgan_file(path)
    value = read_pickled(file)
    # Training saves more beside it; a file that was cleaned holds the tensors themselves.
    state = value.get("state_dict", value)
    if not isinstance(state, dict):
        raise InputError(f"{file}: state_dict is a {type(state).__name__}, expected a dictionary of tensors")
    # What its training left behind plays no part.
    entries = {name: entry for name, entry in state.items() if not str(name).startswith(IGNORED_PREFIX)}
    tensors = tensors_of(entries, file)
    if not any(name.startswith(("encoder.", "decoder.")) for name in tensors):
        raise InputError(f"{file} is no VQGAN checkpoint: expected state_dict with encoder.* and decoder.*")
    return VqganCheckpoint(file, tensors, tuple(sorted(set(map(str, state)) - set(tensors))))


def vqgan_file(path: Path) -> Path:
    """Return ``path`` if it is a file, else the ``vqgan.ckpt`` in it or in its ``tokenizer`` folder."""
    # A path that names nothing is reported as a file that is missing.
    if not path.is_dir():
        check_downloaded(path)
        return path
    for folder in (path, path / "tokenizer"):
        if (folder / VQGAN_CKPT).is_file():
            return folder / VQGAN_CKPT
    raise InputError(f"no {VQGAN_CKPT} in {path}")


def read_vqgan_config(file: Path) -> ChameleonVQVAEConfig:
    """Read the configuration in a ``vqgan.yaml``.

    Args:
        file: Holds ``model.params`` with its ``ddconfig``.

    Returns:
        The configuration under transformers' names.

    Raises:
        InputError: It cannot be read, or describes another architecture than Chameleon's.
    """
    check_downloaded(file)
    size = file.stat().st_size
    if size > MAX_YAML_BYTES:
        raise InputError(f"{file} has {size:,} bytes, expected a YAML file of at most {MAX_YAML_BYTES:,}")
    try:
        values = yaml.load(file.read_text(), Loader=_PlainLoader)
        params: dict[str, Any] = values["model"]["params"]
        ddconfig: dict[str, Any] = params["ddconfig"]
        renamed = {ours: ddconfig.get(theirs) for theirs, ours in _RENAMED.items()}
        sizes = {"embed_dim": params["embed_dim"], "num_embeddings": params["n_embed"]}
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = one_line(error)
        raise InputError(f"{file}: expected model.params with embed_dim, n_embed and ddconfig: {reason}") from error
    # Remapped codes are other numbers for the same vectors.
    if params.get("remap") is not None:
        raise InputError(f"{file}: remap is {params['remap']!r}; a remapped codebook is not supported")
    # The architecture is fixed in code: what a file says otherwise would be another model's codes.
    for name, expected in _FIXED.items():
        value = ddconfig.get(name, _DEFAULTS.get(name))
        if value != expected:
            raise InputError(f"{file}: ddconfig.{name} is {value!r:.80}, expected {expected!r} (Chameleon's tokenizer)")
    # Other kinds have other tensors, or none.
    attention = ddconfig.get("attn_type", "vanilla")
    if attention not in ("vanilla", "none"):
        raise InputError(f"{file}: ddconfig.attn_type is {attention!r}, expected 'vanilla' or 'none'")
    return _config({**renamed, **sizes, "attn_type": attention}, file)


def _config(values: dict[str, Any], file: Path) -> ChameleonVQVAEConfig:
    # Checked by hand: transformers takes texts and fractions here, and fails later.
    lists = ("channel_multiplier", "attn_resolutions")
    values["attn_resolutions"] = values["attn_resolutions"] or []
    wrong = [
        name
        for name, value in values.items()
        if name != "attn_type"
        and not (
            isinstance(value, list) and all(type(item) is int for item in value)
            if name in lists
            else type(value) is int and value >= (0 if name == "num_res_blocks" else 1)
        )
    ]
    if wrong or not values["channel_multiplier"]:
        name = wrong[0] if wrong else "channel_multiplier"
        raise InputError(f"{file}: {name} is {values[name]!r}, expected whole numbers")
    check_config(values, file)
    with refusing(f"{file} is no configuration of a VQGAN"):
        return ChameleonVQVAEConfig(**values, double_latent=False)


def yaml_beside(file: Path) -> Path:
    """Return the ``vqgan.yaml`` in the folder of a ``vqgan.ckpt``."""
    return file.parent / VQGAN_YAML
