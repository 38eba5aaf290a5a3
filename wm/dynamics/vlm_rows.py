"""Score and generate answers after chats with images, through transformers' own model and processor.

One row is a chat with its images and an answer. Not known here: what is asked, and folders.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from wm.dynamics.idm import ScoredAction
from wm.images import Pixels
from wm.models.folders import quiet_transformers
from wm.models.pixels.chats import (
    check_length,
    check_no_special,
    check_pixels,
    complete_chat,
    count_common,
    count_tokens,
    prepare_inputs,
)
from wm.models.pixels.logits import keeps_logits, log_softmax, logits_at

__all__ = [
    "Row",
    "check_no_special",
    "check_pixels",
    "generate_answers",
    "prepare_inputs",
    "score_answers",
    "score_rows",
]


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
    counts = [count_tokens(tokenizer, row.prefix, row.answer, kind) for row in rows]
    inputs = prepare_inputs(
        model,
        processor,
        [complete_chat(tokenizer, row.prefix, row.answer) for row in rows],
        [row.images for row in rows],
        padding_side="right",
    )
    ids_BT, end_B = inputs["input_ids"], inputs["attention_mask"].sum(1)
    for length, count in zip(end_B.tolist(), counts, strict=True):
        check_length(model, length, count)
    # The union of the positions that predict an answer's token: logits of all others are never made.
    positions = sorted(
        {end - 1 - back for end, count in zip(end_B.tolist(), counts, strict=True) for back in range(1, count + 1)}
    )
    position_P = torch.tensor(positions, device=model.device)
    logits_BPV = logits_at(model, inputs, position_P)
    scores = []
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        end = int(end_B[number])
        is_answer_P = (position_P >= end - 1 - count) & (position_P < end - 1)
        logprobs_NV = log_softmax(logits_BPV[number, is_answer_P])
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
    counts = [count_tokens(tokenizer, prefix, answer, kind) for answer in answers]
    full = [
        tokenizer(complete_chat(tokenizer, prefix, text), add_special_tokens=False)["input_ids"] for text in answers
    ]
    shared = min(count_common(prompt_ids, ids) for ids in full)
    # At least one token each: the end.
    tails = [ids[shared:] for ids in full]
    # 2. The chat, once.
    inputs = prepare_inputs(model, processor, [prefix], [images], padding_side="right")
    length = inputs["input_ids"].shape[1] - (len(prompt_ids) - shared)
    dropped = inputs["input_ids"].shape[1] - length
    # Logits of the last position that is kept: those of all would be larger than the model.
    only = {"logits_to_keep": dropped + 1} if keeps_logits(model) else {}
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
        logprobs_SV = log_softmax(torch.cat((last_1V, logits_RSV[row, : len(ids) - 1])))
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
    # Behind the longest chat, since shorter ones are padded before it.
    new_BS = output.sequences[:, inputs["input_ids"].shape[1] :]
    answers = []
    for number, ids in enumerate(new_BS.tolist()):
        # Rows that ended early are filled up to the longest.
        count = next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))
        logprob = sum(
            float(log_softmax(output.logits[at][number])[token].double()) for at, token in enumerate(ids[:count])
        )
        text = tokenizer.decode(ids[:count], skip_special_tokens=True).strip()
        answers.append(ScoredAction(text, logprob, count))
    return answers
