"""``annotate`` from files to files: actors in this process, then the complete job in a Ray session."""

import contextlib
import errno
import io
import json
import shutil
import socket
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jobs.annotate.annotator import Annotator
from jobs.annotate.decoder import Decoder
from jobs.annotate.job import AnnotateRecipe, _show_progress, run
from jobs.annotate.metrics import Metrics
from jobs.annotate.pairs import even_chunks, halve_when_full
from jobs.annotate.settings import ActionSampling
from jobs.annotate.shards import shard_table
from jobs.annotate.tables import DECODED_SCHEMA, PAIRS_SCHEMA
from tests.helpers.annotate_data import decode, recipe, write_videos
from tests.helpers.video_files import read_mark, write_video
from wm.cli import main as cli_main
from wm.datasets.filters import Filters
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.images import fit_square

CODES_ALIKE = {"unchanged": "score"}
"""A random codec gives most images the same codes."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


def test_actors_make_triplets_whose_columns_belong_together(videos, tiny_base, tmp_path):
    one = recipe(videos, tiny_base, tmp_path / "out")
    clips = decode(one)
    assert clips.schema.equals(DECODED_SCHEMA)
    annotator = Annotator(one.annotator_settings())
    encoded = []
    direct = annotator.codec.encode_with_features
    annotator.codec.encode_with_features = lambda pixels: encoded.append(len(pixels)) or direct(pixels)
    result = annotator.annotate(clips.to_pylist())
    triplets, rejects = result["triplets"], result["rejects"]
    by_key = {row["key"]: row for row in clips.to_pylist()}
    num_keyframes = sum(len(row["images"]) for row in by_key.values() if row["images"])
    used = {row["video_uri"] for row in triplets}
    assert used == {by_key["wave/good.mp4"]["uri"], by_key["wave/other.avi"]["uri"]}
    assert sum(encoded) == num_keyframes  # each image once, though the inner ones stand in two pairs
    assert len(triplets) + sum(row["reason"] == "empty_action" for row in rejects) == num_keyframes - 2
    for row in triplets:
        features = []
        for side in ("source", "target"):
            pixels = np.array(Image.open(io.BytesIO(row[f"{side}_image"]["bytes"])))
            assert read_mark(pixels) == row[f"{side}_frame"]
            assert row[f"{side}_time_s"] == pytest.approx(row[f"{side}_frame"] / 25, abs=1e-6)
            codes_BN, features_BND = direct(fit_square(pixels, annotator.codec.side_px)[None].copy())
            assert row[f"{side}_codes"] == codes_BN[0].tolist()
            features.append(features_BND[0])
        change = (features[1] - features[0]).square().sum(-1)
        assert torch.allclose(torch.tensor(row["change"]), change, atol=1e-5)
        assert row["target_frame"] - row["source_frame"] >= 8
        assert (row["class_label"], row["origin"], row["codec"]) == ("wave", "idm", annotator.codec.codec_id)
        assert row["annotator"] == annotator.idm.role.model.base_id
    assert len({row["triplet_id"] for row in triplets}) == len(triplets)


def test_sampled_actions_do_not_depend_on_batches_or_neighbours(videos, tiny_base, tmp_path):
    """Equation 1's sampled action: its seed is made of the pair's id, so that shards and batches change nothing."""

    one = recipe(videos / "wave", tiny_base, tmp_path / "out", max_new_tokens=12)
    annotator = Annotator(one.annotator_settings())

    def actions(clips, batch=64, **sampling):
        changes = {"sampling": ActionSampling(**sampling), "idm_batch_size": batch}
        annotator.settings = replace(annotator.settings, **changes)
        rows = annotator.annotate(clips)["triplets"]
        return {row["triplet_id"]: (row["action"], row["action_logprob"]) for row in rows}

    clips = decode(one).to_pylist()
    greedy, sampled = actions(clips), actions(clips, temperature=1.0)
    assert greedy.keys() == sampled.keys() and len(sampled) > 2
    apart = [actions([clip], batch=1, temperature=1.0) for clip in reversed(clips)]
    for name, (text, logprob) in {key: row for part in apart for key, row in part.items()}.items():
        assert sampled[name] == (text, pytest.approx(logprob, abs=1e-4))
    texts = [[row[0] for row in rows.values()] for rows in (greedy, sampled, actions(clips, temperature=1.0, seed=1))]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    # Almost no temperature is the greedy action, with the same likelihood: that of the model as it is.
    cold = actions(clips, temperature=1e-6)
    assert {name: row[0] for name, row in cold.items()} == {name: row[0] for name, row in greedy.items()}
    assert all(row[1] == pytest.approx(greedy[name][1], abs=1e-4) for name, row in cold.items())


def test_every_video_is_in_a_triplet_or_a_reject_with_its_reason(videos, tiny_base, tmp_path):
    one = recipe(videos, tiny_base, tmp_path / "out")
    clips = decode(one).to_pylist()
    rejects = Annotator(one.annotator_settings()).annotate(clips)["rejects"]
    actual = {row["uri"].rsplit("/", 1)[1]: (row["outcome"], row["reason"]) for row in rejects if "odd" in row["uri"]}
    assert actual == {
        "corrupt.mp4": ("failed", "not_a_video"),
        "empty.mp4": ("failed", "empty_file"),
        "one.mp4": ("failed", "one_frame"),
        "still.mp4": ("filtered", "too_few_keyframes"),
    }
    assert all(row["uri"] in row["detail"] for row in rejects if row["outcome"] == "failed")
    assert all((row["failed_s"] or 0) > 0 if row["outcome"] == "failed" else row["scan_s"] > 0 for row in clips)


def annotated(annotator, clips, **settings):
    """(triplet ids, reasons of rejects, rows of the pairs table) under other settings."""
    annotator.settings = replace(annotator.settings, **settings)
    result = annotator.annotate(clips)
    by_reason = Counter(row["reason"] for row in result["rejects"])
    remaining = [row["triplet_id"] for row in result["triplets"]]
    assert remaining == [row["triplet_id"] for row in result["pairs"] if row["outcome"] == "ok"]
    assert by_reason == Counter(row["reason"] for row in result["pairs"] if row["outcome"] == "filtered")
    assert len({row["reject_id"] for row in result["rejects"]}) == len(result["rejects"])
    return remaining, by_reason, result["pairs"]


def test_filters_take_pairs_out_one_by_one_and_say_which(videos, tiny_base, tmp_path):
    one = recipe(videos / "wave", tiny_base, tmp_path / "out")
    clips = decode(one).to_pylist()
    annotator = Annotator(one.annotator_settings())
    annotator.idm.role.model.detokenize = lambda ids: "push it"
    everything, none, pairs = annotated(annotator, clips, filters=Filters(**CODES_ALIKE, action="score"))
    num_pairs = sum(len(row["keyframes"]) - 1 for row in clips)
    assert (len(everything), none, len(pairs)) == (num_pairs, Counter(), num_pairs)
    assert pa.Table.from_pylist(pairs, schema=PAIRS_SCHEMA).num_rows == num_pairs
    for row in pairs:  # what is in the table is what the images show
        assert row["difference"] > 1 and row["sharpness"] > 10 and 20 < row["luma"] < 235
        assert row["action"] == "push it" and row["action_tokens"] > 0
    for filters, reason in (
        (Filters(**CODES_ALIKE, static="on", static_difference=255.0), "static"),
        (Filters(**CODES_ALIKE, dark="on", dark_luma=255.0), "dark_frame"),
        (Filters(**CODES_ALIKE, blurred="on", blurred_sharpness=1e9), "blurred_frame"),
        (Filters(**CODES_ALIKE, action="score", likelihood="on", min_likelihood=0.0), "unlikely_action"),
    ):
        remaining, by_reason, rows_ = annotated(annotator, clips, filters=filters)
        assert (remaining, by_reason) == ([], {reason: num_pairs})
        assert all((row["action"] is None) == (reason != "unlikely_action") for row in rows_)  # no word for nothing
    off = Filters(**dict.fromkeys(("static", "cut", "dark", "blurred", "near_duplicate", "unchanged", "action"), "off"))
    remaining, _, rows_ = annotated(annotator, clips, filters=off)
    assert remaining == everything
    unmeasured = ("difference", "cut", "luma", "sharpness", "source_hash", "target_hash", "repeat_bits")
    assert all(row[name] is None for row in rows_ for name in unmeasured)
    assert annotated(annotator, clips, min_motion_px=1e9)[1] == {"too_little_motion": num_pairs}
    annotator.idm.role.model.detokenize = lambda ids: " "
    assert annotated(annotator, clips, min_motion_px=0.0)[1] == {"empty_action": num_pairs}


def test_pairs_whose_codes_do_not_change_are_filtered(videos, tiny_base, tmp_path):
    """Of four key-frames the second has the codes of the first, the third differs in one code, the fourth in three."""
    one = recipe(videos / "wave", tiny_base, tmp_path / "out", keyframes={"max_keyframes": 4, "rule": "greedy_spacing"})
    clips = [row for row in decode(one).to_pylist() if len(row["keyframes"]) == 4][:1]
    annotator = Annotator(one.annotator_settings())
    annotator.idm.role.model.detokenize = lambda ids: "push it"
    codes_BN = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [5, 9, 7, 8], [1, 6, 2, 8]])
    features_BND = torch.arange(4 * 4 * 2, dtype=torch.float32).reshape(4, 4, 2)
    annotator.codec.encode_with_features = lambda pixels_BHWC: (codes_BN, features_BND)
    displayed = []
    direct = annotator._propose
    annotator._propose = lambda pairs, visited: displayed.append(len(pairs)) or direct(pairs, visited)

    def outcome(**filters):
        remaining, by_reason, pairs = annotated(annotator, clips, filters=Filters(action="score", **filters))
        assert [row["changed_codes"] for row in pairs] == [0, 1, 3]
        assert [row["changed_share"] for row in pairs] == [0.0, 0.25, 0.75]
        assert [row["action"] is None for row in pairs] == [row["reason"] == "unchanged_codes" for row in pairs]
        assert remaining == [row["triplet_id"] for row in pairs if not row["reason"]]
        findings = [row["findings"].count("unchanged_codes") for row in pairs]
        return len(remaining), by_reason, findings, displayed.pop()

    assert outcome() == (2, {"unchanged_codes": 1}, [1, 0, 0], 2)
    assert outcome(min_changed_codes=2) == (1, {"unchanged_codes": 2}, [1, 1, 0], 1)
    assert outcome(min_changed_codes=4) == (0, {"unchanged_codes": 3}, [1, 1, 1], 0)
    assert outcome(unchanged="score") == (3, {}, [1, 0, 0], 3)
    assert outcome(unchanged="off") == (3, {}, [0, 0, 0], 3)
    annotator.settings = replace(annotator.settings, filters=Filters(action="score"))
    [reject] = annotator.annotate(clips)["rejects"]
    assert (reject["outcome"], reject["reason"]) == ("filtered", "unchanged_codes")
    assert "0 of 4 image codes change, fewer than filters.min_changed_codes = 1" in reject["detail"]


def test_a_threshold_that_no_pair_reaches_is_refused(videos, tiny_base, tmp_path):
    filters = {"min_changed_codes": 5}
    with pytest.raises(InputError, match=r"filters\.min_changed_codes = 5, but an image has 4 codes: .* 1 to 4"):
        run(recipe(videos, tiny_base, tmp_path / "out", filters=filters))


def test_a_cut_and_a_repeated_clip_are_found(tiny_base, tmp_path):
    rng = np.random.default_rng(3)
    scenes = [
        cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), (160, 96), interpolation=cv2.INTER_CUBIC)
        for _ in range(2)
    ]
    moving = [np.roll(scenes[0], 3 * step, axis=1) for step in range(30)] + [
        np.roll(scenes[1], 3 * step, axis=1) for step in range(30)
    ]
    write_video(tmp_path / "set" / "a.mp4", moving)
    shutil.copy(tmp_path / "set" / "a.mp4", tmp_path / "set" / "b.mp4")
    on = {**CODES_ALIKE, "cut": "on", "near_duplicate": "on", "action": "score"}
    one = recipe(tmp_path / "set", tiny_base, tmp_path / "out", filters=on, keyframes={"rule": "greedy_spacing"})
    annotator = Annotator(one.annotator_settings())
    annotator.idm.role.model.detokenize = lambda ids: "push it"
    clips = decode(one).to_pylist()
    result = annotator.annotate(clips)
    cuts = [row for row in result["pairs"] if row["source_frame"] < 30 <= row["target_frame"]]
    assert cuts and all(row["reason"] == "hard_cut" and row["cut"] > 3 for row in cuts)
    others = [row for row in result["pairs"] if row not in cuts]
    assert others and all(row["cut"] < 3 for row in others)
    assert {row["reason"] for row in others if row["key"] == "a.mp4"} == {""}
    assert {row["reason"] for row in others if row["key"] == "b.mp4"} == {"near_duplicate"}


@pytest.mark.parametrize(("items", "most"), [(0, 4), (1, 4), (4, 4), (5, 4), (65, 64), (130, 64), (7, 1)])
def test_even_chunks_cover_everything_in_order_and_differ_by_one(items, most):
    chunks = list(even_chunks(range(items), most))
    assert [item for chunk in chunks for item in chunk] == list(range(items))
    sizes = {len(chunk) for chunk in chunks}
    assert (
        len(chunks) == -(-items // most)
        and max(sizes, default=0) <= most
        and max(sizes, default=0) - min(sizes, default=0) <= 1
    )


def test_a_batch_too_large_for_memory_is_halved_until_it_fits(caplog):
    def function(start, stop):
        if stop - start > 3:
            raise torch.OutOfMemoryError("full")
        return list(range(start, stop))

    assert halve_when_full(function, 10) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 10 at once; continuing with 5",
        "out of memory with 5 at once; continuing with 2",
    ]

    def never(start, stop):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        halve_when_full(never, 2)


def test_a_block_that_was_split_is_refused(videos, tiny_base, tmp_path):
    one = recipe(videos / "wave", tiny_base, tmp_path / "out")
    with pytest.raises(RuntimeError, match="shard 0 came in 1 rows of 2"):
        Annotator(one.annotator_settings())(decode(one).slice(0, 1))


def test_a_block_of_another_node_counts_as_moved(videos, tiny_base, tmp_path):
    one = recipe(videos / "wave", tiny_base, tmp_path / "out")
    block, annotator = decode(one), Annotator(one.annotator_settings())
    here = annotator(block)
    column = block.schema.get_field_index("node")
    away = annotator(block.set_column(column, "node", pa.array(["f" * 56] * block.num_rows)))
    assert here["block_bytes"] == [block.nbytes] and here["moved_bytes"] == [0]
    assert away["moved_bytes"] == away["block_bytes"] and away["block_bytes"][0] >= block.nbytes
    reports = [{name: values[0] for name, values in answer.items()} for answer in (here, away, here)]
    traffic = _show_progress(reports, 6, 6)
    assert traffic["moved_bytes"] == away["block_bytes"][0]
    assert traffic["block_bytes"] == traffic["moved_bytes"] + 2 * block.nbytes


def test_trouble_of_the_machine_ends_the_run_and_is_no_reject(videos, tiny_base, tmp_path, monkeypatch):
    one = recipe(videos / "wave", tiny_base, tmp_path / "out")
    clips = decode(one)

    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    annotator = Annotator(one.annotator_settings())
    with monkeypatch.context() as patch:
        patch.setattr("jobs.annotate.shards.write_table", full)
        answer = annotator(clips)
    assert answer["errno"] == [errno.ENOSPC] and "No space left" in answer["problem"][0]
    decoder = Decoder(one.clip_settings(), one.download_settings(), one.dataset)
    monkeypatch.setattr(decoder.reader, "read_rules", full)
    listing = list_videos(one.videos)
    answer = annotator(decoder(shard_table(listing, 0, 0, listing.num_rows)))
    assert "on this machine" in answer["problem"][0] and answer["errno"] == [errno.ENOSPC]
    with pytest.raises(OSError, match="No space left"):
        _show_progress([{name: values[0] for name, values in answer.items()}], 2, 2)


def test_too_little_memory_for_any_decoder_is_named_in_one_line(videos, tiny_base, tmp_path):
    clips = decode(recipe(videos / "wave", tiny_base, tmp_path / "out", limits={"memory_limit_mib": 100})).to_pylist()
    assert {row["errno"] for row in clips} == {0}
    assert all("on this machine: the video process did not start" in row["problem"] for row in clips)
    with pytest.raises(InputError, match="did not start"):
        _show_progress([{"errno": 0, "problem": clips[0]["problem"]}], 2, 2)


def test_a_model_that_does_not_load_is_named_in_one_line(videos, tiny_base, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(tiny_base, broken)
    manifest = broken / "wm_model.json"
    manifest.write_text(manifest.read_text().replace('"codec_id": "vq-', '"codec_id": "vq-other'))
    one = recipe(videos / "wave", broken, tmp_path / "out")
    answer = Annotator(one.annotator_settings())(decode(one))
    assert "vq-other" in answer["problem"][0]
    assert not (tmp_path / "out" / "triplets").exists()


def test_a_model_that_this_node_lacks_is_named_with_the_host(tmp_path):
    one = AnnotateRecipe.parse({"videos": "v", "idm": str(tmp_path / "gone"), "out": "o"}, "test")
    problem = Annotator(one.annotator_settings()).problem
    assert problem.startswith(f"on node {socket.gethostname()}: ") and str(tmp_path / "gone") in problem


def test_dry_run_lists_and_touches_nothing(videos, tiny_base, tmp_path, capsys):
    plan = run(recipe(videos, tiny_base, tmp_path / "out"), dry_run=True)
    assert plan == {"videos": 6, "whole": False}
    message = capsys.readouterr().out
    assert "6 videos of 2 classes" in message
    assert "keyframes.min_interval_frames = 8" in message
    assert not (tmp_path / "out").exists()


def test_a_forward_model_is_no_annotator(videos, tiny_base, tmp_path):
    adapter = {"family": "chameleon", "kind": "adapter", "base_id": "b", "codec_id": "c"}
    for name, manifest in (("adapter", adapter), ("full", adapter | {"kind": "full"})):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        (folder / ("config.json" if name == "full" else "adapter_config.json")).write_text("{}")
        (folder / "wm_model.json").write_text(json.dumps(manifest | {"task": "fdm"}))
        # By the run's folder too, and before a base is looked at.
        with pytest.raises(InputError, match=r"idm = .* was trained as fdm; expected an inverse model \(idm\)$"):
            run(recipe(videos, folder.parent, tmp_path / "out", base="nowhere"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"idm": "nowhere"}, "idm = 'nowhere': no such model folder"),
        ({"idm": "."}, "has neither config.json nor adapter_config.json"),
        ({"base": "nowhere"}, "base = 'nowhere': no such model folder"),
        ({"videos": "nowhere"}, "videos = 'nowhere': no such file or folder"),
    ],
)
def test_bad_input_is_named_before_anything_starts(videos, tiny_base, tmp_path, changed, message):
    with contextlib.chdir(tmp_path), pytest.raises(InputError, match=message):
        run(recipe(**({"videos": videos, "idm": tiny_base, "out": tmp_path / "out"} | changed)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        "dataset=",
        "split=",
        "keyframes.max_keyframes=1",
        "retry=['bad luck']",
        "keyframes.rule=best",
        "reader=ffmpeg",
        "keyframes.motion=none",
        "speed=3",
        "keyframes.min_interval_frames=2.5",
    ],
)
def test_wrong_settings_name_the_key(videos, tiny_base, tmp_path, capsys, wrong):
    settings = [f"videos={videos}", f"idm={tiny_base}", f"out={tmp_path / 'out'}", wrong, "--dry-run"]
    assert cli_main(AnnotateRecipe, run, name="annotate", description="", argv=settings) == 2
    assert wrong.split("=")[0] in capsys.readouterr().err


def test_pairs_are_counted_by_what_became_of_them(monkeypatch):
    metrics, counted = Metrics("clips"), Counter()
    monkeypatch.setattr(metrics._pairs, "inc", lambda number, tags: counted.update({tags["outcome"]: number}))
    metrics.shard({"pairs": 5, "triplets": 2, "reasons": {"filtered/static": 3}, "seconds": {}})
    assert counted == {"ok": 2, "filtered": 3}
