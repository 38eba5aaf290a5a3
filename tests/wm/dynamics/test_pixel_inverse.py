"""Pixel-reading inverse models of several classes, against the unbatched cross-entropy of the Hugging Face class."""

import logging

import numpy as np
import pytest
import torch

from tests.helpers.models_vlms import WRITERS
from tests.helpers.models_vlms_new import NEW_WRITERS
from wm.dynamics.observation import Observation, pixels_of
from wm.dynamics.pixel_check import Shortcuts, find_shortcuts
from wm.dynamics.pixel_inverse import PixelInverse, load_pixel_inverse
from wm.dynamics.verify import verify
from wm.errors import InputError
from wm.models import load_codec
from wm.sampling.noise import Sampling, stack_noise
from wm.sampling.texts import GREEDY

ALL = WRITERS | NEW_WRITERS
QUICK = ("qwen3_vl", "llava_onevision", "internvl", "idefics3", "gemma3")
"""One of each way in which classes hand features over; the others are read alike, and tested by hand."""
SIZES = ((24, 16), (16, 40), (32, 16), (24, 16), (16, 16))
# Four candidates of one source, of several sizes; three actions of one pair; a pair alone.
SOURCES = (0, 0, 0, 0, 1, 1, 1, 2)
TARGETS = (1, 2, 3, 4, 0, 0, 0, 3)
ACTIONS = (
    "put the red cup on the bowl", "move", "put the red cup on the bowl", "down",
    "up", "move up", "take the green block", "take",
)  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in ALL],
)
def inverse(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    ALL[request.param](folder)
    return load_pixel_inverse(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(1)
    return [Observation.from_pixels(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def cross_entropy(inverse, source, target, action):
    """Sum of the class's own loss over action and end, of one row that is not padded."""
    processor, model = inverse.scorer.processor, inverse.scorer.model
    text = f"{inverse.scorer.prefix}{action}{processor.tokenizer.eos_token}"
    inputs = processor(text=[text], images=[pixels_of([source, target])], return_tensors="pt")
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    num_answer = len(action.split()) + 1
    labels = inputs["input_ids"].clone()
    labels[:, :-num_answer] = -100
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    loss = torch.nn.functional.cross_entropy(output.logits[0, -num_answer - 1 : -1], labels[0, -num_answer:])
    # The class's own is in float32.
    assert float(loss) == pytest.approx(float(output.loss), rel=1e-6)
    return -float(loss) * num_answer


def test_scores_are_the_classes_own_loss(inverse, images):
    rows = [*zip(SOURCES, TARGETS, ACTIONS, strict=True)]
    expected = [cross_entropy(inverse, images[source], images[target], action) for source, target, action in rows]
    # Candidates of one action differ: images are read.
    assert abs(expected[0] - expected[2]) > 1e-3
    for order, batch_size in ((range(8), None), ((7, 2, 5, 0, 3, 6, 1, 4), None), (range(8), 1), (range(7, -1, -1), 3)):
        scores = inverse.score(
            [images[SOURCES[row]] for row in order],
            [images[TARGETS[row]] for row in order],
            [ACTIONS[row] for row in order],
            batch_size=batch_size,
        )
        assert [score.logprob for score in scores] == pytest.approx([expected[row] for row in order], abs=1e-9)
        assert [(score.text, score.num_tokens) for score in scores] == [
            (ACTIONS[row], len(ACTIONS[row].split()) + 1) for row in order
        ]


def test_proposals_depend_on_pair_and_seed_alone(inverse, images):
    sources, targets = [images[row] for row in SOURCES[:5]], [images[row] for row in TARGETS[:5]]
    sampling = Sampling(temperature=1.5)
    proposals = inverse.propose(sources, targets, sampling=sampling, seeds=range(5), max_new_tokens=5)
    order = (3, 0, 4, 1, 2)
    shuffled = inverse.propose(
        [sources[row] for row in order], [targets[row] for row in order], sampling=sampling, seeds=order,
        max_new_tokens=5, batch_size=2,
    )  # fmt: skip
    # The plain way: pixels in every pass, and every token read again.
    plain = PixelInverse(inverse.scorer).propose(sources, targets, sampling=sampling, seeds=range(5), max_new_tokens=5)
    assert [shuffled[order.index(row)].text for row in range(5)] == [proposal.text for proposal in proposals]
    assert [proposal.text for proposal in plain] == [proposal.text for proposal in proposals]
    assert [proposal.logprob for proposal in plain] == pytest.approx([p.logprob for p in proposals], abs=1e-9)
    assert len({proposal.text for proposal in proposals}) > 2
    for source, target, proposal in zip(sources, targets, proposals, strict=True):
        assert proposal.text == by_hand(inverse, (source, target), sampling, proposals.index(proposal), 5)
        # Scored again, a text of words has its own probability.
        if proposal.text:
            again = inverse.score([source], [target], [proposal.text])[0]
            assert again.num_tokens == proposal.num_tokens
            assert again.logprob == pytest.approx(proposal.logprob, abs=1e-9)


def by_hand(inverse, pair, sampling, seed, max_new_tokens):
    """Sample a proposal with the processor's inputs of one row, all of which is read again for every token."""
    processor, model = inverse.scorer.processor, inverse.scorer.model
    tokenizer = processor.tokenizer
    words = [index for token, index in tokenizer.get_vocab().items() if index not in tokenizer.all_special_ids]
    allowed = sorted([*words, tokenizer.eos_token_id])
    allowed = [index for index in allowed if not getattr(tokenizer.added_tokens_decoder.get(index), "special", False)
               or index == tokenizer.eos_token_id]  # fmt: skip
    noise = stack_noise([seed], range(1), max_new_tokens + 1)[0]
    text = inverse.scorer.prefix
    words_so_far = []
    for position in range(max_new_tokens):
        inputs = processor(
            text=[" ".join([text.rstrip(), *words_so_far])], images=[pixels_of(pair)], return_tensors="pt"
        )
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        with torch.no_grad():
            logits_V = model(**inputs).logits[0, -1, allowed]
        probs_V = torch.softmax(logits_V / sampling.temperature, -1)
        index = int((probs_V.cumsum(-1) <= noise[position] * probs_V.sum()).sum())
        token = allowed[index]
        if token == tokenizer.eos_token_id:
            break
        words_so_far.append(tokenizer.convert_ids_to_tokens(token))
    return " ".join(words_so_far)


def test_every_class_takes_the_shortcuts_that_its_page_names(inverse):
    is_gemma = inverse.scorer.model.config.model_type == "gemma3"
    assert inverse.shortcuts.reader is not None
    # The tokens of an image attend to each other there, which a cache does not allow for.
    assert inverse.shortcuts.shares_prefix is not is_gemma


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_vl") / "model"
    ALL["qwen3_vl"](folder)
    return load_pixel_inverse(folder, dtype=torch.float64)


def fresh(qwen, image_cache_bytes=1 << 20):
    return PixelInverse(qwen.scorer, "id", find_shortcuts(qwen.scorer, "folder", image_cache_bytes))


def test_an_image_is_encoded_once(qwen, images):
    inverse = fresh(qwen)
    store = inverse.shortcuts.reader.store
    before = store.num_encoded
    # Key-frames of a clip: each is in two pairs.
    inverse.propose(images[:2], images[1:3], sampling=GREEDY, seeds=[0, 0], max_new_tokens=2)
    assert store.num_encoded - before == 3
    inverse.propose(images[2:4], images[3:5], sampling=GREEDY, seeds=[0, 0], max_new_tokens=2)
    assert store.num_encoded - before == 5
    # Candidates of a source that was seen: nothing is encoded again.
    inverse.score([images[0]] * 4, images[1:], ["move"] * 4)
    assert store.num_encoded - before == 5
    # An equal image in another array is the same.
    twin = Observation.from_pixels(pixels_of(images[:1])[0].copy())
    inverse.score([twin], [images[1]], ["move"])
    assert store.num_encoded - before == 5


def test_kept_features_are_bounded_and_the_oldest_go_first(qwen, images):
    size = fresh(qwen).shortcuts.reader.store.read(images[:1])[0].num_bytes
    store = fresh(qwen, size * 2).shortcuts.reader.store
    first, second, third = images[0], images[3], Observation.from_pixels(pixels_of(images[:1])[0][::-1].copy())
    expected = [features.features for features in fresh(qwen).shortcuts.reader.store.read([first, second, third])]
    # A call has all it needs, whatever is kept of it.
    for features, tensor in zip(store.read([first, second, third]), expected, strict=True):
        torch.testing.assert_close(features.features, tensor)
    before = store.num_encoded
    store.read([second, third])
    assert store.num_encoded == before
    store.read([first])
    assert store.num_encoded == before + 1
    store.read([third])
    assert store.num_encoded == before + 1
    store.read([second])
    assert store.num_encoded == before + 2
    nothing = fresh(qwen, 0).shortcuts.reader.store
    before = nothing.num_encoded
    nothing.read([first, first])
    nothing.read([first])
    assert nothing.num_encoded == before + 2


def test_greedy_proposals_are_those_of_generate(qwen, images):
    processor, model = qwen.scorer.processor, qwen.scorer.model
    inputs = processor(text=[qwen.scorer.prefix], images=[pixels_of(images[:2])], return_tensors="pt")
    silent = [row for row, token in processor.tokenizer.added_tokens_decoder.items() if token.special and row != 2]
    output = model.generate(
        **inputs | {"pixel_values": inputs["pixel_values"].double()}, do_sample=False, max_new_tokens=6,
        suppress_tokens=silent, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    expected = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    proposal = qwen.propose(images[:1], images[1:2], sampling=GREEDY, seeds=[7], max_new_tokens=6)[0]
    assert proposal.text == expected.strip()
    assert proposal.num_tokens == len(expected.split()) + 1


def test_candidates_in_codes_are_verified_by_their_pixels(qwen, tiny_base):
    codec = load_codec(tiny_base)
    rows = torch.randint(0, codec.num_codes, (4, codec.tokens_per_image), generator=torch.Generator().manual_seed(0))
    source, *candidates = (Observation.from_codes(row, codec) for row in rows.tolist())
    # An equal candidate is read once, and named.
    ranked = verify(qwen, source, "move", [*candidates, candidates[1]])
    pixels = [Observation.from_pixels(image) for image in codec.decode(rows.numpy())]
    expected = [cross_entropy(qwen, pixels[0], image, "move") for image in pixels[1:]]
    assert len({round(value, 6) for value in expected}) == 3
    assert [candidate.score.logprob for candidate in ranked] == pytest.approx(
        sorted([*expected, expected[1]], reverse=True), abs=1e-9
    )
    assert [candidate.duplicate_of for candidate in ranked if candidate.index == 3] == [1]


def test_candidates_are_sampled_token_by_token(qwen, images):
    settings = {"sampling": Sampling(temperature=2.0), "max_new_tokens": 4}
    batch = qwen.start_proposals(images[:2], images[1:3], num_candidates=3, seeds=[5, 6], num_top=2, **settings)
    answers = [[] for _ in range(6)]
    while not batch.is_finished:
        for answer, token in zip(answers, batch.step(), strict=True):
            if token is not None:
                answer.append(token)
    single = qwen.propose(images[:2], images[1:3], seeds=[5, 6], **settings)
    # Candidate 0 of each pair is what is proposed; the others have noise of their own.
    for row, proposal in zip((0, 3), single, strict=True):
        assert qwen.decode([token.id for token in answers[row]]) == proposal.text
        assert sum(token.logprob for token in answers[row]) == pytest.approx(proposal.logprob, abs=1e-9)
    assert len({tuple(token.id for token in answer) for answer in answers}) > 3
    for answer in answers:
        assert answer[-1].id == qwen.vocabulary.end_id
        assert answer[-1].is_cut is (len(answer) == 5 and answer[-1].is_cut)
        assert all(len(token.top) == 2 and token.top[0][1] >= token.top[1][1] for token in answer)
    with pytest.raises(InputError, match="guidance is for images"):
        qwen.propose(images[:1], images[1:2], sampling=Sampling(guidance_scale=2.0), seeds=[0])
    with pytest.raises(InputError, match="max_new_tokens must be at least 1, got 0"):
        qwen.propose(images[:1], images[1:2], sampling=GREEDY, seeds=[0], max_new_tokens=0)


def test_an_empty_answer_is_returned_as_it_is(qwen, images):
    head = qwen.scorer.model.lm_head.weight
    before = head.detach().clone()
    with torch.no_grad():
        hidden = torch.zeros(0)

        def look(module, arguments):
            nonlocal hidden
            hidden = arguments[0][0, -1]

        handle = qwen.scorer.model.lm_head.register_forward_pre_hook(look)
        qwen.propose(images[:1], images[1:2], sampling=GREEDY, seeds=[0], max_new_tokens=1)
        handle.remove()
        head[2] = hidden * 10
    try:
        proposal = qwen.propose(images[:1], images[1:2], sampling=GREEDY, seeds=[0])[0]
    finally:
        head.data.copy_(before)
    assert (proposal.text, proposal.num_tokens) == ("", 1)


def test_scores_that_are_nan_are_refused(qwen, images, monkeypatch):
    head = qwen.scorer.model.lm_head
    # As float16 gives on an image whose activations it does not reach.
    monkeypatch.setattr(head, "forward", lambda hidden: hidden @ head.weight.mT * torch.nan)
    for inverse in (qwen, PixelInverse(qwen.scorer)):
        with pytest.raises(InputError, match=r"model .*/model: log-probabilities are nan or infinite; expected"):
            verify(inverse, images[0], "move", images[1:3])
        with pytest.raises(InputError, match=r"model .*/model: log-probabilities are nan or infinite; expected"):
            inverse.propose(images[:1], images[1:2], sampling=GREEDY, seeds=[0])


def test_a_class_without_features_is_read_the_plain_way(qwen, images, monkeypatch, caplog):
    expected = qwen.score([images[0]] * 2, images[1:3], ["move", "up"])
    model_class = type(qwen.scorer.model)
    forward = model_class.forward

    # As in classes of earlier years, which also compute the logits of all positions.
    def plain_forward(self, **inputs):
        return forward(self, **inputs)

    monkeypatch.setattr(model_class, "forward", plain_forward)
    with caplog.at_level(logging.WARNING):
        shortcuts = find_shortcuts(qwen.scorer, "folder", 1 << 20)
    assert shortcuts == Shortcuts()
    assert [record.message for record in caplog.records] == [
        "Qwen3VLForConditionalGeneration: features of images are computed anew each time: "
        "Qwen3VLForConditionalGeneration takes no features in place of pixels"
    ]
    scores = PixelInverse(qwen.scorer).score([images[0]] * 2, images[1:3], ["move", "up"])
    assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in expected], abs=1e-9)


def test_a_shortcut_that_changes_scores_is_not_taken(qwen, monkeypatch, caplog):
    from wm.dynamics.vlm_positions import PositionFinder

    find = PositionFinder.find
    # Columns of patches that are taken for rows, as a class with another order of axes would.
    monkeypatch.setattr(PositionFinder, "find", lambda self, *inputs: find(self, *inputs)[[0, 2, 1]])
    with caplog.at_level(logging.WARNING):
        shortcuts = find_shortcuts(qwen.scorer, "folder", 1 << 20)
    assert shortcuts.reader is None
    assert "scores differ from the plain way" in caplog.text
