"""Chats about two images whose vision features are known: token ids, positions, and what several of them share.

Shape suffixes: R rows, T tokens of a row, P scored positions, V vocabulary.
"""

import copy
from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wm.dynamics.vlm_images import FeatureStore, ImageFeatures
from wm.dynamics.vlm_positions import PositionFinder
from wm.dynamics.vlm_proposals import Prompts
from wm.images import Pixels
from wm.models.pixels.chats import begins, check_length, count_common, prepare_inputs
from wm.models.pixels.logits import keeps_logits, log_softmax


class Chat(NamedTuple):
    """A chat about two images as the language model reads it."""

    ids: list[int]
    images: tuple[ImageFeatures, ImageFeatures]
    num_answer: int
    """Tokens at the end that are the answer's."""
    positions: Tensor | None
    """Positions in time, height and width, where the class has such."""
    types: list[int] | None
    """Kind of each token, where the class asks for it."""


class PairReader:
    """Writes and reads chats about two images.

    Args:
        model: Of transformers, in evaluation mode.
        processor: Its processor.
        prefix: The chat up to where the answer begins, with placeholders of two images.
        store: Features of images.
    """

    def __init__(self, model: Any, processor: Any, prefix: str, store: FeatureStore) -> None:
        self.model, self.processor, self.prefix, self.store = model, processor, prefix, store
        self._finder = PositionFinder(model)
        # Gemma 3 lets the tokens of one image attend to each other.
        self._needs_types = "token_type_ids" in signature(model.forward).parameters
        self._adds_special = not begins(prefix, processor.tokenizer.bos_token)

    def write(
        self, pairs: Sequence[tuple[ImageFeatures, ImageFeatures]], answers: Sequence[str], counts: Sequence[int]
    ) -> list[Chat]:
        """Write chats.

        Args:
            pairs: The images of each.
            answers: What follows the prompt: an answer with its end, or nothing.
            counts: Tokens of each answer.

        Raises:
            InputError: A chat has more tokens than the model has positions.
        """
        # As text first: tokens may join across the edge of what stands for an image.
        placeholders = [image.placeholder for pair in pairs for image in pair]
        texts, _ = self.processor.get_text_with_replacements(
            [f"{self.prefix}{answer}" for answer in answers], placeholders
        )
        rows = self.processor.tokenizer(texts, add_special_tokens=self._adds_special)["input_ids"]
        for ids, count in zip(rows, counts, strict=True):
            check_length(self.model, len(ids), count)
        needs_types = self._needs_types or self._finder.needs_types
        types = self.processor.create_mm_token_type_ids(rows) if needs_types else [None] * len(rows)
        chats = []
        for ids, pair, count, of in zip(rows, pairs, counts, types, strict=True):
            positions = None
            # Of the complete chat, so that a tail behind a cache counts on from there.
            if self._finder.has_axes:
                ids_1T = torch.tensor([ids])
                types_1T = torch.tensor([of]) if of is not None else None
                grids = [image.grid_thw for image in pair]
                positions = self._finder.find(ids_1T, torch.ones_like(ids_1T), types_1T, grids)[:, 0]
            chats.append(Chat(ids, pair, count, positions, of if self._needs_types else None))
        return chats

    def find_shared(self, chats: Sequence[Chat]) -> int:
        """Count the tokens that all chats begin with and that need not be read again for each.

        Args:
            chats: Of one source; of one target too, or of several.
        """
        first = chats[0]
        shared = min(count_common(first.ids, chat.ids) for chat in chats)
        # Equal tokens stand for different images from the second one on.
        if any(chat.images[1] is not first.images[1] for chat in chats):
            is_image = [token == self.store.image_token_id for token in first.ids]
            before = [index for index, flag in enumerate(is_image) if flag][len(first.images[0].features)]
            shared = min(shared, before)
        # The last token before an answer predicts its first one.
        return min(shared, *(len(chat.ids) - chat.num_answer - 1 for chat in chats))

    def read_shared(self, chat: Chat, length: int) -> Any:
        """Read the first tokens of a chat and return the cache.

        Args:
            chat: One of those that share them.
            length: Number of tokens.
        """
        # Nothing is predicted here: the fewest logits that can be asked for.
        only = {"logits_to_keep": 1} if keeps_logits(self.model) else {}
        inputs = self._batch([chat._replace(ids=chat.ids[:length])], 0)
        return self.model(**inputs, use_cache=True, **only).past_key_values

    def score(self, chats: Sequence[Chat], start: int = 0, cache: Any = None) -> list[float]:
        """Sum the log-probabilities of each chat's answer, in nats.

        Rows are padded on the right: attention is causal, so that padding changes nothing before it.

        Args:
            chats: All of the same first ``start`` tokens.
            start: Tokens that are in the cache.
            cache: What :meth:`read_shared` has returned; it is not changed.
        """
        # The union of the positions that predict an answer's token, counted from `start` on.
        lengths = [len(chat.ids) - start for chat in chats]
        positions = sorted(
            {
                length - 1 - back
                for length, chat in zip(lengths, chats, strict=True)
                for back in range(1, chat.num_answer + 1)
            }
        )
        inputs = self._batch(chats, start)
        if cache is not None:
            inputs["past_key_values"] = _repeat(cache, len(chats))
        position_P = torch.tensor(positions, device=self.model.device)
        # Logits of all positions would be larger than the model; some classes have no choice.
        has_choice = keeps_logits(self.model)
        only = {"logits_to_keep": position_P} if has_choice else {}
        logits_RPV = self.model(**inputs, use_cache=cache is not None, **only).logits
        logits_RPV = logits_RPV if has_choice else logits_RPV[:, position_P]
        sums = []
        for row, (length, chat) in enumerate(zip(lengths, chats, strict=True)):
            is_answer_P = (position_P >= length - 1 - chat.num_answer) & (position_P < length - 1)
            ids_N = inputs["input_ids"][row, length - chat.num_answer : length]
            logprob_N = log_softmax(logits_RPV[row, is_answer_P]).gather(1, ids_N[:, None])[:, 0]
            sums.append(float(logprob_N.double().sum()))
        return sums

    def to_prompts(self, chats: Sequence[Chat]) -> Prompts:
        """Build the inputs of chats without answers, padded on the left.

        Args:
            chats: One or more.
        """
        device, pad_id = self.model.device, self.processor.tokenizer.pad_token_id
        longest = max(len(chat.ids) for chat in chats)
        gaps = [longest - len(chat.ids) for chat in chats]
        ids = [[*[pad_id] * gap, *chat.ids] for gap, chat in zip(gaps, chats, strict=True)]
        mask_BT = torch.tensor([[*[0] * gap, *[1] * (longest - gap)] for gap in gaps])
        inputs: dict[str, Any] = {"input_ids": torch.tensor(ids, device=device)}
        inputs |= self.store.to_inputs([image for chat in chats for image in chat.images])
        if self._finder.has_axes:
            positions = torch.zeros(3, len(chats), longest, dtype=torch.int64)
            for row, (gap, chat) in enumerate(zip(gaps, chats, strict=True)):
                if chat.positions is not None:
                    positions[:, row, gap:] = chat.positions
            next_B = positions.amax((0, 2)) + 1
        else:
            positions = (mask_BT.cumsum(1) - 1).clamp(min=0)
            next_B = positions[:, -1] + 1
        inputs["position_ids"] = positions.to(device)
        if self._needs_types:
            types = [[*[0] * gap, *(chat.types or [])] for gap, chat in zip(gaps, chats, strict=True)]
            inputs["token_type_ids"] = torch.tensor(types, device=device)
        return Prompts(inputs, mask_BT.to(device), next_B.to(device), self._finder.has_axes)

    def _batch(self, chats: Sequence[Chat], start: int) -> dict[str, Any]:
        """Build the model's inputs of the tokens from ``start`` on, padded on the right."""
        device, pad_id = self.model.device, self.processor.tokenizer.pad_token_id
        tails = [chat.ids[start:] for chat in chats]
        longest = max(map(len, tails))
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids in tails], device=device)
        }
        images = [self._find_images(chat, ids, start) for chat, ids in zip(chats, tails, strict=True)]
        inputs |= self.store.to_inputs([image for of in images for image in of])
        if self._finder.has_axes:
            positions_3RT = torch.zeros(3, len(chats), longest, dtype=torch.int64)
            for row, (chat, ids) in enumerate(zip(chats, tails, strict=True)):
                if chat.positions is not None:
                    positions_3RT[:, row, : len(ids)] = chat.positions[:, start : start + len(ids)]
            inputs["position_ids"] = positions_3RT.to(device)
        if self._needs_types:
            rows = [[*(chat.types or [])[start : start + len(ids)], *[0] * (longest - len(ids))]
                    for chat, ids in zip(chats, tails, strict=True)]  # fmt: skip
            inputs["token_type_ids"] = torch.tensor(rows, device=device)
        return inputs

    def _find_images(self, chat: Chat, ids: Sequence[int], start: int) -> list[ImageFeatures]:
        """Find the images whose tokens are among ``ids``: those before them are in the cache."""
        count = ids.count(self.store.image_token_id)
        images = []
        # From the side that is read: a shared beginning holds the first image, a tail the last one.
        for image in chat.images[::-1] if start else chat.images:
            if count < len(image.features):
                break
            count -= len(image.features)
            images.append(image)
        return images[::-1] if start else images


