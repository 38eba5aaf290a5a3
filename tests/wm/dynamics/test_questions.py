"""Answers to questions by every family with image codes, against forward passes written out."""

import pytest
import torch

from tests.helpers.models_families import write_emu3, write_janus, write_liquid
from wm.dynamics.questions import answer_questions
from wm.errors import InputError
from wm.models import load_model
from wm.models.prompts import flatten
from wm.models.questions import layout_question
from wm.sampling.transformers_runner import TransformersRunner

QUESTIONS = ["put the red cup left of the bowl", "move", "take the green block up"]
OPTIONS = [["left of", "right"], ["up", "down", "the red cup"], ["the blue bowl"]]
NEW = 5
WRITERS = {"liquid": write_liquid, "emu3": write_emu3, "janus": write_janus}


@pytest.fixture(scope="module", params=["chameleon", *WRITERS])
def vlm(request, tmp_path_factory, tiny_base):
    if request.param == "chameleon":
        return load_model(tiny_base, dtype=torch.float64)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    WRITERS[request.param](folder)
    return load_model(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def images(vlm):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vlm.num_codes, (3, vlm.tokens_per_image), generator=generator)


def logprobs(vlm, ids):
    """Log-probabilities of the text's head at each position, without a cache."""
    with torch.no_grad():
        hidden = vlm.body(torch.tensor([ids]))
        return torch.log_softmax(vlm.inner.lm_head(hidden)[0], -1)


def score_by_hand(vlm, prefix, answer):
    table = logprobs(vlm, [*prefix, *answer])
    return sum(float(table[len(prefix) + at - 1, token]) for at, token in enumerate(answer))


def greedy_by_hand(vlm, prefix):
    ids = list(prefix)
    for at in range(NEW + 1):
        spoken = logprobs(vlm, ids)[-1][vlm.text_rows]
        token = int(vlm.text_rows[spoken.argmax()]) if at < NEW else vlm.eos_id
        ids.append(token)
        if token == vlm.eos_id:
            break
    return ids[len(prefix) :]


def test_answers_are_greedy_and_options_scored_as_by_hand(vlm, images):
    replies = answer_questions(vlm, images, QUESTIONS, OPTIONS, max_new_tokens=NEW)
    for row, question in enumerate(QUESTIONS):
        prefix = flatten(layout_question(vlm, images[row].tolist(), question))
        answer = greedy_by_hand(vlm, prefix)
        own = replies[row].answer
        assert (own.text, own.num_tokens) == (vlm.detokenize(answer[:-1]), len(answer))
        assert own.logprob == pytest.approx(score_by_hand(vlm, prefix, answer), abs=1e-6)
        assert [option.text for option in replies[row].options] == OPTIONS[row]
        for option in replies[row].options:
            tokens = [*vlm.tokenize_action(option.text), vlm.eos_id]
            assert option.num_tokens == len(tokens)
            assert option.logprob == pytest.approx(score_by_hand(vlm, prefix, tokens), abs=1e-6)


def test_order_padding_and_batch_size_change_nothing(vlm, images):
    expected = answer_questions(vlm, images, QUESTIONS, OPTIONS, max_new_tokens=NEW)
    order = [2, 0, 1]
    shuffled = answer_questions(
        vlm,
        images[order],
        [QUESTIONS[row] for row in order],
        [OPTIONS[row] for row in order],
        max_new_tokens=NEW,
        batch_size=1,
        runner=TransformersRunner(vlm),
    )
    for reply, row in zip(shuffled, order, strict=True):
        assert (reply.answer.text, reply.answer.num_tokens) == (
            expected[row].answer.text,
            expected[row].answer.num_tokens,
        )
        own = [reply.answer.logprob, *(option.logprob for option in reply.options)]
        theirs = [expected[row].answer.logprob, *(option.logprob for option in expected[row].options)]
        assert own == pytest.approx(theirs, abs=1e-6)


def test_the_image_the_question_and_the_layout(vlm, images):
    codes = images[0].tolist()
    segments = layout_question(vlm, codes, "move the cup", "left of")
    ids = flatten(segments)
    assert ids[0] == vlm.bos_id and ids[-1] == vlm.eos_id
    assert [segment.is_completion for segment in segments] == [False, False, False, True]
    rows = vlm.image_rows[images[0]].tolist()
    assert [token for token in segments[1].ids if token != vlm.row_end_id] == rows
    assert segments[2].ids == (*vlm.frame.closing, *vlm.tokenize_action("move the cup"))
    assert segments[3].ids == (*vlm.tokenize_action("left of"), vlm.eos_id)
    # What is seen and asked decides.
    scores = [
        answer_questions(vlm, image[None], [question], [["up"]])[0].options[0].logprob
        for image, question in ((images[0], "move"), (images[1], "move"), (images[0], "take"))
    ]
    assert len({round(score, 6) for score in scores}) == 3


def test_bad_input_is_named(vlm, images):
    one = images[:1]
    assert answer_questions(vlm, images[:0].tolist() or torch.zeros(0, 4, dtype=torch.int64), [], []) == []
    with pytest.raises(InputError, match="3 images, 1 questions, 1 options"):
        answer_questions(vlm, images, ["move"], [["up"]])
    with pytest.raises(InputError, match="question '' is empty"):
        answer_questions(vlm, one, [""], [["up"]])
    with pytest.raises(InputError, match="answer '' is empty"):
        answer_questions(vlm, one, ["move"], [["up", ""]])
    with pytest.raises(InputError, match="has no options to score"):
        answer_questions(vlm, one, ["move"], [[]])
    name = vlm.tokenizer.convert_ids_to_tokens(vlm.boi_id)
    with pytest.raises(InputError, match="holds the reserved token"):
        answer_questions(vlm, one, [f"move {name}"], [["up"]])
    with pytest.raises(InputError, match=r"question 'move move.* positions"):
        answer_questions(vlm, one, ["move " * vlm.max_positions], [["up"]])


def test_an_answer_goes_on_behind_the_blank(tmp_path):
    """Tokenizers with a blank in their tokens: ``▁left`` behind the question, not ``left``."""
    from types import SimpleNamespace

    from wm.models.questions import _answer_ids

    pieces = {"Q:": [1], "left": [2], "Q: left": [1, 3], "T": [4], "o": [5], "T o": [6]}
    fake = SimpleNamespace(tokenize_action=lambda text: list(pieces[text]), reserved_ids=set(), tokenizer=None)
    assert _answer_ids(fake, "Q:", [1], "left") == [3]
    # Joined across the blank: the answer's own tokens.
    assert _answer_ids(fake, "T", [4], "o") == [5]
