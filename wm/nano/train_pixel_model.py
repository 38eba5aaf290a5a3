"""Train a small vision-language model from nothing to caption pairs of images (the nano base that reads pixels).

The chat and its tokens are those of fine-tuning and scoring; the answer is a caption where it will be an action.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm.images import Pixels
from wm.models.pixels.chats import complete_chat, measure_answers, process
from wm.models.pixels.folders import load_pixel_processor
from wm.models.pixels.model import PixelModel
from wm.nano.pixel_preset import build_pixel_nano, write_pixel_processor
from wm.nano.train_language_model import PretrainSettings, Report, sample_picks, train_from_scratch
from wm.nano.world.actions import vocabulary
from wm.nano.world.documents import sample_document
from wm.training.data.prefetch import prefetch
from wm.training.kernels.autocast import lowered
from wm.training.pixels.loss import pair_losses

Document = tuple[Pixels, Pixels, str]
"""Two images and the caption of what the second one shows."""


def sample_captioned_pairs(count: int, seed: int, tick: Callable[[], object]) -> list[Document]:
    """Sample documents of the toy world that end with a caption: a model that reads pixels makes no image.

    Args:
        count: How many.
        seed: Of the documents.
        tick: Called after each.
    """
    rng = np.random.default_rng([seed, 22])
    documents: list[Document] = []
    while len(documents) < count:
        reading, first, text, second = sample_document(rng)
        # Others have their second image last.
        if reading == "understand":
            documents.append((first, second, text))
            tick()
    return documents


def build_untrained(seed: int, folder: Path) -> PixelModel:
    """Build the nano world's Qwen3-VL with random weights.

    Args:
        seed: Of the weights.
        folder: Where its processor's files are written while it is loaded.
    """
    torch.manual_seed(seed)
    model = build_pixel_nano(vocabulary())
    with tempfile.TemporaryDirectory(dir=folder) as name:
        # Read as that of any other folder is, template and all.
        write_pixel_processor(Path(name), vocabulary())
        return PixelModel(model, load_pixel_processor(Path(name)), "", Path(name))


def pretrain_pixels(
    model: PixelModel, documents: Sequence[Document], settings: PretrainSettings, report: Report
) -> dict[str, float]:
    """Train ``model.module`` in place; the loss is the mean over the captions' tokens and ends.

    Args:
        model: With random weights, all of which are trained.
        documents: Images of one size and their captions.
        settings: Steps, batch and rates.
        report: Called with step and smoothed loss.

    Returns:
        The smoothed final loss and the seconds taken.
    """
    tokenizer = model.processor.tokenizer
    # Measured as scoring measures an action.
    learned = np.array(
        [part.num_tokens for part in measure_answers(tokenizer, model.prefix, [text for *_, text in documents])]
    )

    def build(rows: Tensor) -> tuple[dict[str, Any], Tensor]:
        batch = [documents[row] for row in rows.tolist()]
        texts = [complete_chat(tokenizer, model.prefix, text) for *_, text in batch]
        inputs = process(model.processor, texts, [list(pair[:2]) for pair in batch], padding_side="right")
        return inputs, torch.from_numpy(learned[rows.numpy()])

    def losses() -> Iterator[Tensor]:
        # Images are cut into patches in a thread while the step before runs.
        with closing(prefetch(build, sample_picks(len(documents), settings))) as batches:
            for inputs, learned_B in batches:
                yield _loss(model, inputs, learned_B)

    return train_from_scratch(model.module, losses(), settings, report)


def _loss(model: PixelModel, inputs: dict[str, Any], learned_B: Tensor) -> Tensor:
    ids_BT = inputs.pop("input_ids")
    # The caption and the end are the last tokens before the padding.
    end_B1 = inputs["attention_mask"].sum(dim=1, keepdim=True)
    position_T = torch.arange(ids_BT.shape[1])
    is_learned_BT = (position_T >= end_B1 - learned_B[:, None]) & (position_T < end_B1)
    with lowered():
        loss, _ = pair_losses(
            model,
            ids_BT,
            is_learned_BT,
            torch.ones(ids_BT.shape),
            num_tokens=float(learned_B.sum()),
            inputs=inputs,
        )
    return loss
