"""The recipe's groups: old keys say their new names, and records of earlier runs are the same runs."""

import re

import pytest

from jobs.annotate.job import _check_machine, _gpus_per_decoder
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.report import describe_devices
from jobs.look import LookRecipe
from jobs.plan.recipe import PlanRecipe
from wm.config import Recipe
from wm.errors import InputError

GIVEN = {"videos": "v", "idm": "i", "out": "o"}
OLD_RECORD = {
    "videos": "v",
    "idm": "i",
    "out": "o",
    "layout": "kinetics",
    "annotations": None,
    "base": None,
    "dataset": "videos",
    "split": "train",
    "license": "",
    "limit": None,
    "retry": [],
    "max_keyframes": 4,
    "min_interval": 9,
    "keyframe_rule": "greedy_spacing",
    "motion": "farneback",
    "motion_side_px": 40,
    "min_motion": 0.5,
    "filters": AnnotateRecipe(**GIVEN).filters.model_dump(),
    "reader": "auto",
    "image_side_px": 512,
    "time_limit_s": 60.0,
    "memory_limit_mb": 3000,
    "download_limit_mb": 4000,
    "num_workers": 7,
    "max_workers": 9,
    "cpus_per_worker": 0.25,
    "num_annotators": 3,
    "max_annotators": 0,
    "gpus_per_annotator": 0.0,
    "dtype": "float32",
    "annotator_threads": 2,
    "videos_per_shard": 32,
    "codec_batch": 5,
    "idm_batch": 6,
    "max_new_tokens": 32,
}
"""As run.json of an earlier version holds it."""


def test_record_of_earlier_keys_is_the_same_run() -> None:
    keyframes = {"max_keyframes": 4, "min_interval_frames": 9, "rule": "greedy_spacing"}
    keyframes |= {"motion": "farneback", "min_motion_px": 0.5}
    limits = {"time_limit_s": 60.0, "memory_limit_mib": 3000}
    values = GIVEN | {"dataset_layout": "kinetics", "keyframes": keyframes, "limits": limits}
    recipe = AnnotateRecipe.parse(values, "test")
    identity = AnnotateRecipe.identity_settings(recipe.model_dump())
    assert AnnotateRecipe.identity_settings(OLD_RECORD) == identity
    assert "resources" not in identity and identity["keyframes"]["min_motion_px"] == 0.5
    assert AnnotateRecipe.identity_settings(OLD_RECORD | {"min_interval": 8}) != identity


@pytest.mark.parametrize(
    ("kind", "override", "name"),
    [
        (AnnotateRecipe, "layout=epic", "dataset_layout"),
        (AnnotateRecipe, "keyframe_rule=greedy_spacing", "keyframes.rule"),
        (AnnotateRecipe, "min_interval=8", "keyframes.min_interval_frames"),
        (AnnotateRecipe, "num_workers=3", "resources.num_decoders"),
        (AnnotateRecipe, "idm_batch=3", "resources.idm_batch_size"),
        (AnnotateRecipe, "memory_limit_mb=3", "limits.memory_limit_mib"),
        (LookRecipe, "motion=dis", "keyframes.motion"),
        (LookRecipe, "time_limit_s=3", "limits.time_limit_s"),
        (PlanRecipe, "annotate_on=cpu", "resources.annotate_on"),
    ],
)
def test_old_key_says_its_new_name(kind: type[Recipe], override: str, name: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"it is called {name} now")):
        kind.load(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("keyframes.rule=best", "keyframes.rule = 'best': expected top_then_spacing or greedy_spacing"),
        ("dataset_layout=ucf", "dataset_layout = 'ucf': expected one of auto, folder, ucf101"),
        ("resources.max_decoders=1", "resources: max_decoders = 1 is less than num_decoders = 2"),
        ("resources.custom_per_annotator.GPU=1", "GPU has a key of its own, or none; expected a name given to"),
        ("resources.custom_per_annotator.a100=1.5", "a100 = 1.5: expected a share of 1, or a whole number"),
        ("rule=best", "did you mean keyframes.rule?"),
    ],
)
def test_wrong_values_are_named_with_what_was_expected(override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        AnnotateRecipe.load(None, [override, *(f"{key}={value}" for key, value in GIVEN.items())])


def test_decoders_take_a_share_of_a_gpu_that_measures_farneback() -> None:
    exact = AnnotateRecipe.parse(GIVEN | {"keyframes": {"motion": "farneback"}}, "test")
    on_gpu = AnnotateRecipe.parse(GIVEN | {"keyframes": {"motion": "farneback", "device": "cuda"}}, "test")
    assert (exact.gpus_per_decoder, on_gpu.gpus_per_decoder) == (0.0, 0.1)
    assert on_gpu.clip_settings().device == "cuda"
    # A run of before is the same run; on a GPU other frames are measured.
    recorded = exact.model_dump(mode="json")
    del recorded["keyframes"]["device"]
    settings = [AnnotateRecipe.identity_settings(values) for values in (recorded, exact.model_dump(mode="json"))]
    assert settings[0] == settings[1] != AnnotateRecipe.identity_settings(on_gpu.model_dump(mode="json"))
    for kind, given in ((AnnotateRecipe, GIVEN), (LookRecipe, {"videos": "v"})):
        with pytest.raises(InputError, match="device = 'cuda' with motion = 'dis'; only farneback runs on a GPU"):
            kind.parse(given | {"keyframes": {"device": "cuda"}}, "test")


def test_decoders_reserve_no_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    keyframes = {"motion": "farneback", "device": "cuda"}
    recipe = AnnotateRecipe.parse(GIVEN | {"keyframes": keyframes, "resources": {"gpus_per_annotator": 1}}, "test")
    monkeypatch.setattr("jobs.shared.ray_session.num_logical_cpus", lambda: 64)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Counting them imports torch, which a run on cores does without.
    monkeypatch.setattr("jobs.annotate.job.count_gpus", pytest.fail)
    assert _gpus_per_decoder(AnnotateRecipe.parse(GIVEN, "test")) == 0.0
    for number, share in ((0, 0.0), (1, 0.1)):
        for module in ("jobs.annotate.job", "jobs.shared.ray_session"):
            monkeypatch.setattr(f"{module}.count_gpus", lambda number=number: number)
        assert _gpus_per_decoder(recipe) == share
    # A decoder beside an annotator that takes all of the GPU: Ray would wait.
    message = "resources.gpus_per_decoder = 0.1, resources.gpus_per_annotator = 1 asks for 1.1 GPUs; torch finds 1 on"
    with pytest.raises(InputError, match=re.escape(message)):
        _check_machine(recipe, 1)
    # A cluster may get GPUs later.
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("jobs.annotate.job.count_gpus", lambda: 0)
    assert _gpus_per_decoder(recipe) == 0.1


def test_a_run_says_who_measured_and_why_a_gpu_did_not() -> None:
    counts = {"measured_on": {"NVIDIA H200": 1200, "cpu (no cuda: old driver)": 3}}
    assert describe_devices(counts) == "motion measured on: NVIDIA H200 1,200; cpu (no cuda: old driver) 3"
