"""A tiny InstructPix2Pix in the form of diffusers, over a bench: images, seeds, rejects, a kill, and bad folders."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import edit, score
from jobs.edit import EditRecipe
from jobs.edit import job as edit_job
from jobs.score import ScoreRecipe
from tests.helpers.bench_files import TASKS, bench_pair, write_bench
from tests.helpers.models_editors import PIPELINE, write_pix2pix
from wm.dynamics.editor import ImageEditor, candidate_seed
from wm.dynamics.protocols import SampleFailure
from wm.errors import InputError
from wm.evaluation.bench_rows import read_bench_rows
from wm.evaluation.predictions import PREDICTION_SCHEMA, list_predictions
from wm.images import decode_image
from wm.models.pipelines import load_pipeline
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA
from wm.tables import read_table, write_table

QUICK = {"num_inference_steps": 2, "image_guidance_scale": 1.2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("edit"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pix2pix(tmp_path_factory.mktemp("pix2pix") / "model", checked=True)


def recipe_of(bench, model, out, **changes):
    values = {"model": str(model), "triplets": str(bench), "out": str(out), "settings": QUICK, "resolution": 64}
    return EditRecipe.parse(values | changes, "test")


def images_of(out):
    rows = read_table(out / "predictions", PREDICTION_SCHEMA).to_pylist()
    return {
        (row["triplet_id"], row["sampling_seed"], candidate): decode_image(row["image"]["bytes"], "image")
        for row in rows
        for candidate in row["candidates"]
    }


def test_images_are_those_of_diffusers(bench, model, tmp_path, capsys):
    recipe = recipe_of(bench, model, tmp_path / "out", seeds=[3, 5], scheduler="DDIMScheduler", limit=2)
    assert edit.run(recipe, dry_run=True) == {} and not (tmp_path / "out").exists()
    record = edit.run(recipe)
    assert record["counts"] == {
        "rows": 2, "rows_with_images": 2, "rows_without_images": 0, "rows_without_images_by_class": {}, "images": 4,
        "distinct_images": 4, "rejects_by_reason": {},
        # 64 x 64 pixels for 24 x 16: what is cropped away is said.
        "stretched_images": 4,
    }  # fmt: skip
    # The pipeline's own defaults are recorded beside what was given.
    assert record["settings"] == QUICK | {"guidance_scale": 7.5, "negative_prompt": None, "eta": 0.0}
    facts = list_predictions(tmp_path / "out")
    assert {(row["system"], row["decoding"], row["view"]) for row in facts} == {("InstructPix2Pix", "unknown", "full")}
    # The call that its users write, with the same noise.
    from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(model)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    images = images_of(tmp_path / "out")
    row = read_bench_rows(bench)[0]
    # 24 x 16 pixels: 64 and 96 as multiples of 64 that the short side allows, the latter rounded down.
    source = Image.fromarray(bench_pair(0)[0]).resize((64, 64), Image.Resampling.LANCZOS, box=(4, 0, 20, 16))
    noise = torch.Generator().manual_seed(candidate_seed(5, row.triplet_id, 0))
    expected = pipeline("do 0", image=source, generator=noise, **QUICK).images[0]
    assert np.array_equal(images[row.triplet_id, 5, 0], np.array(expected))
    assert not np.array_equal(images[row.triplet_id, 5, 0], images[row.triplet_id, 3, 0])
    # Any other command reads the set.
    scores = {"predictions": [str(tmp_path / "out")], "triplets": str(bench), "out": str(tmp_path / "scores")}
    score.run(ScoreRecipe.parse(scores, "test"))
    assert "InstructPix2Pix: 3 triplets have no prediction" in capsys.readouterr().out


class FakeEditor(ImageEditor):
    """Adds a number of the seed to the source, without a pipeline; fails where it is told to."""

    def __init__(self, fail=(), stop_at=None):
        object.__setattr__(self, "fail", fail)
        object.__setattr__(self, "left", [stop_at])
        for name, value in {"pipeline": None, "settings": {}, "resolution": 0, "batch_size": 2}.items():
            object.__setattr__(self, name, value)

    def list_settings(self):
        return {}

    def edit(self, sources, actions, seeds):
        if self.left[0] is not None:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise KeyboardInterrupt
        return [
            SampleFailure("safety_checker", "withheld") if action in self.fail else source + np.uint8(seed % 3)
            for source, action, seed in zip(sources, actions, seeds, strict=True)
        ]


def test_failures_are_rejects_and_a_kill_loses_a_shard(bench, tmp_path, monkeypatch, capsys):
    def run(out, **fake):
        monkeypatch.setattr(edit_job, "load_editor", lambda recipe: FakeEditor(("do 1",), **fake))
        recipe = recipe_of(bench, bench, tmp_path / out, num_candidates=4, shard_rows=2, system="PixInst")
        return edit.run(recipe)["counts"]

    counts = run("whole")
    # Of four candidates with three different outcomes some are equal, and stored once.
    assert counts["images"] == 16 and counts["distinct_images"] <= 12 and counts["rows_with_images"] == 4
    assert counts["rejects_by_reason"] == {"safety_checker": 4}
    assert counts["rows_without_images_by_class"] == {"magicbrush": 1}
    rejects = read_table(tmp_path / "whole" / "rejects", REJECT_SCHEMA).to_pylist()
    assert rejects[2]["detail"].endswith("seed 0, candidate 2: withheld") and rejects[2]["stage"] == "edit"
    assert "rejects, safety_checker: 4" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        run("killed", stop_at=6)
    files = {path.name for path in (tmp_path / "killed" / "predictions").iterdir()}
    assert files == {"part-00000.parquet"} and run("killed") == counts
    whole, killed = (images_of(tmp_path / out) for out in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(np.array_equal(whole[key], killed[key]) for key in whole)
    assert {row["system"] for row in list_predictions(tmp_path / "whole")} == {"PixInst"}
    assert len({triplet_id for triplet_id, _, _ in whole}) == len(TASKS) - 1


def test_the_safety_checkers_black_images_are_rejects(bench, model, tmp_path, monkeypatch):
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    # As the release: flagged images come back black.
    forward = lambda self, clip_input, images: (images * 0, [True] * len(images))  # noqa: E731
    monkeypatch.setattr(StableDiffusionSafetyChecker, "forward", forward)
    record = edit.run(recipe_of(bench, model, tmp_path / "out", limit=1))
    assert record["counts"]["rejects_by_reason"] == {"safety_checker": 1} and record["counts"]["images"] == 0
    # Without the checker its weights need not be there.
    bare = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("safety_checker"))
    record = edit.run(recipe_of(bench, bare, tmp_path / "free", limit=1, safety_checker=False))
    assert record["counts"]["images"] == 1


def test_an_action_that_would_be_cut_is_a_reject(bench, tmp_path, monkeypatch):
    class Reader(FakeEditor):
        def check_action(self, action):
            if action == "do 2":
                raise InputError("action 'do 2' has 80 tokens")

    monkeypatch.setattr(edit_job, "load_editor", lambda recipe: Reader())
    rows = read_table(bench / "triplets", TRIPLET_SCHEMA).to_pylist()
    rows[4]["action"] = " "  # which is none, and not a long one
    write_table(rows, tmp_path / "bench" / "part.parquet", TRIPLET_SCHEMA)
    counts = edit.run(recipe_of(tmp_path / "bench", bench, tmp_path / "out", seeds=[0, 1]))["counts"]
    assert counts["images"] == 6 and counts["rejects_by_reason"] == {"long_action": 1, "no_action": 1}
    rejects = {row["reason"]: row for row in read_table(tmp_path / "out" / "rejects", REJECT_SCHEMA).to_pylist()}
    reject = rejects["long_action"]
    assert reject["uri"] == rows[2]["triplet_id"] and rejects["no_action"]["uri"] == rows[4]["triplet_id"]
    assert (reject["stage"], reject["detail"]) == ("edit", "action 'do 2' has 80 tokens")


def change_index(folder, **values):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | values))


def lose_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "text_encoder/model.safetensors")
    tensors.pop(next(name for name in sorted(tensors) if name.endswith("final_layer_norm.weight")))
    save_file(tensors, folder / "text_encoder/model.safetensors", {"format": "pt"})


def pickle_the_weights(folder):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save({}, file.with_suffix(".bin"))
    file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "no model_index.json in .*; expected a folder of a StableDiff"),
        (
            lambda f: change_index(f, _class_name="FluxPipeline"),
            "names the pipeline 'FluxPipeline', not StableDiffusionI",
        ),
        (lambda f: change_index(f, _class_name=["my", "Own"]), "names the pipeline .*'my', 'Own'"),
        (lambda f: change_index(f, unet=["my_unet", "UNet"]), "unet is of 'my_unet', code that is never run"),
        (lambda f: change_index(f, unet=["../x", "UNet"]), "unet is of '../x', code that is never run"),
        (lambda f: (f / "unet/config.json").write_text('{"auto_map": {"A": "b.C"}}'), "auto_map = .*never run"),
        (lambda f: (f / "unet/config.json").write_text("{"), "config.json is no readable JSON"),
        (lambda f: shutil.rmtree(f / "vae"), "model_index.json names vae, and there is no folder .*/vae"),
        # Others that diffusers would load: a pipeline inside, with defaults of its own, and a module's own imports.
        (lambda f: change_index(f, unet=["diffusers", "DiffusionPipeline"]), "unet is 'DiffusionPipeline' of diffus"),
        (lambda f: change_index(f, unet=["diffusers", "FlashPackDiffusionPipeline"]), "unet is 'FlashPackDiffusionP"),
        (lambda f: change_index(f, vae=["pipeline_utils", "DiffusionPipeline"]), "vae is 'DiffusionPipeline' of pipe"),
        (lambda f: change_index(f, vae=["transformers", "AutoModel"]), "vae is 'AutoModel' of transformers; expected"),
        (pickle_the_weights, "holds no StableDiffusionInstructPix2PixPipeline that can be read: .*safetensors"),
        (lose_a_tensor, "text_encoder: 1 tensors are missing: .*final_layer_norm.weight"),
    ],
)
def test_bad_folders_are_one_line(model, tmp_path, damage, message):
    shutil.copytree(model, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message) as caught:
        load_pipeline(tmp_path / "model", PIPELINE)
    assert "\n" not in str(caught.value)


def test_bad_recipes_are_one_line_and_write_nothing(bench, model, tmp_path, monkeypatch):
    for changes, message in (
        ({"model": "timbrooks/instruct-pix2pix"}, "no such file or folder: timbrooks/instruct-pix2pix"),
        ({"pipeline": "NoSuchPipeline"}, "names the pipeline 'StableDiff.*', not NoSuchPipeline; give pipeline="),
        (
            {"settings": {"steps": 5}},
            "settings.steps: StableDiffusion.* takes no such argument; expected one of eta, g",
        ),
        ({"scheduler": "Fast"}, "scheduler = 'Fast': diffusers .* has no such scheduler"),
        ({"seeds": [1, 1]}, "expected different whole numbers"),
        ({"resources": {"device": "cuda:99"}}, "device = 'cuda:99'"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            edit.run(recipe_of(bench, changes.pop("model", model), tmp_path / "out", **changes))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"image editors need diffusers: pip install 'wm\[baselines\]'"):
        edit.run(recipe_of(bench, model, tmp_path / "out"))
