"""Scores of actions by vision-language models of several families, against forward passes written out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.models_vlms import WRITERS
from wm.dynamics import ScoredAction
from wm.dynamics.vlm_scorer import load_vlm_scorer
from wm.errors import InputError
from wm.evaluation.heldout import read_held_out
from wm.models import load_codec

ACTIONS = ["put the red cup on the bowl", "move", "take the green block up", "down"]


@pytest.fixture(scope="module", params=list(WRITERS))
def scorer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    WRITERS[request.param](folder)
    return load_vlm_scorer(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (2, 4, 24, 16, 3), dtype=np.uint8)


def by_hand(scorer, source, target, action):
    """One row alone, all logits, one token after the other."""
    processor = scorer.processor
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": scorer.prompt}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ending = processor.tokenizer(action)["input_ids"] + [processor.tokenizer.eos_token_id]
    inputs = processor(text=[prompt + action + "</s>"], images=[[source, target]], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids[-len(ending) :] == ending
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        logits_TV = scorer.model(**inputs).logits[0]
    start = len(ids) - len(ending)
    total = sum(float(torch.log_softmax(logits_TV[start + k - 1], -1)[token]) for k, token in enumerate(ending))
    return ScoredAction(action, total, len(ending))


def test_scores_are_sums_over_action_and_end(scorer, images):
    source_BHWC, target_BHWC = images
    scores = scorer.score_actions(source_BHWC, target_BHWC, ACTIONS)
    for row, action in enumerate(ACTIONS):
        expected = by_hand(scorer, source_BHWC[row], target_BHWC[row], action)
        assert (scores[row].text, scores[row].num_tokens) == (action, expected.num_tokens)
        assert scores[row].num_tokens == len(action.split()) + 1
        assert scores[row].logprob == pytest.approx(expected.logprob, abs=1e-9)


def test_padding_order_and_batch_size_change_nothing(scorer, images):
    source_BHWC, target_BHWC = images
    scores = [score.logprob for score in scorer.score_actions(source_BHWC, target_BHWC, ACTIONS)]
    order = [2, 0, 3, 1]
    shuffled = scorer.score_actions(
        source_BHWC[order], target_BHWC[order], [ACTIONS[row] for row in order], batch_size=3
    )
    alone = scorer.score_actions(source_BHWC, target_BHWC, ACTIONS, batch_size=1)
    assert [score.logprob for score in shuffled] == pytest.approx([scores[row] for row in order], abs=1e-9)
    assert [score.logprob for score in alone] == pytest.approx(scores, abs=1e-9)


def test_both_images_their_order_and_the_prompt_matter(scorer, images):
    source_BHWC, target_BHWC = images
    first = scorer.score_actions(source_BHWC[:1], target_BHWC[:1], ["put"])[0].logprob
    swapped = scorer.score_actions(target_BHWC[:1], source_BHWC[:1], ["put"])[0].logprob
    other = scorer.score_actions(source_BHWC[:1], target_BHWC[1:2], ["put"])[0].logprob
    question = type(scorer)(scorer.model, scorer.processor, "image")
    answer = question.score_actions(source_BHWC[:1], target_BHWC[:1], ["put"])[0].logprob
    assert len({round(value, 6) for value in (first, swapped, other, answer)}) == 4


def test_images_of_several_sizes(scorer):
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((16, 16), (32, 16), (16, 40))]
    scores = scorer.score_actions(images, images[::-1], ACTIONS[:3])
    for row, action in enumerate(ACTIONS[:3]):
        expected = by_hand(scorer, images[row], images[2 - row], action)
        assert scores[row].logprob == pytest.approx(expected.logprob, abs=1e-9)


def test_bad_input_is_named(scorer, images):
    source_BHWC, target_BHWC = images
    with pytest.raises(InputError, match="4 sources, 4 targets, 1 actions"):
        scorer.score_actions(source_BHWC, target_BHWC, ["put"])
    with pytest.raises(InputError, match="action ' ' is empty"):
        scorer.score_actions(source_BHWC[:1], target_BHWC[:1], [" "])
    with pytest.raises(InputError, match="holds a special token of the model"):
        scorer.score_actions(source_BHWC[:1], target_BHWC[:1], ["put </s> down"])
    with pytest.raises(InputError, match=r"target image: expected uint8 pixels \(H, W, 3\), got float64"):
        scorer.score_actions(source_BHWC[:1], target_BHWC[:1] / 255, ["put"])
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        scorer.score_actions(source_BHWC, target_BHWC, ACTIONS, batch_size=0)
    assert scorer.score_actions(source_BHWC[:0], target_BHWC[:0], []) == []


def test_other_folders_are_refused(tmp_path, tiny_base):
    with pytest.raises(InputError, match=r"no config\.json in"):
        load_vlm_scorer(tmp_path)
    WRITERS["llava"](tmp_path / "llava")
    template = tmp_path / "llava" / "chat_template.jinja"
    template.rename(tmp_path / "template")
    with pytest.raises(InputError, match="has no chat template"):
        load_vlm_scorer(tmp_path / "llava")
    (tmp_path / "template").rename(template)
    weights = load_file(tmp_path / "llava" / "model.safetensors")
    remaining = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up" not in name}
    save_file(remaining, tmp_path / "llava" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors are missing: .*layers\.1\.mlp\.up_proj\.weight"):
        load_vlm_scorer(tmp_path / "llava")
    (tmp_path / "llava" / "tokenizer.json").unlink()
    (tmp_path / "llava" / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="is no model that reads images and text"):
        load_vlm_scorer(tmp_path / "llava")


def test_in_the_preference_probe(tiny_base, tmp_path):
    from jobs import evaluate
    from tests.helpers.evaluate_data import ACTIONS as PROBED
    from tests.helpers.evaluate_data import noise_pair, recipe_of, write_triplets

    WRITERS["qwen2_vl"](tmp_path / "vlm")
    triplets = write_triplets(tmp_path / "set", noise_pair, PROBED)
    entry = {"path": str(tmp_path / "vlm"), "role": "idm", "label": "Qwen2-VL", "reads": "pixels"}
    settings = {"models": {"vlm": entry}, "idm": "", "zero_shot": False, "subset": "split"}
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **settings))
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    rows = {row["negative"]: row["metrics"] for row in tables["probe"] if row["label"] == "Qwen2-VL"}
    assert set(rows) == {"random_action", "random_observation", "copy", "inverse"}
    scorer = load_vlm_scorer(tmp_path / "vlm")
    held_out = read_held_out(triplets, load_codec(tiny_base))
    # Sixteen codes are few: some noise images have the same, and the first stands for them.
    first = {}
    for codes, pixels in (
        *zip(held_out.source_codes.tolist(), held_out.source_pixels, strict=True),
        *zip(held_out.target_codes.tolist(), held_out.target_pixels, strict=True),
    ):
        first.setdefault(tuple(codes), pixels)
    assert len(first) > 4
    sources = [first[tuple(codes)] for codes in held_out.source_codes.tolist()]
    targets = [first[tuple(codes)] for codes in held_out.target_codes.tolist()]

    def sums(first, second):
        return np.array([score.logprob for score in scorer.score_actions(first, second, PROBED)])

    truth = sums(sources, targets)
    # Where both are the same codes, copy and inverse are the truth itself, and no negatives.
    differs = (held_out.source_codes != held_out.target_codes).any(dim=1).numpy()
    for kind, negative in (("copy", sums(sources, sources)), ("inverse", sums(targets, sources))):
        assert rows[kind]["share"]["mean"] == pytest.approx(
            np.where(abs(truth - negative) < 1e-4, 0.5, truth > negative)[differs].mean()
        )
        assert rows[kind]["pearson_r"]["mean"] == pytest.approx(np.corrcoef(truth, negative)[0, 1], abs=1e-3)
    assert [row["label"] for row in tables["idm"]] == ["Qwen2-VL"]
    with pytest.raises(InputError, match="such a model is an idm"):
        models = {"vlm": entry | {"role": "fdm"}}
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "bad", **(settings | {"models": models})))
