"""``annotate`` with an inverse model that reads pixels: actions, with the codes of a codec or without any."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2VLForConditionalGeneration

import jobs.annotate.job
from jobs.annotate.annotator import Annotator
from jobs.annotate.job import run
from jobs.annotate.settings import ActionSampling
from tests.helpers.annotate_data import annotate_here, decode, recipe, write_videos
from tests.helpers.models_vlms import write_qwen2_vl
from wm.dynamics.observation import Observation
from wm.dynamics.pixel_inverse import load_pixel_inverse
from wm.dynamics.vlm_images import FeatureStore
from wm.errors import InputError
from wm.images import decode_image
from wm.models import Manifest, base_id_of, load_codec
from wm.packaged import resolve_packaged
from wm.records import TRIPLET_SCHEMA, derive_seed
from wm.tables import read_table

SCORED = {"action": "score"}
"""A random model rarely ends its text."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "qwen"
    write_qwen2_vl(folder)
    return folder


@pytest.fixture(scope="module")
def clips(videos, qwen):
    return decode(pixel_recipe(videos, qwen, "out")).to_pylist()


def annotated(clips, one):
    """Triplets, in the order of their ids."""
    return sorted(Annotator(one.annotator_settings()).annotate(clips)["triplets"], key=lambda row: row["triplet_id"])


def pixel_recipe(videos, idm, out, **changes):
    keyframes = {"min_interval_frames": 4, "max_keyframes": 8}
    return recipe(videos / "wave", idm, out, **({"filters": SCORED, "keyframes": keyframes} | changes))


def images_of(row):
    return [Observation.from_pixels(decode_image(row[f"{side}_image"]["bytes"], side)) for side in ("source", "target")]


def test_triplets_hold_what_the_model_says_of_each_pair_alone(videos, clips, qwen, tmp_path):
    one = pixel_recipe(videos, qwen, tmp_path / "out")
    annotator = Annotator(one.annotator_settings())
    assert annotator.problem == "" and annotator.codec is None
    result = annotator.annotate(clips)
    num_pairs = sum(len(row["keyframes"]) - 1 for row in clips)
    assert len(result["pairs"]) == num_pairs == len(result["triplets"]) + len(result["rejects"])
    assert len(result["triplets"]) > 2
    idm = load_pixel_inverse(qwen)
    for row in result["triplets"]:
        (alone,) = idm.propose(
            *[[image] for image in images_of(row)], sampling=annotator.settings.sampling.to_sampling(), seeds=[0],
            max_new_tokens=one.max_new_tokens,
        )  # fmt: skip
        assert (row["action"], row["action_tokens"]) == (alone.text, alone.num_tokens)
        assert row["action_logprob"] == pytest.approx(alone.logprob, abs=1e-3)
        assert row["annotator"] == idm.model_id != ""
        assert [row[name] for name in ("codec", "source_codes", "target_codes", "change")] == [None] * 4
    assert all(row["changed_codes"] is None and row["changed_share"] is None for row in result["pairs"])


def test_a_sampled_action_depends_on_its_own_pair(videos, clips, qwen, tmp_path):
    one = pixel_recipe(videos, qwen, tmp_path / "out", sampling={"temperature": 1.0, "seed": 3})
    annotator = Annotator(one.annotator_settings())
    together = {row["triplet_id"]: row for row in annotator.annotate(clips)["triplets"]}
    for clip in reversed(clips):
        for row in annotator.annotate([clip])["triplets"]:
            assert row["action"] == together[row["triplet_id"]]["action"]
    name, row = next(iter(together.items()))
    (alone,) = annotator.idm.propose(
        *[[image] for image in images_of(row)], sampling=ActionSampling(temperature=1.0).to_sampling(),
        seeds=[derive_seed(3, name)], max_new_tokens=one.max_new_tokens,
    )  # fmt: skip
    assert row["action"] == alone.text


def test_a_codec_of_its_own_choice_fills_the_codes(videos, clips, qwen, tiny_base, tmp_path):
    """The same codes as with a model that reads them, the same actions as without a codec."""
    filters = SCORED | {"unchanged": "score"}
    coded = annotated(clips, pixel_recipe(videos, qwen, tmp_path, codec=str(tiny_base), filters=filters))
    plain = annotated(clips, pixel_recipe(videos, qwen, tmp_path))
    by_codes = annotated(clips, pixel_recipe(videos, tiny_base, tmp_path, filters=filters))
    codec = load_codec(tiny_base)
    codes = {row["triplet_id"]: row for row in by_codes}
    assert len(coded) == len(plain) > 2
    for row, other in zip(coded, plain, strict=True):
        assert (row["triplet_id"], row["action"]) == (other["triplet_id"], other["action"])
        assert row["codec"] == codec.codec_id and other["source_codes"] is None
        if row["triplet_id"] in codes:
            assert row["source_codes"] == codes[row["triplet_id"]]["source_codes"]
            assert row["change"] == codes[row["triplet_id"]]["change"]


def test_codes_of_another_codec_than_the_models_own(videos, clips, tiny_base, tmp_path):
    """A model of codes reads its own codec's; what is stored is another's."""
    nano_base = resolve_packaged("nano:base")
    filters = SCORED | {"unchanged": "off"}
    own = annotated(clips, pixel_recipe(videos, tiny_base, tmp_path, filters=filters))
    other = annotated(clips, pixel_recipe(videos, tiny_base, tmp_path, codec=str(nano_base), filters=filters))
    assert {row["codec"] for row in other} == {load_codec(nano_base).codec_id} != {row["codec"] for row in own}
    assert [row["action"] for row in other] == [row["action"] for row in own]


