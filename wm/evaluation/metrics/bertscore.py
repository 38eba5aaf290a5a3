"""Compute BERTScore's F1 of texts (Zhang et al. 2020): greedy matching of contextual token vectors, without idf.

Own code over transformers' encoders, whose figures are those of the ``bert-score`` package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm.errors import InputError
from wm.evaluation.metrics.encoders import load_checked_model, load_tokenizer, read_model_type
from wm.evaluation.metrics.stats import Floats
from wm.models.folder_checks import refusing

ROBERTA_LARGE_LAYER = 17
ROBERTA_LARGE_BASELINE = 0.83122575
"""F1 of random pairs of English sentences at that layer (bert-score, ``rescale_baseline/en/roberta-large.tsv``)."""
_MIN_TOKENS = 3
"""Fewer are the two marks of a text's ends: it is empty, and its score 0 before rescaling."""


@dataclass(frozen=True)
class BertScorer:
    """An encoder of texts with the layer that is compared."""

    model: Any
    tokenizer: Any
    layer: int
    baseline: float | None  # subtracted, and the rest stretched to 1; None: not rescaled
    prefix: str  # what a text begins with, for tokenizers that mark words by the blank before them
    batch_size: int = 32

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> Floats:
        """Score each prediction against its reference.

        Args:
            predictions: The texts to judge.
            references: What they should say.

        Returns:
            F1 of each pair, at most 1; below 0 where it is worse than the baseline.
        """
        values: list[float] = []
        for begin in range(0, len(references), self.batch_size):
            batch = slice(begin, begin + self.batch_size)
            values += self._score_batch(predictions[batch], references[batch])
        scores = np.array(values, dtype=np.float64)
        return scores if self.baseline is None else (scores - self.baseline) / (1 - self.baseline)

    def _score_batch(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        # Both sides in one pass.
        sides = [*predictions, *references]
        vectors = self._embed(sides)
        pairs = zip(vectors[: len(predictions)], vectors[len(predictions) :], strict=True)
        return [_match(predicted, reference) for predicted, reference in pairs]

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Embed texts: unit vectors of the tokens (T, D), and which of them count (T,)."""
        stripped = [text.strip() for text in texts]
        tokens = self.tokenizer(
            [self.prefix + text if text else "" for text in stripped],
            padding=True, truncation=True, max_length=self._max_length(), return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        states = self.model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
        ).hidden_states[self.layer]
        unit_BTD = torch.nn.functional.normalize(states.float(), dim=-1).cpu()
        embedded = []
        # The marks of the two ends may be matched, but do not count themselves.
        ends = torch.tensor([self.tokenizer.cls_token_id, self.tokenizer.sep_token_id])
        for vectors_TD, ids_T, mask_T in zip(
            unit_BTD, tokens["input_ids"].cpu(), tokens["attention_mask"].cpu().bool(), strict=True
        ):
            own_ids = ids_T[mask_T]
            embedded.append((vectors_TD[mask_T], ~torch.isin(own_ids, ends)))
        return embedded

    def _max_length(self) -> int:
        # Two positions before the first token are RoBERTa's own.
        limit = self.model.config.max_position_embeddings - (2 if self.prefix else 0)
        return int(min(self.tokenizer.model_max_length, limit))


def _match(predicted: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> float:
    """Match each token with the most similar one of the other text; return F1."""
    (first_TD, first_T), (second_TD, second_T) = predicted, reference
    if min(len(first_TD), len(second_TD)) < _MIN_TOKENS:
        return 0.0
    # Cosines, as all vectors have length 1.
    similarity = first_TD @ second_TD.T
    precision = float(similarity.max(dim=1).values[first_T].mean())
    recall = float(similarity.max(dim=0).values[second_T].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def load_bertscore(
    folder: str | Path,
    *,
    layer: int | None = None,
    baseline: float | None = None,
    rescale: bool = True,
    device: str = "cpu",
    batch_size: int = 32,
) -> BertScorer:
    """Load an encoder for BERTScore, such as ``roberta-large``.

    Args:
        folder: A local folder in the form of transformers.
        layer: Layer whose vectors are compared; None: 17, which only roberta-large has by itself.
        baseline: F1 of unrelated texts for rescaling; None: that of roberta-large at layer 17.
        rescale: Rescale by the baseline.
        device: Device of torch.
        batch_size: Pairs of a pass.

    Returns:
        The scorer.

    Raises:
        InputError: The folder is missing or holds no such model, or layer or baseline are not known for it.
    """
    from transformers import BertModel, RobertaModel

    path = Path(folder)
    kind = read_model_type(path, ("roberta", "bert"))
    classes: dict[str, Any] = {"roberta": RobertaModel, "bert": BertModel}
    model, _ = load_checked_model(path, classes[kind], kind, device, add_pooling_layer=False)
    config = model.config
    is_large = kind == "roberta" and (config.num_hidden_layers, config.hidden_size) == (24, 1024)
    if layer is None and not is_large:
        raise InputError(f"bertscore: {path} is not roberta-large; give layer, 1 to {config.num_hidden_layers}")
    layer = ROBERTA_LARGE_LAYER if layer is None else layer
    if not 1 <= layer <= config.num_hidden_layers:
        raise InputError(f"bertscore: layer = {layer}, expected 1 to {config.num_hidden_layers}, the layers of {path}")
    if rescale and baseline is None:
        if not (is_large and layer == ROBERTA_LARGE_LAYER):
            raise InputError(
                f"bertscore: no baseline is known for layer {layer} of {path}; give it, or rescale = false"
            )
        baseline = ROBERTA_LARGE_BASELINE
    with refusing(f"{path} has no tokenizer that can be read"):
        tokenizer = load_tokenizer(path)
    prefix = " " if kind == "roberta" else ""
    return BertScorer(model, tokenizer, layer, baseline if rescale else None, prefix, batch_size)