def _repeat(cache: Any, rows: int) -> Any:
    """Repeat the one row of a cache, which stays as it is."""
    # transformers extends a cache in place, and other rows begin from the same one.
    repeated = copy.deepcopy(cache)
    if rows > 1:
        repeated.batch_repeat_interleave(rows)
    return repeated


def read_prompts(model: Any, processor: Any, prefix: str, images: Sequence[Sequence[Pixels]]) -> Prompts:
    """Build the inputs of chats by the processor alone, for classes whose features cannot be kept.

    Args:
        model: Of transformers.
        processor: Its processor.
        prefix: The chat up to where the answer begins.
        images: Two of each chat.
    """
    inputs = prepare_inputs(model, processor, [prefix] * len(images), images, padding_side="left")
    mask_BT, finder = inputs.pop("attention_mask"), PositionFinder(model)
    check_length(model, int(mask_BT.sum(1).max()), 0)
    grids = inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else []
    types_BT = inputs.get("mm_token_type_ids")
    types_BT = types_BT.cpu() if types_BT is not None else None
    positions = finder.find(inputs["input_ids"].cpu(), mask_BT.cpu(), types_BT, grids)
    next_B = (positions.amax((0, 2)) if finder.has_axes else positions[:, -1]) + 1
    inputs["position_ids"] = positions.to(model.device)
    return Prompts(inputs, mask_BT, next_B.to(model.device), finder.has_axes)
