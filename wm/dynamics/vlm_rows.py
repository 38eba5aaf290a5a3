"""Score and generate answers after chats with images, through transformers' own model and processor.

One row is a chat with its images and an answer. Not known here: what is asked, and folders.
"""

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wm.dynamics.idm import ScoredAction
from wm.errors import InputError
from wm.images import Pixels
from wm.models.folders import quiet_transformers


class Row(NamedTuple):
    """A chat as the model's template writes it, up to where the answer begins, its images, and an answer."""

    prefix: str
    images: Sequence[Pixels]
    answer: str


@torch.no_grad()
def score_rows(model: Any, processor: Any, rows: Sequence[Row], *, kind: str = "action") -> list[ScoredAction]:
    """Score each answer and the end token after its chat, in one pass.

    Rows are padded on the right: neither their order nor their number changes a score, up to rounding.

    Args:
        model: Of transformers, in evaluation mode.
        processor: Its processor, whose tokenizer has tokens for padding and the end.
        rows: One or more.
        kind: What an answer is, for errors.

    Returns:
        Sums of log-probabilities in nats, normalised over the complete vocabulary in float32, or in the model's type if
        that is wider.

    Raises:
        InputError: An answer is empty, or holds a special token.
    """
    tokenizer = processor.tokenizer
    counts = [_count_tokens(tokenizer, row, kind) for row in rows]
    inputs = prepare_inputs(
        model,
        processor,
        [f"{row.prefix}{row.answer}{tokenizer.eos_token}" for row in rows],
        [row.images for row in rows],
        padding_side="right",
    )
    ids_BT, end_B = inputs["input_ids"], inputs["attention_mask"].sum(1)
    # The union of the positions that predict an answer's token: logits of all others are never made.
    positions = sorted(
        {end - 1 - back for end, count in zip(end_B.tolist(), counts, strict=True) for back in range(1, count + 1)}
    )
    position_P = torch.tensor(positions, device=model.device)
    logits_BPV = _logits(model, inputs, position_P)
    scores = []
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        end = int(end_B[number])
        is_answer_P = (position_P >= end - 1 - count) & (position_P < end - 1)
        logprobs_NV = _log_softmax(logits_BPV[number, is_answer_P])
        logprob_N = logprobs_NV.gather(1, ids_BT[number, end - count : end, None])[:, 0].double()
        scores.append(ScoredAction(row.answer, float(logprob_N.sum()), count))
    return scores


@torch.no_grad()
def score_answers(
    model: Any, processor: Any, prefix: str, images: Sequence[Pixels], answers: Sequence[str], *, kind: str
) -> list[ScoredAction]:
    """Score several answers and their end tokens after one chat, whose images and words are read once.

    Args:
        model: Of transformers, in evaluation mode.
        processor: Its processor.
        prefix: The chat, up to where the answer begins.
        images: Of the chat.
        answers: One or more.
        kind: What an answer is, for errors.

    Returns:
        As :func:`score_rows` scores each of them.

    Raises:
        InputError: An answer is empty, or holds a special token.
    """
    tokenizer = processor.tokenizer
    prompt_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    # 1. What follows the chat. A tokenizer may join its last characters with an answer's first ones: those tokens are
    # taken from the chat, where one answer needs it, and read again with all.
    counts = [_count_tokens(tokenizer, Row(prefix, images, answer), kind) for answer in answers]
    full = [
        tokenizer(f"{prefix}{text}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"] for text in answers
    ]
    shared = min(_count_common(prompt_ids, ids) for ids in full)
    tails = [ids[shared:] for ids in full]
    # 2. The chat, once.
    inputs = prepare_inputs(model, processor, [prefix], [images], padding_side="right")
    length = inputs["input_ids"].shape[1] - (len(prompt_ids) - shared)
    dropped = inputs["input_ids"].shape[1] - length
    # Logits of the last position that is kept: those of all would be larger than the model.
    only = {"logits_to_keep": dropped + 1} if _keeps_logits(model) else {}
    output = model(**inputs, use_cache=True, **only)
    cache, last_1V = output.past_key_values, output.logits[:, -1 - dropped]
    if dropped:
        cache.crop(-dropped)
    # 3. The answers behind it, padded on the right: attention is causal, so that padding changes nothing before it.
    longest = max(map(len, tails))
    pad = tokenizer.pad_token_id
    ids_RS = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in tails], device=model.device)
    cache.batch_repeat_interleave(len(tails))
    # Without a mask: nothing is padded before, and families with positions of their own count on from the cache.
    logits_RSV = model(input_ids=ids_RS, past_key_values=cache, use_cache=True).logits
    scores = []
    for row, (answer, ids, count) in enumerate(zip(answers, tails, counts, strict=True)):
        # The first token is predicted by the chat's last one.
        logprobs_SV = _log_softmax(torch.cat((last_1V, logits_RSV[row, : len(ids) - 1])))
        logprob_S = logprobs_SV.gather(1, ids_RS[row, : len(ids), None])[:, 0].double()
        # Tokens that were taken from the chat are no part of the answer.
        scores.append(ScoredAction(answer, float(logprob_S[len(ids) - count :].sum()), count))
    return scores


