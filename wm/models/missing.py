"""Explain parts that a model folder lacks: where they are, or the command that gets them; nothing is fetched."""

import shlex
from pathlib import Path
from typing import NoReturn

from wm.errors import InputError
from wm.models.unreadable import READ_LAYOUTS

LIQUID_VQGAN = (
    "hf download Junfeng5/Liquid_demo chameleon/vqgan.ckpt chameleon/vqgan.yaml --repo-type space --local-dir FOLDER, "
    "then move FOLDER/chameleon to MODEL/vqgan"
)
"""How to get Chameleon's VQGAN, which Liquid's release leaves out."""
MOVQGAN = "hf download ai-forever/MoVQGAN movqgan_270M.ckpt --local-dir MODEL/movqgan"
"""How to get MoVQGAN, which Lumina-mGPT 2.0's release leaves out."""
EMU3_5_TOKENIZER = "hf download BAAI/Emu3.5-VisionTokenizer --local-dir MODEL/ibq"
"""How to get Emu3.5's image tokenizer, which is a repository of its own."""
_LIQUID_VQGAN_NAMES = ("vqgan.ckpt", "chameleon/vqgan.ckpt", "tokenizer/vqgan.ckpt")


def explain_missing_vqgan(folder: Path) -> NoReturn:
    """Raise :class:`InputError` for a Liquid folder without the folder ``vqgan``.

    Raises:
        InputError: Always; it says where the files are, or how to get them.
    """
    # The files are often there already, in another folder than ``vqgan``.
    misplaced = next((name for name in _LIQUID_VQGAN_NAMES if (folder / name).is_file()), None)
    remedy = (
        f"move {misplaced} and its vqgan.yaml into {folder / 'vqgan'}"
        if misplaced
        else f"the release leaves it out: `{LIQUID_VQGAN}`"
    )
    raise InputError(f"{folder} has no folder vqgan with Chameleon's VQGAN, whose codes Liquid speaks; {remedy}")


def explain_missing_movqgan(folder: Path) -> NoReturn:
    """Raise :class:`InputError` for a Lumina-mGPT 2.0 folder without the folder ``movqgan``.

    Raises:
        InputError: Always; it says how to get the file.
    """
    raise InputError(
        f"{folder} has no folder movqgan with MoVQGAN, whose codes Lumina-mGPT 2.0 speaks; the release leaves it out: "
        f"`{MOVQGAN.replace('MODEL', shlex.quote(str(folder)))}`"
    )


def explain_missing_ibq(folder: Path) -> NoReturn:
    """Raise :class:`InputError` for an Emu3.5 folder without the folder ``ibq``.

    Raises:
        InputError: Always; it says how to get the files.
    """
    raise InputError(
        f"{folder} has no folder ibq with Emu3.5's image tokenizer, which is a repository of its own: "
        f"`{EMU3_5_TOKENIZER.replace('MODEL', shlex.quote(str(folder)))}`; a language model without image codes "
        "cannot serve here"
    )


def explain_missing_codec(folder: Path, family: str) -> NoReturn:
    """Raise :class:`InputError` for a folder whose weights hold no image codec.

    Args:
        folder: A full folder in transformers' layout.
        family: A key of :data:`READ_LAYOUTS`.

    Raises:
        InputError: Always.
    """
    raise InputError(
        f"{folder}: the weights hold no image codec (no tensors model.vqmodel.*); expected language model and codec in "
        f"one folder, as transformers writes it: `{READ_LAYOUTS[family]}`"
    )


def explain_missing_tokenizer(folder: Path) -> NoReturn:
    """Raise :class:`InputError` for a folder without ``tokenizer.json``.

    Raises:
        InputError: Always; where there is a tokenizer of another kind it says how to convert it.
    """
    other = next((name for name in ("tokenizer.model", "emu3.tiktoken", "vocab.json") if (folder / name).is_file()), "")
    hint = ""
    if other:
        code = f"from transformers import AutoTokenizer as T; T.from_pretrained({str(folder)!r}).save_pretrained(OUT)"
        hint = f"; it has {other}, of which transformers makes one: `{code}`"
    raise InputError(f"no tokenizer.json in {folder}{hint}")
