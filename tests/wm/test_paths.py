"""Paths in recipes: every key that holds one is marked, and no output of a submitted Ray job may be lost."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from tests.helpers.recipes import recipe_classes
from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import mirrored_path
from wm.paths import SUBMITTED_JOB, absolute_path, check_tracking_uri, path_key
from wm.training import TrainRecipe
from wm.training.monitoring.trackers import check_trackers
from wm.training.settings import CheckpointSettings, DataSettings

ROOT = Path(__file__).resolve().parents[2]

NO_PATHS = {
    # Names and texts.
    *(
        "action",
        "PredictRecipe.actions",
        "PredictRecipe.tree",
        "StudyExportRecipe.images",
        "StudyReportRecipe.reference",
        "cors_origins",
        "classes",
        "dataset",
        "label",
        "license",
        "name",
        "notes",
        "retry",
        "shape",
        "sha256",
    ),
    *(
        "split",
        "subset",
        "title",
        "host",
        "device",
        "KeyLimits.models",
        "Key.models",
        "family",
        "targets",
        "zero_shot_label",
        "dataset_layout",
        "rule",
        "system",
        "systems",
    ),
    # Labels of tables, and an entry of [models.NAME].
    *("Labels.zero_shot", "Labels.finetuned", "Labels.bootstrapped", "Labels.unweighted", "Labels.idm"),
    *("ModelEntry.idm", "EvaluateRecipe.idm"),
    # Classes of diffusers, and arguments of their call.
    *("EditRecipe.pipeline", "EditRecipe.scheduler", "EditRecipe.settings"),
    *("EditorTable.pipeline", "EditorTable.scheduler", "EditorTable.settings", "PixelsTable.prompt"),
    *("EditorSettings.pipeline", "EditorSettings.scheduler", "EditorSettings.settings", "PixelsSettings.prompt"),
    # Relative to CollectRecipe.folder; of the judge's endpoint.
    *("ContradictRecipe.model", "ContradictRecipe.base_url", "ContradictRecipe.api_key_variable"),
    *("CollectRecipe.pattern", "JudgeRecipe.model", "JudgeRecipe.base_url", "JudgeRecipe.api_key_variable"),
    # A server that proposes, and a question.
    *("EndpointSettings.base_url", "EndpointSettings.model", "EndpointSettings.api_key_variable"),
    *("AnnotateRecipe.prompt", "ModelEntry.prompt"),
    # A format, a name below another key's folder, a text.
    *("AskRecipe.benchmark", "AskRecipe.file", "AskRecipe.prompt"),
    # Repositories of the hub, licences, a commit's message.
    *("PushRecipe.repo", "PushRecipe.allow_license", "PushRecipe.message", "CardRecipe.base_model"),
    # FOLDER:LABEL, or a label; names of metrics.
    *("CompareRecipe.first", "CompareRecipe.second", "CompareRecipe.metrics"),
    # Of tables and systems.
    *("PaperRecipe.items", "PaperRecipe.names", "FigureOptions.triplets", "FigureOptions.weighted_triplets"),
    # Texts on the pages of a study are files, but for the headline; means are by system.
    "StudySimulateRecipe.means",
    # Keys of another recipe, as on a command line.
    *("BenchmarkRecipe.overrides", "BenchmarkRecipe.demo", "BenchmarkRecipe.annotate"),
    # Relative to another key.
    *("IngestRecipe.file", "BootstrapData.train_file", "BootstrapData.test_file", "BootstrapData.tune_file"),
    # Of a model's manifest, which is no command.
    *("base_id", "codec_id", "decoder_id", "recipe_digest", "Manifest.base_path"),
}
"""Text keys (or CLASS.KEY) that hold no path relative to the working directory."""


RECIPES = recipe_classes()
OUTPUTS = [
    (kind, name)
    for kind in RECIPES
    for name, field in kind.model_fields.items()
    if (mark := path_key(field.metadata)) is not None and mark.is_output
]


def takes_text(annotation: Any) -> bool:
    """Whether a text may be given, apart from the tables of other recipes, which are checked as those."""
    parts = get_args(annotation)
    parts = parts[1:] if get_origin(annotation) is dict else parts
    return annotation is str or any(takes_text(part) for part in parts)


def test_every_text_key_is_marked_as_path_or_known_as_none() -> None:
    for kind in RECIPES:
        for name, field in kind.model_fields.items():
            if not takes_text(field.annotation):
                continue
            is_known = name in NO_PATHS or f"{kind.__name__}.{name}" in NO_PATHS
            assert (path_key(field.metadata) is not None) != is_known, f"{kind.__name__}.{name}"


def test_every_job_has_an_output_key() -> None:
    names = {kind.__name__ for kind, _ in OUTPUTS}
    packages = {path.parent.name for path in (ROOT / "jobs").glob("*/__main__.py")}
    commands = {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")} | packages - {"benchmark", "study"}
    assert len(commands) >= 17
    # One writes into the model's folder, the other uploads.
    commands -= {"card", "push"}
    assert {name for name in commands if f"{name.title()}Recipe" not in names} == set()
    training = (TrainRecipe, DataSettings, CheckpointSettings)
    assert {name for kind, name in OUTPUTS if kind in training} == {"out", "token_cache", "folder"}


def problem_of(kind: type[Recipe], name: str, value: str) -> str:
    """What the recipe's own check says of one key, the others being as they are by default."""
    values = {"out": "", name: value}
    try:
        kind.model_construct(**values)._check_output_paths()  # type: ignore[operator]
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "name"), OUTPUTS, ids=lambda value: getattr(value, "__name__", value))
def test_relative_outputs_of_a_submitted_job_are_refused(
    kind: type[Recipe], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("data/x", "./x", "../x", "~/x", "x"):
        assert problem_of(kind, name, value) == ""
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    for value in ("data/x", "./x", "../x", "~/x", "x"):
        problem = problem_of(kind, name, value)
        assert problem.startswith(f"{name} = {value!r} is relative") and f"{name}=/mnt/shared" in problem
    assert problem_of(kind, name, str(tmp_path / "x")) == problem_of(kind, name, "") == ""


def package_cache(root: Path) -> Path:
    """Where Ray unpacks a working directory, by Ray's own functions."""
    from ray._private.runtime_env.packaging import get_local_dir_from_uri, get_uri_for_package
    from ray._private.runtime_env.working_dir import WorkingDirPlugin

    archive = root / "package.zip"
    archive.write_bytes(b"x")
    plugin = WorkingDirPlugin(str(root / "session" / "runtime_resources"), gcs_client=None)
    folder: Path = get_local_dir_from_uri(get_uri_for_package(archive), plugin._resources_dir)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("kind", "name"), OUTPUTS, ids=lambda value: getattr(value, "__name__", value))
