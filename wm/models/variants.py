"""Tell layouts apart that share a ``model_type``: which family reads a folder.

Lumina-mGPT 2.0 calls itself ``chameleon`` and has another vocabulary and codec; Emu3.5 calls itself ``Emu3``, as the
authors' own layout of Emu3 does, and is another decoder. Only configurations and names of tensors are looked at.
"""

from collections.abc import Mapping
from pathlib import Path

from wm.errors import InputError
from wm.models.config_bounds import MAX_VOCABULARY
from wm.models.folder_checks import read_json
from wm.models.weights import INDEX, read_header

LUMINA = "lumina_mgpt2"
"""Key of Lumina-mGPT 2.0 among the families, which is no ``model_type`` of its own."""
LUMINA_FIRST_CODE, LUMINA_CODES = 155_000, 16_384
"""Vocabulary id of image code 0 and the number of codes (``FlexARItemProcessor.get_image_token`` and
``MultiModalLogitsProcessor`` in the authors' ``item_processor.py`` and ``inference_solver.py``)."""
LUMINA_CODE_PREFIX = "<MOVQGAN"
"""Beginning of the names of image codes (``ChameleonImageVocabularyMapping.get_image_tokens`` in their
``modeling_chameleon.py``)."""
_EMU3_VOCABULARY = 184_622
_QUERY_NORM = "model.layers.0.self_attn.q_norm.weight"


def family_key(config: Mapping[str, object]) -> object:
    """Return the key of a configuration's family: its ``model_type``, or another where that says too little.

    Args:
        config: The object in ``config.json``.
    """
    return LUMINA if is_lumina(config) else config.get("model_type")


def is_lumina(config: Mapping[str, object]) -> bool:
    """Return whether a configuration is Lumina-mGPT 2.0's: a Chameleon whose vocabulary has MoVQGAN's codes.

    Args:
        config: The object in ``config.json``.
    """
    if config.get("model_type") != "chameleon":
        return False
    # Chameleon, Anole and the first Lumina-mGPT have 65,536 rows.
    size, vocabulary = config.get("vocab_size"), config.get("vocabulary_map")
    if type(size) is int and LUMINA_FIRST_CODE + LUMINA_CODES <= size <= MAX_VOCABULARY:
        return True
    return isinstance(vocabulary, dict) and any(str(name).startswith(LUMINA_CODE_PREFIX) for name in vocabulary)


def is_emu3_5(folder: Path, config: Mapping[str, object]) -> bool:
    """Return whether a folder of ``model_type`` Emu3 is Emu3.5, whose decoder normalises queries and keys.

    Args:
        folder: A model folder; its weights need not be there.
        config: The object in its ``config.json``.
    """
    if config.get("model_type") != "Emu3":
        return False
    # Without weights the vocabulary says it: 131,072 codes instead of 32,768.
    size = config.get("vocab_size")
    return (type(size) is int and size > _EMU3_VOCABULARY) or _QUERY_NORM in _tensor_names(folder)


def _tensor_names(folder: Path) -> set[str]:
    """Return the names of a folder's tensors as far as they can be read; damaged files are reported elsewhere."""
    try:
        # The index names the tensors of all shards, which need not be opened.
        if (folder / INDEX).is_file():
            shards = read_json(folder / INDEX).get("weight_map")
            return set(shards) if isinstance(shards, dict) else set()
        return set(read_header(folder / "model.safetensors"))
    except InputError:
        return set()
