"""Answer questions about an image through a model with image codes: greedily, and by the likelihood of each option.

Image and question are read once for the answer and all options.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wm.dynamics.idm import Codes, ScoredAction
from wm.dynamics.scoring import check_equal_lengths, code_lists, score_tails
from wm.errors import InputError
from wm.models.prompts import flatten
from wm.models.questions import layout_question
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, prefixes_at_once
from wm.sampling.checks import check_finite
from wm.sampling.model_runner import ModelRunner
from wm.sampling.runners import build_model_runner
from wm.sampling.texts import GREEDY, TextBatch, check_max_new_tokens, complete_batch


@dataclass(frozen=True)
class Reply:
    """A model's answer to one question.

    Attributes:
        answer: The greedy one, with its log-probability; its text may be empty.
        options: Each option with its log-probability as the answer, the end token included.
    """

    answer: ScoredAction
    options: tuple[ScoredAction, ...]


@dataclass(frozen=True)
class _Prompt:
    """A question in vocabulary ids: the prefix, and the answers to score after it."""

    prefix: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]


@torch.no_grad()
def answer_questions(
    vlm: UnifiedVLM,
    image_BN: Codes,
    questions: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    max_new_tokens: int = 16,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> list[Reply]:
    """Answer each question about its image. Neither order nor batch changes a reply, up to rounding.

    Args:
        vlm: A base, inverse or forward model.
        image_BN: Codebook ids of the images.
        questions: One an image.
        options: Answers to score, one or more a question.
        max_new_tokens: Tokens after which an answer is ended.
        batch_size: Bound on the rows of a pass, an option being one; what memory holds without it.
        runner: Runs ``vlm`` as it is now, to be used for many calls; built here without it.

    Returns:
        One reply a question. Log-probabilities are in nats, normalised over the complete vocabulary.

    Raises:
        InputError: For codes and texts that do not fit the model, and for one that gives non-finite numbers.
    """
    check_max_new_tokens(max_new_tokens)
    images = code_lists("question's image", image_BN)
    check_equal_lengths(images=len(images), questions=len(questions), options=len(options))
    prompts = [
        build_prompt(vlm, image, question, answers, max_new_tokens)
        for image, question, answers in zip(images, questions, options, strict=True)
    ]
    if not prompts:
        return []
    # 1. As many questions at a time as fit with all their options.
    longest = max(len(prompt.prefix) for prompt in prompts)
    tail = max(max_new_tokens, *(len(ids) for prompt in prompts for ids in prompt.tails))
    each = max(len(prompt.tails) for prompt in prompts)
    at_once = prefixes_at_once(longest, tail, each, batch_size, positions_at_once(vlm))
    runner = runner or build_model_runner(vlm, rows=min(at_once, len(prompts)))
    # 2. By length, so that few are padded; a batch that was halved comes again, and replaces what was there.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].prefix))
    replies: dict[int, Reply] = {}

    def answer(start: int, stop: int) -> None:
        rows = order[start:stop]
        batch = _answer_batch(vlm, runner, [prompts[row] for row in rows], max_new_tokens)
        for row, (best, scores) in zip(rows, batch, strict=True):
            scored = (ScoredAction(text, *score) for text, score in zip(options[row], scores, strict=True))
            replies[row] = Reply(best, tuple(scored))

    halving(answer, len(prompts), at_once)
    return [replies[row] for row in range(len(prompts))]


def build_prompt(
    vlm: UnifiedVLM, image: Sequence[int], question: str, options: Sequence[str], max_new_tokens: int
) -> _Prompt:
    """Build the prompt of one question and of its options.

    Args:
        vlm: The model.
        image: Codebook ids of the image.
        question: The prompt's text.
        options: Answers to score.
        max_new_tokens: Of an answer.

    Returns:
        Vocabulary ids.

    Raises:
        InputError: The model cannot be asked this.
    """
    if not options:
        raise InputError(f"question {question!r:.80} has no options to score")
    # The same prefix for all options: only what follows it differs.
    prefix = flatten(layout_question(vlm, image, question, num_new_tokens=max_new_tokens))
    tails = []
    for option in options:
        (*_, answer) = layout_question(vlm, image, question, option)
        tails.append(answer.ids)
    return _Prompt(tuple(prefix), tuple(tails))


def _answer_batch(
    vlm: UnifiedVLM, runner: ModelRunner, prompts: Sequence[_Prompt], max_new_tokens: int
) -> list[tuple[ScoredAction, list[tuple[float, int]]]]:
    # 1. Image and question, once.
    prefix, last_PH = runner.prefill([prompt.prefix for prompt in prompts])
    check_finite(last_PH, "hidden states of the prompt", vlm)
    # 2. The options after them.
    scores = score_tails(vlm, runner, prefix, last_PH, [prompt.tails for prompt in prompts])
    # 3. The greedy answer after the same.
    batch = TextBatch(
        vlm, runner, [prompt.prefix for prompt in prompts], sampling=GREEDY, max_new_tokens=max_new_tokens
    )
    batch.start(prefix, last_PH)
    completions = complete_batch(runner, batch)
    answers = [ScoredAction(vlm.detokenize(item.ids), item.logprob, item.num_tokens) for item in completions]
    return list(zip(answers, scores, strict=True))
