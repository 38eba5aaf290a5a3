"""Questions asked of tiny models: figures against direct calls, resume, bad input, the command line."""

import json
import shutil

import pytest
import torch
from PIL import Image

from jobs import ask
from jobs.ask import AskRecipe, shards
from tests.helpers.models_roles import write_roles
from tests.helpers.models_vlms import WRITERS
from tests.helpers.question_files import (
    embspatial_entry,
    mqa_entry,
    write_embspatial,
    write_folder,
    write_spatialmqa,
)
from wm.dynamics.questions import answer_questions
from wm.dynamics.vlm_questions import answer_questions as answer_from_pixels
from wm.dynamics.vlm_scorer import load_vlm_scorer
from wm.errors import InputError
from wm.evaluation.questions.asking import ANSWER_SCHEMA
from wm.evaluation.questions.images import load_image
from wm.evaluation.questions.items import ImagePlace
from wm.images import fit_square
from wm.models import load_codec, load_model
from wm.records import REJECT_SCHEMA
from wm.tables import read_table

PROMPT = "{question} {options}"


@pytest.fixture(scope="module")
def roles(tiny_base, tmp_path_factory):
    return write_roles(tiny_base, tmp_path_factory.mktemp("roles"))


@pytest.fixture(scope="module")
def mqa(tmp_path_factory):
    entries = [mqa_entry(number % 8, id=number) for number in range(10)]
    return write_spatialmqa(tmp_path_factory.mktemp("mqa") / "data", [*entries, mqa_entry(0, answer="nowhere")])


def entries_of(roles):
    return {
        "zs": {"path": str(roles / "base"), "label": "C-ZS"},
        "fdm": {"path": str(roles / "fdm"), "label": "C-FDM", "base": str(roles / "base")},
        "idm": {"path": str(roles / "idm"), "label": "C-IDM", "base": str(roles / "base")},
    }


def recipe(data, out, models, **settings):
    values = {"benchmark": "spatialmqa", "data": str(data), "out": str(out), "models": models, "prompt": PROMPT}
    return AskRecipe.parse(values | {"max_new_tokens": 4, "shard_questions": 4} | settings, "test")


def answers(out):
    return read_table(out / "answers", ANSWER_SCHEMA).to_pylist()


def test_base_and_adapters_against_direct_calls(roles, mqa, tmp_path, capsys):
    ask.run(recipe(mqa, tmp_path / "out", entries_of(roles)))
    rows = answers(tmp_path / "out")
    assert len(rows) == 30 and {row["model"] for row in rows} == {"zs", "fdm", "idm"}
    codec = load_codec(roles / "base")
    for name in ("zs", "fdm"):
        model = load_model(roles / ("base" if name == "zs" else name), merge=name != "zs")
        own = [row for row in rows if row["model"] == name]
        images = [load_image(mqa / "COCO2017", ImagePlace(f"{n % 8:012d}.jpg")) for n in range(10)]
        codes = codec.encode(torch.stack([torch.from_numpy(fit_square(i, codec.side_px)) for i in images]).numpy())
        prompts = [f"{row['question']} {'; '.join(row['options'])}" for row in own]
        replies = answer_questions(model, codes, prompts, [row["options"] for row in own], max_new_tokens=4)
        for row, reply in zip(own, replies, strict=True):
            assert row["answer"] == reply.answer.text
            assert row["option_logprobs"] == pytest.approx([option.logprob for option in reply.options], abs=1e-4)
            best = max(reply.options, key=lambda option: option.logprob)
            assert row["ranked_sum"] == best.text and row["reference"] in row["options"]
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    by_label = {row["label"]: row for row in tables["rows"]}
    for label, row in by_label.items():
        own = [answer for answer in rows if answer["label"] == label]
        assert row["accuracy"]["share"] == pytest.approx(sum(a["is_right_published"] for a in own) / 10)
        assert row["ranking_sum"]["share"] == pytest.approx(sum(a["ranked_sum"] == a["reference"] for a in own) / 10)
        assert row["chance"] == pytest.approx((5 / 4 + 5 / 6) / 10)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["stage"] == "ask" and record["counts"]["rejects_by_reason"] == {"answer_not_an_option": 1}
    assert record["counts"]["entries"] == record["counts"]["questions"] + record["counts"]["rejects"] == 11
    (reject,) = read_table(tmp_path / "out/rejects", REJECT_SCHEMA).to_pylist()
    assert reject["uri"] == "test.jsonl:11"
    # Ten questions are no test set: no published number beside them.
    out = capsys.readouterr().out
    assert "no published numbers: the published set has 1,076 questions, these are 10" in out
    assert "paper" not in out.splitlines()[0]
    assert "C-FDM" in (tmp_path / "out/README.md").read_text()
    ask.run(recipe(mqa, tmp_path / "out", entries_of(roles)))
    assert "is complete: nothing to do" in capsys.readouterr().out


def test_a_stopped_run_resumes_to_the_same_answers(roles, mqa, tmp_path, monkeypatch):
    models = entries_of(roles)
    ask.run(recipe(mqa, tmp_path / "whole", models))
    asked = []

    def stop(model, questions, settings, inner=shards.ask_model):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(model.name)
        return inner(model, questions, settings)

    monkeypatch.setattr(shards, "ask_model", stop)
    with pytest.raises(KeyboardInterrupt):
        ask.run(recipe(mqa, tmp_path / "out", models))
    assert len(list((tmp_path / "out/answers").glob("*.parquet"))) == 4 and not (tmp_path / "out/run.json").exists()
    monkeypatch.undo()
    ask.run(recipe(mqa, tmp_path / "out", models))
    assert answers(tmp_path / "out") == answers(tmp_path / "whole")
    for name in ("tables.json", "README.md"):
        # The card names its folder.
        texts = [(tmp_path / folder / name).read_text().replace(f'("{folder}"', "(") for folder in ("out", "whole")]
        assert texts[0] == texts[1]


