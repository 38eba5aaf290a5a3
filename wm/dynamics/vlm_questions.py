"""Answer questions about an image through any vision-language model of transformers that reads pixels.

Such a model is asked by its own processor and chat template; see :mod:`wm.dynamics.vlm_scorer`, which loads it.
"""

from collections.abc import Sequence

from wm.dynamics.idm import ScoredAction
from wm.dynamics.questions import Reply
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.vlm_rows import check_no_special, check_pixels, generate_answers, score_answers
from wm.dynamics.vlm_scorer import VLMScorer
from wm.errors import InputError
from wm.images import Pixels
from wm.models.pixels.logits import check_logprobs
from wm.sampling.batches import halving
from wm.sampling.texts import check_max_new_tokens


def answer_questions(
    vlm: VLMScorer,
    images: Sequence[Pixels],
    questions: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 8,
) -> list[Reply]:
    """Answer each question about its image, greedily and by the likelihood of each option.

    Neither order nor batch changes a reply, up to rounding.

    Args:
        vlm: The model with its processor.
        images: uint8 RGB of any size, (H, W, 3).
        questions: One an image.
        options: Answers to score, one or more a question.
        max_new_tokens: Tokens after which an answer is cut off.
        batch_size: Questions that are answered greedily in one pass; halved, with a warning in the log, where memory
            does not suffice. Options are scored question by question.

    Returns:
        One reply a question.

    Raises:
        InputError: For other images, for a text that is empty or holds a special token, and for a model that gives
            non-finite numbers.
    """
    check_max_new_tokens(max_new_tokens)
    check_equal_lengths(images=len(images), questions=len(questions), options=len(options))
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    for image in images:
        check_pixels("question's", image)
    # All chats before the first pass: the last question may be a wrong one.
    prefixes = [write_chat(vlm, question) for question in questions]
    # 1. Greedy answers.
    answers: list[ScoredAction] = []

    def generate(start: int, stop: int) -> None:
        batch = [[image] for image in images[start:stop]]
        answers.extend(
            generate_answers(vlm.model, vlm.processor, prefixes[start:stop], batch, max_new_tokens=max_new_tokens)
        )

    halving(generate, len(prefixes), batch_size)
    # 2. The options of a question behind its image, which is read once for all of them.
    scores = [
        score_answers(vlm.model, vlm.processor, prefix, [image], of, kind="option")
        for prefix, image, of in zip(prefixes, images, options, strict=True)
    ]
    # Of NaN no option is the likeliest, and the first one would be taken for it.
    check_logprobs(vlm.model, (text.logprob for text in (*answers, *(option for of in scores for option in of))))
    return [Reply(answer, tuple(of)) for answer, of in zip(answers, scores, strict=True)]


def write_chat(vlm: VLMScorer, question: str) -> str:
    """Write the chat with one image and a question by the model's template, up to where the answer begins.

    Args:
        vlm: The model with its processor.
        question: The prompt's text.

    Returns:
        The chat.

    Raises:
        InputError: The question is empty, or holds a special token.
    """
    if not question.strip():
        raise InputError(f"question {question!r} is empty; expected some words")
    # It would open another image, or end the chat.
    check_no_special(vlm.processor.tokenizer, question, "question")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text


def check_question(vlm: VLMScorer, image: Pixels, question: str, options: Sequence[str]) -> None:
    """Check that a model can be asked a question.

    Args:
        vlm: The model with its processor.
        image: uint8 RGB, (H, W, 3).
        question: The prompt's text.
        options: Answers to score.

    Raises:
        InputError: A text is empty or holds a special token, or the processor does not take the image.
    """
    write_chat(vlm, question)
    # Qwen2-VL's takes no strip of more than 200 squares, for one.
    try:
        vlm.processor.image_processor(images=[image])
    except ValueError as error:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise InputError(f"the model's processor does not take an image of {size} pixels: {error}") from error
    for option in options:
        if not option.strip():
            raise InputError(f"option {option!r} is empty; expected some words")
        check_no_special(vlm.processor.tokenizer, option, "option")