def test_no_output_may_lead_into_the_package_cache(
    kind: type[Recipe], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = package_cache(tmp_path)
    (tmp_path / "link").symlink_to(cache)
    ways = [f"{cache}/x", f"{tmp_path}/link/a/../x", f"{tmp_path}/other/../link", str(cache)]
    for value in ways:
        assert "package cache, which is removed" in problem_of(kind, name, value), value
    # A process that Ray started there, without the command's environment.
    monkeypatch.chdir(cache)
    assert "is relative: in this Ray job it would be" in problem_of(kind, name, "data/x")
    assert problem_of(kind, name, f"{cache}/../../../../x") == ""
    (tmp_path / "runtime_resources").mkdir()
    assert problem_of(kind, name, f"{tmp_path}/runtime_resources/x") == ""


@pytest.mark.parametrize(("kind", "name"), OUTPUTS, ids=lambda value: getattr(value, "__name__", value))
def test_an_output_may_be_in_a_bucket_and_at_no_other_uri(
    kind: type[Recipe], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = package_cache(tmp_path)
    if kind is CheckpointSettings:
        assert problem_of(kind, name, "s3://bucket/x") == problem_of(kind, name, f"file://{tmp_path}/x") == ""
        assert "package cache" in problem_of(kind, name, f"file://{cache}/x")
        return
    for value in (f"file://{tmp_path}/x", "hdfs://host/x", "http://host/x"):
        assert problem_of(kind, name, value).startswith(f"{name} = {value!r} is no URI of an object store; expected")
    # A bucket keeps what is written, wherever the command runs.
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "cache"))
    for value in ("s3://bucket/x", str(mirrored_path("gs://bucket/x"))):
        assert problem_of(kind, name, value) == ""


