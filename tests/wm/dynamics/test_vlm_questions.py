"""Answers to questions by models that read pixels, against forward passes written out."""

import json

import numpy as np
import pytest
import torch

from tests.helpers.models_vlms import WRITERS
from wm.dynamics.vlm_questions import answer_questions, write_chat
from wm.dynamics.vlm_rows import Row, score_answers, score_rows
from wm.dynamics.vlm_scorer import load_vlm_scorer
from wm.errors import InputError

QUESTIONS = ["put the red cup left of the bowl", "move", "take the green block up"]
OPTIONS = [["left of", "right"], ["up", "down", "the red cup"], ["the blue bowl"]]
NEW = 4


@pytest.fixture(scope="module", params=list(WRITERS))
def scorer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    WRITERS[request.param](folder)
    # Of a released folder's settings none may change a greedy answer.
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "min_length": 40, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return load_vlm_scorer(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    sizes = ((24, 16), (16, 16), (16, 40))
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def forward(scorer, image, question, answer):
    """Log-probabilities (T, V) of one row alone, and its ids."""
    processor = scorer.processor
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt + answer], images=[[image]], return_tensors="pt")
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            inputs[name] = value.double()
    with torch.no_grad():
        return torch.log_softmax(scorer.model(**inputs).logits[0], -1), inputs["input_ids"][0].tolist()


def test_answers_and_options_are_those_of_single_rows(scorer, images):
    replies = answer_questions(scorer, images, QUESTIONS, OPTIONS, max_new_tokens=NEW)
    for row, question in enumerate(QUESTIONS):
        for option in replies[row].options:
            tokens = [*scorer.processor.tokenizer(option.text)["input_ids"], scorer.processor.tokenizer.eos_token_id]
            table, ids = forward(scorer, images[row], question, f"{option.text}</s>")
            start = len(ids) - len(tokens)
            assert ids[start:] == tokens
            total = sum(float(table[start + at - 1, token]) for at, token in enumerate(tokens))
            assert option.logprob == pytest.approx(total, abs=1e-9) and option.num_tokens == len(tokens)
        # Greedy, one token after the other, each by a pass of its own.
        said, total = "", 0.0
        for _ in range(NEW):
            table, _ = forward(scorer, images[row], question, said)
            token = int(table[-1].argmax())
            total += float(table[-1, token])
            if token == scorer.processor.tokenizer.eos_token_id:
                break
            said += f" {scorer.processor.tokenizer.convert_ids_to_tokens(token)}"
        own = replies[row].answer
        # An untrained model may say <image>, which this loop's next text would read as one.
        if "<" not in said:
            assert own.text == said.strip() and own.logprob == pytest.approx(total, abs=1e-5)


def test_a_chat_that_is_read_once_gives_what_whole_rows_give(scorer, images):
    model, processor = scorer.model, scorer.processor
    chat = write_chat(scorer, "move the cup")
    # Cut inside a word, so that the tokenizer joins the chat's last characters with the answer's first ones.
    for prefix, answers in ((chat, OPTIONS[1]), (chat.rstrip()[:-4], ["ant: up", "ant: the red cup"]), (chat, ["up"])):
        scores = score_answers(model, processor, prefix, [images[0]], answers, kind="option")
        whole = score_rows(model, processor, [Row(prefix, [images[0]], answer) for answer in answers])
        assert [(score.text, score.num_tokens) for score in scores] == [(row.text, row.num_tokens) for row in whole]
        assert [score.logprob for score in scores] == pytest.approx([row.logprob for row in whole], abs=1e-9)


def test_order_and_batch_size_change_nothing(scorer, images):
    expected = answer_questions(scorer, images, QUESTIONS, OPTIONS, max_new_tokens=NEW)
    order = [2, 0, 1]
    shuffled = answer_questions(
        scorer,
        [images[row] for row in order],
        [QUESTIONS[row] for row in order],
        [OPTIONS[row] for row in order],
        max_new_tokens=NEW,
        batch_size=1,
    )
    for reply, row in zip(shuffled, order, strict=True):
        assert reply.answer.text == expected[row].answer.text
        own = [reply.answer.logprob, *(option.logprob for option in reply.options)]
        theirs = [expected[row].answer.logprob, *(option.logprob for option in expected[row].options)]
        # transformers hands out the logits of generated tokens in float32.
        assert own[0] == pytest.approx(theirs[0], abs=1e-5) and own[1:] == pytest.approx(theirs[1:], abs=1e-9)


def test_numbers_that_are_none_are_refused(scorer, images):
    head = scorer.model.get_output_embeddings()
    weight = head.weight.detach().clone()
    with torch.no_grad():
        head.weight[0] = torch.nan
    try:
        with pytest.raises(InputError, match=r"model .*/model: log-probabilities are nan or infinite"):
            answer_questions(scorer, images[:1], ["move"], [["up", "down"]], max_new_tokens=1)
    finally:
        with torch.no_grad():
            head.weight.copy_(weight)


def test_bad_input_is_named(scorer, images):
    with pytest.raises(InputError, match="3 images, 1 questions"):
        answer_questions(scorer, images, ["move"], [["up"]])
    with pytest.raises(InputError, match="question ' ' is empty"):
        answer_questions(scorer, images[:1], [" "], [["up"]])
    with pytest.raises(InputError, match="question 'move </s>' holds a special token"):
        answer_questions(scorer, images[:1], ["move </s>"], [["up"]])
    with pytest.raises(InputError, match="option 'up </s>' holds a special token"):
        answer_questions(scorer, images[:1], ["move"], [["up </s>"]])
    placeholder = scorer.processor.tokenizer.convert_ids_to_tokens(4)
    with pytest.raises(InputError, match="holds a special token"):
        answer_questions(scorer, images[:1], [f"move {placeholder}"], [["up"]])
    with pytest.raises(InputError, match="got float64"):
        answer_questions(scorer, [images[0] / 255], ["move"], [["up"]])
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        answer_questions(scorer, images[:1], ["move"], [["up"]], batch_size=0)