@torch.no_grad()
def generate_answers(
    model: Any, processor: Any, prefixes: Sequence[str], images: Sequence[Sequence[Pixels]], *, max_new_tokens: int
) -> list[ScoredAction]:
    """Generate the greedy answer after each chat, in one batch.

    Rows are padded on the left and masked, so that neither their order nor their number changes an answer. Settings of
    the folder's ``generation_config.json`` (sampling, a penalty on repetitions, …) are not used, its end tokens are.

    Args:
        model: Of transformers, in evaluation mode.
        processor: Its processor.
        prefixes: Chats, up to where the answer begins.
        images: Of each chat.
        max_new_tokens: Tokens after which an answer is cut off.

    Returns:
        The answers with the log-probability of their tokens, the end among them where it came.
    """
    from transformers import GenerationConfig

    tokenizer = processor.tokenizer
    inputs = prepare_inputs(model, processor, prefixes, images, padding_side="left")
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])}
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id,
        use_cache=True, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    folder_settings = model.generation_config
    # In its place, as transformers would fill what is left open in with the folder's penalties and lengths.
    model.generation_config = greedy
    try:
        with quiet_transformers():
            output = model.generate(**inputs)
    finally:
        model.generation_config = folder_settings
    new_BS = output.sequences[:, inputs["input_ids"].shape[1] :]
    answers = []
    for number, ids in enumerate(new_BS.tolist()):
        count = next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))
        logprob = sum(
            float(_log_softmax(output.logits[at][number])[token].double()) for at, token in enumerate(ids[:count])
        )
        text = tokenizer.decode(ids[:count], skip_special_tokens=True).strip()
        answers.append(ScoredAction(text, logprob, count))
    return answers


def prepare_inputs(
    model: Any, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Pixels]], *, padding_side: str
) -> dict[str, Any]:
    """Prepare the inputs of a batch on the model's device, in its type.

    Args:
        model: The model.
        processor: Its processor.
        texts: Chats, all written by one template.
        images: Of each chat.
        padding_side: ``left`` or ``right``.
    """
    inputs = processor(
        text=list(texts),
        images=[list(of) for of in images],
        padding=True,
        padding_side=padding_side,
        # The template may have written the beginning, which must not come twice.
        add_special_tokens=not _begins(texts[0], processor.tokenizer.bos_token),
        return_tensors="pt",
    )
    # Integers are ids and masks, which have no other type.
    return {name: _move_to(value, model.device, model.dtype) for name, value in inputs.items()}


def check_pixels(name: str, image: Any) -> None:
    """Raise :class:`InputError` unless an image is uint8 RGB.

    Args:
        name: Of the image, for errors.
        image: Any array.
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"{name} image: expected uint8 pixels (H, W, 3), got {array.dtype} {array.shape}")


def _logits(model: Any, inputs: dict[str, Any], position_P: Tensor) -> Tensor:
    """Compute logits (B, P, V) at these positions of every row."""
    # Logits of all positions would be larger than the model; older classes have no choice.
    if _keeps_logits(model):
        return model(**inputs, use_cache=False, logits_to_keep=position_P).logits  # type: ignore[no-any-return]
    return model(**inputs, use_cache=False).logits[:, position_P]  # type: ignore[no-any-return]


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in signature(model.forward).parameters


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)


def _count_tokens(tokenizer: Any, row: Row, kind: str) -> int:
    """Count the tokens of an answer and the end: those after the part that the chat alone has in common."""
    if not row.answer.strip():
        raise InputError(f"{kind} {row.answer!r} is empty; expected some words")
    # A client's text must not end the answer or open another image.
    check_no_special(tokenizer, row.answer, kind)
    # A tokenizer may join the prompt's last characters with the answer's first: only the common part is prompt.
    prompt_ids = tokenizer(row.prefix, add_special_tokens=False)["input_ids"]
    full_ids = tokenizer(f"{row.prefix}{row.answer}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    return len(full_ids) - _count_common(prompt_ids, full_ids)


def check_no_special(tokenizer: Any, text: str, kind: str) -> None:
    """Raise :class:`InputError` if a text holds a special token of the model.

    Args:
        tokenizer: The model's.
        text: Of anybody.
        kind: What it is, for errors.
    """
    # Placeholders of images are added tokens, which not every folder lists among its special ones.
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if any(token in text for token in {*tokenizer.all_special_tokens, *added}):
        raise InputError(f"{kind} {text!r:.80} holds a special token of the model")


def _move_to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    # Processors also return lists, such as sizes of images.
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _begins(text: str, bos: str | None) -> bool:
    """Return whether the template has written the beginning-of-sequence token."""
    return bool(bos) and text.startswith(str(bos))


def _count_common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs: Iterator[tuple[int, int]] = zip(first, second, strict=False)
    return next((index for index, (token, other) in enumerate(pairs) if token != other), min(len(first), len(second)))