def test_ray_sets_the_variable_that_marks_a_submitted_job() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert SUBMITTED_JOB == RAY_JOB_CONFIG_JSON_ENV_VAR


def test_a_stage_of_bootstrap_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.bootstrap import BootstrapRecipe, plan

    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    settings = ["fdm.data.token_cache=cache", "idm.max_steps=1", "fdm.max_steps=1", "select.k=1"]
    recipe = BootstrapRecipe.load(None, [f"out={tmp_path}/run", *settings])
    with pytest.raises(InputError, match=r"table \[fdm\] for stage fdm.*: data: token_cache = 'cache' is relative"):
        plan(recipe)


def test_a_submitted_command_ends_in_one_line(tmp_path: Path) -> None:
    cache = package_cache(tmp_path)
    (cache / "recipe.toml").write_text('out = "data/x"\n')  # a relative input that was sent along is read
    command = [sys.executable, "-m", "jobs.pretrain", "recipe.toml", "--dry-run"]
    environment = os.environ | {SUBMITTED_JOB: "{}", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=cache, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == (
        f"error: recipe.toml: out = 'data/x' is relative: in this Ray job it would be {cache}/data/x, in Ray's package "
        "cache, which is removed with the session, and the output would be lost; give an absolute path on storage that "
        "all nodes share, such as out=/mnt/shared/run\n"
    )
    assert sorted(path.name for path in cache.iterdir()) == ["recipe.toml"]


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)
def test_absolute_paths_of_every_recipe(kind: type[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marks = {name: path_key(field.metadata) for name, field in kind.model_fields.items()}
    values = {name: "a/b" for name, mark in marks.items() if mark is not None}
    values |= {name: "text" for name, mark in marks.items() if mark is None}
    recipe = kind.model_construct(**values).with_absolute_paths()
    for name, mark in marks.items():
        assert getattr(recipe, name) == ("text" if mark is None else os.path.abspath("a/b")), name  # noqa: PTH100


def test_absolute_paths_reach_into_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.evaluate import EvaluateRecipe

    monkeypatch.chdir(tmp_path)
    recipe = EvaluateRecipe.load(
        None, ["out=o", "triplets=t", "models.a.path=m", "models.a.role=idm", "models.a.label=A", "models.a.idm=x"]
    )
    entry = recipe.with_absolute_paths().models["a"]
    assert (entry.path, entry.idm, entry.base) == (str(tmp_path / "m"), "x", "")
    source = [{"path": "t", "selection": "s"}]
    train = TrainRecipe(task="idm", base="b", out="o", max_steps=1, triplets=source, checkpoint={"folder": "s3://b/c"})  # type: ignore[arg-type]
    there = train.with_absolute_paths()
    assert [(part.path, part.selection) for part in there.triplets] == [(str(tmp_path / "t"), str(tmp_path / "s"))]
    assert there.checkpoint.folder == "s3://b/c" and there.eval.triplets == there.data.token_cache == ""
    assert absolute_path("https://host/a b.mp4") == "https://host/a b.mp4"
    assert absolute_path("file:///a%20b") == "/a b"


def test_a_local_tracker_of_a_submitted_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    for uri in ("mlruns", "sqlite:///mlflow.db", "file:mlruns", "file://mlruns"):
        with pytest.raises(ValueError, match=r"^U = .*is relative"):
            check_tracking_uri("U", uri)
    for uri in ("http://host:5000", "databricks", "sqlite:////data/mlflow.db", "file:///data/mlruns", "/data/mlruns"):
        check_tracking_uri("U", uri)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"^logging\.trackers = 'mlflow': MLFLOW_TRACKING_URI = 'mlruns' is relative"):
        check_trackers(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    check_trackers(["mlflow"])