def test_the_job_records_that_no_filter_of_codes_was_applied(videos, qwen, tmp_path, monkeypatch, capsys):
    def annotate(one, stage, listing, pending):
        annotate_here(one)
        return {"block_bytes": 0, "moved_bytes": 0}

    monkeypatch.setattr(jobs.annotate.job, "_annotate", annotate)
    one = pixel_recipe(videos, qwen, tmp_path / "out")
    assert run(one, dry_run=True)["videos"] == 2
    assert (
        "triplets get no image codes, and filters.unchanged is not applied; wm encode adds" in capsys.readouterr().out
    )
    record = run(one)
    assert record["recipe"]["filters"]["unchanged"] == "off"
    assert record["counts"]["pairs"] == record["counts"]["triplets"] + record["counts"]["filtered"]
    table = read_table(tmp_path / "out" / "triplets", TRIPLET_SCHEMA)
    assert table.num_rows == record["counts"]["triplets"] and table.column("change").null_count == table.num_rows
    assert run(one)["whole"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"filters": {"min_changed_codes": 2}},
            r"filters\.min_changed_codes = 2 compares image codes, .* reads pixels",
        ),
        ({"filters": {"unchanged": "on"}}, r"filters\.unchanged = on compares image codes, .* give codec=MODEL"),
        ({"filters": {"unchanged": "score"}}, r"filters\.unchanged = score compares"),
        ({"codec": "nowhere"}, "codec = 'nowhere': no such model folder"),
        ({"prompt": "what <|image_pad|> is it?"}, "special token"),
    ],
)
def test_what_needs_codes_or_cannot_be_asked_is_refused(videos, qwen, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(pixel_recipe(videos, qwen, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_models_that_say_no_action_are_refused(videos, qwen, tiny_base, tmp_path):
    editor = tmp_path / "editor"
    editor.mkdir()
    (editor / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageEditPipeline"}))
    with pytest.raises(InputError, match="is an image editor: it makes images and says no action; expected an inverse"):
        run(pixel_recipe(videos, editor, tmp_path / "out"))
    shutil.copytree(qwen, tmp_path / "mute")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = tmp_path / "mute" / name
        if path.suffix == ".jinja" and path.exists():
            path.unlink()
        elif path.exists():
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    with pytest.raises(InputError, match="has no chat template, which the question is asked with"):
        run(pixel_recipe(videos, tmp_path / "mute", tmp_path / "out"))
    with pytest.raises(InputError, match=r"prompt = 'what\?': idm = .* reads image codes in a layout of its own"):
        run(pixel_recipe(videos, tiny_base, tmp_path / "out", prompt="what?", filters={}))
    assert not (tmp_path / "out").exists()


def test_vision_features_of_a_key_frame_are_computed_once(videos, clips, qwen, tmp_path, monkeypatch):
    """Though it is in two pairs, and these come in batches of their own; and its pixels are decoded once."""
    one = pixel_recipe(videos, qwen, tmp_path / "out", resources={"idm_batch_size": 1})
    annotator = Annotator(one.annotator_settings())
    observed, computed = [], []
    from_pixels, compute = Observation.from_pixels, FeatureStore._compute
    monkeypatch.setattr(Observation, "from_pixels", lambda pixels: observed.append(pixels) or from_pixels(pixels))
    monkeypatch.setattr(FeatureStore, "_compute", lambda self, pixels: computed.extend(pixels) or compute(self, pixels))
    assert len(annotator.annotate(clips)["pairs"]) > len(clips)
    num_keyframes = sum(len(row["keyframes"]) for row in clips)
    assert len(observed) == len(computed) == num_keyframes


def test_adapters_annotate_over_their_base(videos, clips, qwen, tmp_path):
    """As training writes one, and as another program does, which says nothing of its base."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(qwen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(tmp_path / "foreign")
    shutil.copytree(tmp_path / "foreign", tmp_path / "own")
    manifest = {"family": "qwen2_vl", "kind": "adapter", "base_id": base_id_of(qwen), "codec_id": "", "task": "idm"}
    Manifest(**manifest, recipe_digest="abc", base_path=str(qwen)).write(tmp_path / "own")
    own = pixel_recipe(videos, tmp_path / "own", tmp_path / "out")
    foreign = pixel_recipe(videos, tmp_path / "foreign", tmp_path / "out", base=str(qwen))
    bare = annotated(clips, pixel_recipe(videos, qwen, tmp_path / "out"))
    tables = [annotated(clips, one) for one in (own, foreign) if run(one, dry_run=True)["videos"] == 2]
    first, second = ({row["triplet_id"]: (row["action"], row["action_logprob"]) for row in rows} for rows in tables)
    assert first == second != {row["triplet_id"]: (row["action"], row["action_logprob"]) for row in bare}
    names = [{row["annotator"] for row in rows} for rows in (*tables, bare)]
    assert names[0] == {f"{base_id_of(qwen)}/abc"} and names[2] == {base_id_of(qwen)} and names[1] not in names[::2]
    with pytest.raises(InputError, match=r"has no wm_model\.json"):
        run(pixel_recipe(videos, tmp_path / "foreign", tmp_path / "out"), dry_run=True)
    Manifest(**manifest | {"task": "fdm"}, base_path=str(qwen)).write(tmp_path / "own")
    with pytest.raises(InputError, match="was trained as fdm; expected an inverse model"):
        run(own, dry_run=True)
