"""Write the chat that asks a pixel-reading model for an action, and make its tokens: the same for training and scoring.

Such a model is a vision-language one of transformers with its own processor and chat template. Folders are not known
here, nor what is done with the tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wm.errors import InputError
from wm.images import Pixels
from wm.models.folder_checks import one_line

PROMPT = (
    "The first image shows a scene before an action, the second one the same scene after it. "
    "Which action was done? Answer with the action alone."
)
"""The question, after the two images; ours, the paper does not print one for these models."""


def build_chat(prompt: str = PROMPT) -> list[dict[str, object]]:
    """Build the messages with two images and the question.

    Args:
        prompt: The question.
    """
    # Images first, as the models' own examples have them.
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def write_chat(processor: Any, prompt: str = PROMPT) -> str:
    """Write the chat with both images and the question by the model's template, up to where the answer begins.

    Args:
        processor: The model's.
        prompt: The question.
    """
    text: str = processor.apply_chat_template(build_chat(prompt), add_generation_prompt=True, tokenize=False)
    return text


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
    return move_inputs(process(processor, texts, images, padding_side=padding_side), model.device, model.dtype)


def process(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Pixels]], *, padding_side: str
) -> dict[str, Any]:
    """Run the processor on a batch of chats and their images.

    Args:
        processor: The model's.
        texts: Chats, all written by one template.
        images: Of each chat.
        padding_side: ``left`` or ``right``.

    Returns:
        The model's inputs by name, on the CPU.

    Raises:
        InputError: The processor does not take images of these sizes.
    """
    try:
        inputs = processor(
            text=list(texts),
            images=[list(of) for of in images],
            padding=True,
            padding_side=padding_side,
            # The template may have written the beginning, which must not come twice.
            add_special_tokens=not begins(texts[0], processor.tokenizer.bos_token),
            return_tensors="pt",
        )
    # Qwen2-VL's takes no strip whose sides are as 1 to 200, for one.
    except ValueError as error:
        sizes = sorted({image.shape[1::-1] for of in images for image in of})
        names = ", ".join(f"{width} x {height}" for width, height in sizes[:4])
        raise InputError(f"images of {names} pixels: the processor does not take them: {one_line(error)}") from error
    return dict(inputs)


def move_inputs(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Move inputs to a device, and numbers that are no integers to a type.

    Args:
        inputs: Of :func:`process`.
        device: The model's.
        dtype: Its type.
    """
    # Integers are ids and masks, which have no other type.
    return {name: move_to(value, device, dtype) for name, value in inputs.items()}


def check_pixels(name: str, image: Any) -> None:
    """Raise :class:`InputError` unless an image is uint8 RGB.

    Args:
        name: Of the image, for errors.
        image: Any array.
    """
    # Before any pass: a processor would scale floats once more, or take them for another layout.
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"{name} image: expected uint8 pixels (H, W, 3), got {array.dtype} {array.shape}")


def count_tokens(tokenizer: Any, prefix: str, answer: str, kind: str) -> int:
    """Count the tokens of an answer and the end: those after the part that the chat alone has in common.

    Args:
        tokenizer: The model's.
        prefix: The chat, up to where the answer begins; placeholders of images need not be repeated.
        answer: What follows.
        kind: What the answer is, for errors.

    Raises:
        InputError: The answer is empty, or holds a special token.
    """
    if not answer.strip():
        raise InputError(f"{kind} {answer!r} is empty; expected some words")
    # A client's text must not end the answer or open another image.
    check_no_special(tokenizer, answer, kind)
    return measure_answers(tokenizer, prefix, [answer])[0].num_tokens


class AnswerLength(NamedTuple):
    """Lengths of a chat's answer with the end, in tokens."""

    num_tokens: int
    """What is scored and learned."""
    num_added: int
    """By how much the answer lengthens the chat: less where its first token takes in the chat's last characters."""


def measure_answers(tokenizer: Any, prefix: str, answers: Sequence[str]) -> list[AnswerLength]:
    """Measure answers after one chat; texts are not checked.

    Args:
        tokenizer: The model's.
        prefix: The chat, up to where the answer begins.
        answers: What follows.
    """
    # A tokenizer may join the prompt's last characters with the answer's first: only the common part is prompt.
    prompt_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    texts = [complete_chat(tokenizer, prefix, answer) for answer in answers]
    full: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [AnswerLength(len(ids) - count_common(prompt_ids, ids), len(ids) - len(prompt_ids)) for ids in full]


def complete_chat(tokenizer: Any, prefix: str, answer: str) -> str:
    """Return a chat with its answer and the end token.

    Args:
        tokenizer: The model's.
        prefix: The chat, up to where the answer begins.
        answer: What follows.
    """
    return f"{prefix}{answer}{tokenizer.eos_token}"


def check_length(model: Any, length: int, num_answer: int) -> None:
    """Check that a model has positions for a chat.

    Args:
        model: Of transformers.
        length: Tokens of the chat with its images and its answer.
        num_answer: Those of the answer with the end; 0: it is not known yet.

    Raises:
        InputError: There are more tokens than positions.
    """
    num_positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # Positions beyond the model's would be garbage, not an error.
    if not num_positions or length <= num_positions:
        return
    prompt = length - num_answer
    if prompt >= num_positions:
        raise InputError(
            f"both images and the question are {prompt:,} tokens, and the model has {num_positions:,} positions: no "
            "action fits behind them; give smaller images"
        )
    raise InputError(
        f"an action of {num_answer:,} tokens: with both images and the question {length:,} positions are needed, and "
        f"the model has {num_positions:,} positions"
    )


def check_no_special(tokenizer: Any, text: str, kind: str) -> None:
    """Raise :class:`InputError` if a text holds a special token of the model.

    Args:
        tokenizer: The model's.
        text: Of anybody.
        kind: What it is, for errors.
    """
    if any(token in text for token in special_tokens(tokenizer)):
        raise InputError(f"{kind} {text!r:.80} holds a special token of the model")


def special_tokens(tokenizer: Any) -> set[str]:
    """Return the texts that are special tokens of a model.

    Args:
        tokenizer: The model's.
    """
    # Placeholders of images are added tokens, which not every folder lists among its special ones.
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return {*tokenizer.all_special_tokens, *added}


def move_to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move what a processor returns to a device, numbers with a point to a type.

    Args:
        value: A tensor; anything else is returned as it is.
        device: Where to.
        dtype: Of numbers with a point.
    """
    # Processors also return lists, such as sizes of images.
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def begins(text: str, bos: str | None) -> bool:
    """Return whether the template has written the beginning-of-sequence token.

    Args:
        text: A chat.
        bos: The tokenizer's token, if it has one.
    """
    return bool(bos) and text.startswith(str(bos))


def count_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens with which two sequences begin alike.

    Args:
        first: Ids.
        second: Ids.
    """
    pairs: Iterator[tuple[int, int]] = zip(first, second, strict=False)
    return next((index for index, (token, other) in enumerate(pairs) if token != other), min(len(first), len(second)))
