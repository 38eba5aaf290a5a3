"""Propose actions between two images by a model that reads pixels, token by token, as text.

What :class:`wm.dynamics.idm.ProposalStream` is for models with image codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wm.dynamics.idm import ActionToken, describe_token
from wm.dynamics.observation import Observation
from wm.dynamics.pixel_inverse import PixelInverse
from wm.errors import InputError
from wm.sampling.detokenizer import IncrementalDetokenizer
from wm.sampling.noise import Sampling
from wm.sampling.texts import GREEDY


@dataclass(frozen=True)
class _Decoder:
    """A model's vocabulary as :class:`wm.sampling.detokenizer.TextDecoder`."""

    inverse: PixelInverse

    @property
    def tokenizer(self) -> Any:
        # Its names of tokens are reported beside their probabilities.
        return self.inverse.scorer.processor.tokenizer

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.inverse.decode(ids)


class PixelProposals:
    """``num_candidates`` actions between two images as they grow; :meth:`advance` adds a token to each.

    The first one is that of :meth:`wm.dynamics.pixel_inverse.PixelInverse.propose` for the same settings and seed.
    ``prompt_tokens``: how many tokens the actions follow, those of both images among them.

    Args:
        inverse: The model; others may use it between two steps.
        source: The image before.
        target: The image after.
        num_candidates: Number of actions.
        sampling: How a token is sampled; greedy without it.
        seed: Of the noise.
        num_top: How many of the likeliest tokens are reported beside each.
        max_new_tokens: Tokens of an action before its end, at most; fewer where the model has no more positions.

    Raises:
        InputError: The settings cannot be, or both images fill the model's positions.
    """

    def __init__(
        self,
        inverse: PixelInverse,
        source: Observation,
        target: Observation,
        *,
        num_candidates: int = 1,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        self._batch = inverse.start_proposals(
            [source], [target], num_candidates=num_candidates, sampling=sampling, seeds=[seed], num_top=num_top,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
        self.prompt_tokens = self._batch.prompt_tokens
        # Refused before any pass: positions beyond the model's would be garbage, not an error.
        positions = getattr(inverse.scorer.model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        free = positions - self.prompt_tokens
        if free < 2:
            raise InputError(
                f"both images and the question are {self.prompt_tokens:,} tokens, and the model has {positions:,} "
                "positions: no action fits behind them; give smaller images"
            )
        # An end is forced in the last position that is left.
        self._batch.max_new_tokens = min(max_new_tokens, free - 1)
        self._end_ids = inverse.vocabulary.end_ids
        # A text of its own for each: their tokens join differently.
        self._texts = [IncrementalDetokenizer(_Decoder(inverse)) for _ in range(num_candidates)]

    @property
    def is_finished(self) -> bool:
        """Whether all actions have their end."""
        return self._batch.is_finished

    def advance(self) -> list[ActionToken]:
        """Sample the next token of every action that has not ended.

        Returns:
            A token for each of them.
        """
        return [
            describe_token(row, self._texts[row], token, self._end_ids)
            for row, token in enumerate(self._batch.step())
            if token is not None
        ]
