"""Write what ``score`` is measured on: a bench of made images, predictions for it, and random CLIP and DINO."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image

from wm.evaluation.predictions import PredictionRow, prediction_row, write_predictions
from wm.images import Pixels, encode_png
from wm.records import TRIPLET_SCHEMA, TripletRow, triplet_row
from wm.runs import write_json
from wm.tables import write_table

EncoderSize: TypeAlias = Literal["base", "tiny"]

SUBSETS = ("magicbrush", "ag", "something", "whatsup", "kubric")
_ROWS_PER_FILE = 256
_COARSENESS = 8
"""Pixels between two random ones, which are interpolated: noise would make PNG far slower than photographs do."""


def made_image(seed: int, side_px: int) -> Pixels:
    """Make a smooth random image.

    Args:
        seed: Of the random generator.
        side_px: Width and height.

    Returns:
        uint8 RGB.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, side_px // _COARSENESS), max(2, side_px // _COARSENESS), 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC))


def write_bench(folder: Path, num_pairs: int, side_px: int) -> Path:
    """Write triplets of made images in AURORA-Bench's subsets.

    Args:
        folder: Folder of the bench.
        num_pairs: Triplets.
        side_px: Width and height of their images.

    Returns:
        ``folder``.
    """
    # Files as ingestion writes them: no row group is so large that a reader of a few images reads them all.
    for number, begin in enumerate(range(0, num_pairs, _ROWS_PER_FILE)):
        rows: list[TripletRow] = [
            triplet_row(
                triplet_id=f"triplet-{row:06d}",
                dataset="made",
                split="test",
                class_label=SUBSETS[row % len(SUBSETS)],
                action="move the cup",
                origin="human",
                source_image={"bytes": encode_png(made_image(2 * row, side_px)), "path": None},
                target_image={"bytes": encode_png(made_image(2 * row + 1, side_px)), "path": None},
            )
            for row in range(begin, min(begin + _ROWS_PER_FILE, num_pairs))
        ]
        write_table(rows, folder / "triplets" / f"part-{number:05d}.parquet", TRIPLET_SCHEMA)
    return folder


def write_candidates(folder: Path, num_pairs: int, num_candidates: int, side_px: int) -> Path:
    """Write a prediction set for the triplets of :func:`write_bench`.

    Args:
        folder: Folder of the set.
        num_pairs: Triplets.
        num_candidates: Different images of each.
        side_px: Width and height of the images.

    Returns:
        ``folder``.
    """
    for number, begin in enumerate(range(0, num_pairs, _ROWS_PER_FILE)):
        rows = range(begin, min(begin + _ROWS_PER_FILE, num_pairs))
        file = folder / "predictions" / f"part-{number:05d}.parquet"
        write_predictions(_iterate_candidates(rows, num_candidates, side_px), file)
    write_json(folder / "run.json", {"stage": "collect", "counts": {"images": num_pairs * num_candidates}})
    return folder


def _iterate_candidates(rows: range, num_candidates: int, side_px: int) -> Iterator[PredictionRow]:
    for row in rows:
        for candidate in range(num_candidates):
            # Seeds far from the bench's: equal images would be scored once.
            yield prediction_row(
                made_image(10**9 + row * num_candidates + candidate, side_px),
                triplet_id=f"triplet-{row:06d}",
                system="made",
                candidates=[candidate],
                view="full",
                origin="external",
            )


def write_encoders(folder: Path, size: EncoderSize) -> dict[str, Path]:
    """Write CLIP and DINO with random weights, which take as long as trained ones.

    Args:
        folder: Where their folders are made.
        size: ``base``: CLIP ViT-B/32 and DINO ViT-S/16; ``tiny``: two layers of width 32 on 32 pixels.

    Returns:
        Key of the recipe → folder.
    """
    from tokenizers import Tokenizer, models
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip_vision = {"image_size": 32, "patch_size": 8, **small} if size == "tiny" else {}
    # Texts are not measured: their tower is small in both, and knows two words.
    clip_text = {**small, "vocab_size": 4, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    dino = {"image_size": 32, "patch_size": 8, **small} if size == "tiny" else _VIT_S16
    side_px = 32 if size == "tiny" else 224
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # In the released form, so that loading is measured too.
        for part in (
            CLIPModel(CLIPConfig(text_config=clip_text, vision_config=clip_vision, projection_dim=512)),
            CLIPImageProcessorPil(size={"shortest_edge": side_px}, crop_size={"height": side_px, "width": side_px}),
            PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"),
        ):
            part.save_pretrained(folder / "clip")
        ViTModel(ViTConfig(**dino), add_pooling_layer=False).save_pretrained(folder / "dino")
    return {"clip": folder / "clip", "dino": folder / "dino"}


_VIT_S16 = {
    "image_size": 224, "patch_size": 16, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
    "num_attention_heads": 6,
}  # fmt: skip
"""DINO's ViT-S/16. The defaults of transformers' CLIP are ViT-B/32."""