def test_pixels_and_letters(tmp_path):
    WRITERS["qwen2_vl"](tmp_path / "vlm")
    data = write_embspatial(tmp_path / "emb", [embspatial_entry(number) for number in range(6)])
    models = {"vlm": {"path": str(tmp_path / "vlm"), "label": "Qwen2-VL", "reads": "pixels"}}
    ask.run(recipe(data, tmp_path / "out", models, benchmark="embspatial"))
    rows = answers(tmp_path / "out")
    vlm = load_vlm_scorer(tmp_path / "vlm")
    listed = "A) the cup\nB) the red cup\nC) the bowl\nD) the block"
    images = [load_image(data, ImagePlace("embspatial_bench.json", *span)) for span in spans_of(data)]
    prompts = [f"{row['question']} {listed}" for row in rows]
    replies = answer_from_pixels(vlm, images, prompts, [list("ABCD")] * 6, max_new_tokens=4)
    for row, reply in zip(rows, replies, strict=True):
        assert row["answer"] == reply.answer.text
        assert row["option_logprobs"] == pytest.approx([option.logprob for option in reply.options], abs=1e-4)
    (figures,) = json.loads((tmp_path / "out/tables.json").read_text())["rows"]
    assert set(figures["by_group"]) == {"close", "far", "above"} and set(figures["by_source"]) == {"mp3d", "scannet"}


def spans_of(data):
    from wm.evaluation.questions.json_entries import list_objects

    return list(list_objects(data / "embspatial_bench.json"))


def test_what_a_model_cannot_be_asked_is_counted(roles, tmp_path, capsys):
    line = {"image": "images/0.png", "question": "move the cup", "options": ["up", "down"], "answer": "up"}
    data = write_folder(tmp_path / "own", [line, {**line, "question": "move <pad>"}, {**line, "question": "to " * 300}])
    ask.run(recipe(data, tmp_path / "out", {"zs": {"path": str(roles / "base"), "label": "A"}}, benchmark="folder"))
    good, special, long = answers(tmp_path / "out")
    assert good["failure"] is None and good["answer"] is not None
    assert "reserved token" in special["failure"] and "positions" in long["failure"] and long["answer"] is None
    (row,) = json.loads((tmp_path / "out/tables.json").read_text())["rows"]
    assert (row["num_questions"], row["num_failed"], row["accuracy"]["n"]) == (3, 2, 1)
    assert "A: 2 questions could not be asked" in capsys.readouterr().out


def test_an_image_that_a_processor_refuses_is_counted(tmp_path):
    WRITERS["qwen2_vl"](tmp_path / "vlm")
    line = {"image": "images/0.png", "question": "move the cup", "options": ["up", "down"], "answer": "up"}
    data = write_folder(tmp_path / "own", [line, {**line, "image": "images/strip.png"}, {**line, "question": " <pad>"}])
    Image.new("RGB", (2100, 10)).save(data / "images/strip.png")
    models = {"vlm": {"path": str(tmp_path / "vlm"), "label": "Qwen2-VL", "reads": "pixels"}}
    ask.run(recipe(data, tmp_path / "out", models, benchmark="folder"))
    good, strip, special = answers(tmp_path / "out")
    assert good["failure"] is None and good["answer"] is not None and "special token" in special["failure"]
    assert "does not take an image of 2100 x 10 pixels: absolute aspect ratio" in strip["failure"]
    (row,) = json.loads((tmp_path / "out/tables.json").read_text())["rows"]
    assert (row["num_questions"], row["num_failed"], row["accuracy"]["n"]) == (3, 2, 1)


def test_dry_run_and_bad_input_leave_nothing(roles, mqa, tmp_path, capsys):
    out, models = tmp_path / "out", entries_of(roles)
    assert ask.run(recipe(mqa, out, models), dry_run=True) == {}
    text = capsys.readouterr().out
    assert "would ask 3 models 10 questions" in text and "9 shards" in text and "answer_not_an_option: 1" in text
    bad = [
        ({"a b": models["zs"]}, "letters, digits"),
        ({"zs": {**models["zs"], "path": str(tmp_path / "no")}}, "no such model folder"),
        ({"zs": {**models["zs"], "base": str(roles / "base")}}, "is no adapter"),
        ({"zs": {**models["zs"], "reads": "pixels", "base": str(roles / "base")}}, "is asked as it is"),
        ({"fdm": {**models["fdm"], "base": str(roles / "full")}}, "base"),
    ]
    for changed, words in bad:
        with pytest.raises(InputError, match=words):
            ask.run(recipe(mqa, out, changed))
    with pytest.raises(InputError, match="share label 'C-ZS' and seed 0"):
        recipe(mqa, out, {"a": models["zs"], "b": models["zs"]})
    with pytest.raises(InputError, match=r"expected a text with \{question\}"):
        recipe(mqa, out, models, prompt="where?")
    with pytest.raises(InputError, match="expected the name of a file"):
        recipe(mqa, out, models, file="../x.jsonl")
    shutil.copytree(mqa, tmp_path / "broken")
    (tmp_path / "broken/test.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"no usable question .* the first of 1: test\.jsonl:1: no field"):
        ask.run(recipe(tmp_path / "broken", out, models))
    assert not out.exists()
