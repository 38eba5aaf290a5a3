"""Build the prompt of a question about one image, for every family with image codes.

``bos boi IMAGE eoi QUESTION | ANSWER eos`` (:mod:`wm.models.prompts`). Nothing is trained on it: base, inverse and
forward model all take it. What the question says is not known here.
"""

from collections.abc import Sequence

from wm.errors import InputError
from wm.models import prompts
from wm.models.prompts import Segment
from wm.models.vlm import UnifiedVLM
from wm.models.vocabulary import check_text_ids


def layout_question(
    vlm: UnifiedVLM, image: Sequence[int], question: str, answer: str | None = None, *, num_new_tokens: int = 0
) -> list[Segment]:
    """Build the prompt of a question, or prompt and answer.

    Args:
        vlm: The model.
        image: Codebook ids of the image.
        question: A text without special tokens, which the answer follows after a blank.
        answer: Another; None: the prefix alone.
        num_new_tokens: Tokens that will be generated behind it, for which there must be positions, too.

    Returns:
        Segments of vocabulary ids, the answer last.

    Raises:
        InputError: For codes that do not fit the model, and for a text that is empty, too long or holds a reserved
            token.
    """
    # The texts first: they come from anybody, the codes from the codec.
    question_ids = _text_ids(vlm, "question", question)
    codes = prompts.check_codes("question's", image, vlm.tokens_per_image, vlm.num_codes)
    segments = prompts.layout_question(
        special=vlm.special,
        image=vlm.image_rows.cpu()[codes].tolist(),
        question=question_ids,
        answer=None if answer is None else _answer_ids(vlm, question, question_ids, answer),
        frame=vlm.frame,
    )
    # Positions beyond the model's would be garbage, not an error.
    length = sum(len(segment.ids) for segment in segments) + num_new_tokens
    if length > vlm.max_positions:
        raise InputError(
            f"question {question!r:.80} has {len(question_ids):,} tokens: with image and answer the sequence has "
            f"{length:,}, the model {vlm.max_positions:,} positions"
        )
    return segments


def _answer_ids(vlm: UnifiedVLM, question: str, question_ids: Sequence[int], answer: str) -> list[int]:
    """Return the ids of an answer as a continuation of its question."""
    ids = _text_ids(vlm, "answer", answer)
    # As a text continues: the blank between the two belongs to the answer's first token, where the tokenizer has such
    # tokens. Where one joins across the blank, the answer's own tokens keep the question the same for all answers.
    joined = vlm.tokenize_action(f"{question} {answer}")
    count = len(question_ids)
    return joined[count:] if len(joined) > count and joined[:count] == list(question_ids) else ids


def _text_ids(vlm: UnifiedVLM, kind: str, text: str) -> list[int]:
    ids = vlm.tokenize_action(text)
    check_text_ids(ids, text=text, kind=kind, reserved=vlm.reserved_ids, tokenizer=vlm.tokenizer)
    return ids
