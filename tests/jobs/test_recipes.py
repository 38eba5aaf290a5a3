"""Every recipe that comes with the code is read by its job, and a mistake in one is told before any work."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.annotate.job import AnnotateRecipe
from jobs.ask import AskRecipe
from jobs.bootstrap import BootstrapRecipe, plan, run
from jobs.edit import EditRecipe
from jobs.evaluate import EvaluateRecipe
from jobs.ingest.job import IngestRecipe
from jobs.paper import PaperRecipe
from jobs.plan.job import PlanRecipe
from jobs.predict.recipe import PredictRecipe
from jobs.pretrain import PretrainRecipe
from jobs.score import ScoreRecipe
from jobs.select.recipe import SelectRecipe
from jobs.ship import ShipRecipe
from jobs.study.make import StudyMakeRecipe
from serve_apps.__main__ import StartRecipe
from wm.config import Recipe, read_toml
from wm.errors import InputError
from wm.packaged import resolve_packaged
from wm.training import TrainRecipe

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
FILES = sorted(RECIPES.rglob("*.toml"))
DEMO = RECIPES / "nano" / "demo.toml"
KINDS: dict[str, type[Recipe]] = {
    "annotate": AnnotateRecipe,
    "annotate-kinetics700": AnnotateRecipe,
    "annotate-moments": AnnotateRecipe,
    "annotate-ucf101": AnnotateRecipe,
    "ask": AskRecipe,
    "ask-embspatial": AskRecipe,
    "ask-spatialmqa": AskRecipe,
    "aurora-ag": IngestRecipe,
    "aurora-bench": IngestRecipe,
    "aurora-kubric": IngestRecipe,
    "aurora-magicbrush": IngestRecipe,
    "aurora-something": IngestRecipe,
    "c-fdm": TrainRecipe,
    "c-fdm-all-kubric": TrainRecipe,
    "c-fdm-no-synthetic": TrainRecipe,
    "c-fdm-no-weights": TrainRecipe,
    "c-ft": TrainRecipe,
    "c-idm": TrainRecipe,
    "c-idm-all-kubric": TrainRecipe,
    "cluster": PlanRecipe,
    "demo": BootstrapRecipe,
    "edit-instruct-pix2pix": EditRecipe,
    "evaluate-aurora-bench": EvaluateRecipe,
    "evaluate-aurora-bench-liquid": EvaluateRecipe,
    "epic-kitchens": IngestRecipe,
    "fdm": TrainRecipe,
    "full": BootstrapRecipe,
    "idm": TrainRecipe,
    "ingest": IngestRecipe,
    "l-fdm": TrainRecipe,
    "l-ft": TrainRecipe,
    "l-idm": TrainRecipe,
    "laptop": PlanRecipe,
    "magicbrush": IngestRecipe,
    "pixel-base": PretrainRecipe,
    "pixel-idm": TrainRecipe,
    "predict": PredictRecipe,
    "probe-vlms": EvaluateRecipe,
    "qwen3-vl-idm": TrainRecipe,
    "rounds": BootstrapRecipe,
    "score-aurora-bench": ScoreRecipe,
    "select-7000": SelectRecipe,
    "serve": StartRecipe,
    "shipped": ShipRecipe,
    "something-v2": IngestRecipe,
    "study-aurora-bench": StudyMakeRecipe,
    "tables-and-figures": PaperRecipe,
    "verifiers": EvaluateRecipe,
}
"""Which job reads a file, by its name."""


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES).with_suffix(""))


def filled(values: dict[str, Any], kind: type[Recipe]) -> dict[str, Any]:
    """With the paths that are given on the command line."""
    paths = {name: "somewhere" for name, field in kind.model_fields.items() if field.is_required()}
    return paths | values


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_recipe_is_read_by_its_job(path: Path) -> None:
    assert path.stem in KINDS, f"{path} is new: say in KINDS which job reads it"
    kind = KINDS[path.stem]
    recipe = kind.parse(filled(read_toml(path), kind), str(path))
    for key, value in tomllib.loads(path.read_text()).items():
        found = getattr(recipe, key)
        assert (found.model_dump() if isinstance(found, Recipe) else found) != {}, key
        if not isinstance(value, (dict, list)):
            assert found == resolve_packaged(value) if isinstance(value, str) else found == value
    assert path.read_text().startswith("# "), "the first line says what the recipe is for"


def test_the_papers_training_recipes() -> None:
    """Appendix H: the figures, and in what the ablations differ from C-FDM."""
    found = {
        path.stem: TrainRecipe.load(path)
        for path in FILES
        if KINDS[path.stem] is TrainRecipe and path.parent.name == "paper"
    }
    for name, recipe in found.items():
        inverse = "-idm" in name
        said = (recipe.task, recipe.epochs, recipe.global_batch_size, recipe.optim.lr, recipe.optim.warmup_steps)
        assert said == (("idm", 10, 64, 2e-4, 500) if inverse else ("fdm", 40, 96, 5e-4, 400)), name
        assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout, recipe.precision) == (16, 32, 0.05, "bf16")
        assert Path(recipe.out).name == name
        limits = {Path(source.path).name: source.limit for source in recipe.triplets}
        assert limits.pop("kubric") == (0 if name.endswith("all-kubric") else 10_000)
        people = {"action-genome": 0, "magicbrush": 0, "something": 0}
        videos = dict.fromkeys(("moments-in-time", "kinetics-700", "ucf-101"), 7000)
        more = (
            {"epic-kitchens": 15_000} if inverse else {} if name in ("c-ft", "l-ft", "c-fdm-no-synthetic") else videos
        )
        assert limits == people | more
        assert recipe.recognition.enabled == (name in ("c-fdm", "l-fdm", "c-fdm-no-synthetic", "c-fdm-all-kubric"))
    assert len(found) == 10


@pytest.mark.parametrize("path", [file for file in FILES if KINDS.get(file.stem) is BootstrapRecipe], ids=name_of)
def test_every_stage_of_a_loop_resolves(path: Path) -> None:
    # By default from the shipped base; with an empty base_model it is trained first.
    shipped = plan(BootstrapRecipe.load(path))
    assert {stage.recipe.base for stage in shipped if stage.run is train.run} == {resolve_packaged("nano:base")}
    recipe = BootstrapRecipe.load(path, ["base_model="])
    stages = plan(recipe)
    names = [stage.name for stage in stages]
    assert [stage.name for stage in shipped] == names[1:]
    assert len(set(names)) == len(names) and names[:5] == ["base", "world", "clips", "triplets", "test"]
    study = ["study", "study-votes", "study-report"] if recipe.scoring.study else []
    assert names[-6 - len(study) :] == ["preview", "evaluate", "judge", "score", *study, "paper", "report"]
    by_name = {stage.name: stage.recipe.model_dump() for stage in stages}
    for name, values in by_name.items():
        assert values["out"] == f"{recipe.out}/{name}"
    worlds = [[by_name[name][key] for key in ("train", "test", "videos")] for name in ("world", "clips")]
    sizes = recipe.tabletop
    assert worlds == [[sizes["train"], sizes["test"], 0], [0, 0, sizes["videos"]]]
    for table, name in (("pretrain", "base"), ("annotate", "annotated"), ("idm", "idm")):
        for key, value in getattr(recipe, table).items() if name in by_name else ():
            found = by_name[name][key]
            assert (found | value if isinstance(value, dict) else value) == found
    runs = [name for name in names if name.split("-seed")[0] == "fdm"]
    assert len(runs) == len(recipe.seeds) == len({by_name[name]["seed"] for name in runs})
    both = by_name["fdm"]["triplets"]
    assert [source["path"] for source in both] == [f"{recipe.out}/triplets", f"{recipe.out}/annotated"]
    assert both[1]["selection"] == f"{recipe.out}/selected"
    assert by_name["fdm-ft"]["triplets"] == both[:1] and not by_name["fdm-ft"]["recognition"]["enabled"]
    assert by_name["fdm"]["recognition"]["enabled"]
    assert not recipe.variants.unweighted or not by_name["fdm-unweighted"]["recognition"]["enabled"]
    models = by_name["evaluate"]["models"]
    assert {model["role"] for model in models.values()} == {"idm", "fdm"}
    for model in models.values():
        trained = Path(model["path"]).parent.name
        assert by_name[trained]["task"] == model["role"] and by_name[trained]["seed"] == model["seed"]
        assert model["role"] == "idm" or by_name[model["idm"]]["seed"] == model["seed"]
    for number, stage in enumerate(stages):
        for text in _texts(stage.recipe.model_dump(exclude={"out", "run"})):
            if text.startswith(f"{recipe.out}/"):
                assert text.split("/")[len(Path(recipe.out).parts)] in names[:number], f"{stage.name} reads {text}"


def test_further_rounds_go_on_with_what_the_gates_promote() -> None:
    recipe = BootstrapRecipe.load(RECIPES / "nano" / "rounds.toml", ["out=o", "rounds=3", "seeds=[0, 4]"])
    by_name = {stage.name: stage.recipe.model_dump() for stage in plan(recipe)}
    for tail in ("", "-seed4"):
        second, third = f"-r2{tail}", f"-r3{tail}"
        people, first = {"path": "o/triplets"}, {"path": f"o/annotated{tail}", "selection": f"o/selected{tail}"}

        def sources(name: str) -> list[dict[str, Any]]:
            keys = ("path", "selection")
            return [{key: one[key] for key in keys if one[key]} for one in by_name[name]["triplets"]]

        assert sources(f"idm{second}") == [people, first]
        gate = by_name[f"gate-idm{second}"]
        assert (gate["champion"], gate["challenger"]) == (f"o/idm{tail}/model", f"o/idm{second}/model")
        assert gate["triplets"] == "o/tune" and gate["role"] == "idm"
        assert by_name[f"annotated{second}"]["idm"] == f"o/gate-idm{second}/model"
        assert by_name[f"imagined{second}"]["fdm"] == f"o/fdm{tail}/model"
        again = {"path": f"o/annotated{second}", "selection": f"o/selected{second}"}
        assert sources(f"fdm{second}") == [people, again]
        assert sources(f"fdm-self{second}") == [people, again, {"path": f"o/imagined{second}"}]
        assert by_name[f"fdm-self{second}"]["triplets"][2]["mix_weight"] == 0.5
        assert by_name[f"gate-fdm{second}"]["champion"] == f"o/fdm{tail}/model"
        assert by_name[f"gate-fdm-self{second}"]["champion"] == f"o/gate-fdm{second}/model"
        assert by_name[f"imagined{third}"]["fdm"] == f"o/gate-fdm-self{second}/model"
        assert by_name[f"gate-idm{third}"]["champion"] == f"o/gate-idm{second}/model"
        assert sources(f"idm{third}") == [people, again]
    assert by_name["tune"]["file"] == recipe.data.tune_file and by_name["evaluate"]["triplets"] == "o/test/triplets"
    assert {model["seed"] for model in by_name["evaluate"]["models"].values()} == {0, 4}


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


TABLES = [name for name, value in tomllib.loads(DEMO.read_text()).items() if isinstance(value, dict)]


def test_old_keys_of_all_tables_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text(
        "out = 'run'\ncontrols = true\n[pretrain]\nsteps = 9\n[annotate]\nmin_interval = 8\nmotion = 'dis'\n"
        "[fdm]\nlr = 1e-3\nlora = { enabled = false }\nweights = { floor = 0.8 }\n[imagined]\nweight = 0.5\n"
    )
    with pytest.raises(InputError) as caught:
        BootstrapRecipe.load(file)
    assert str(caught.value).removeprefix(f"{file}: ").split("; ") == [
        "pretrain: unknown key 'steps': it is called max_steps now",
        "annotate: unknown key 'min_interval': it is called keyframes.min_interval_frames now",
        "unknown key 'motion': it is called keyframes.motion now",
        "imagined: unknown key 'weight': it is called mix_weight now",
        "fdm: unknown key 'lr': it is called optim.lr now",
        "unknown key 'weights': it is called recognition now",
        "unknown key 'controls': it is called variants.controls now",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        *[(f"{table}.nonsense=1", f" {table}: unknown key 'nonsense'; the keys are ") for table in TABLES],
        ("nonsense=1", "unknown key 'nonsense'; the keys are out, seeds"),
        ("fdm.recognition.nonsense=1", "fdm: unknown key 'recognition.nonsense'; the keys there are enabled"),
        ("evaluate.sampling.heat=1", "evaluate: unknown key 'sampling.heat'"),
        ("idm.max_steps=many", r"table \[idm\] for stage idm: max_steps = 'many'"),
        ("fdm.recognition=3", r"table \[fdm\] for stage fdm.*: recognition = 3"),
        ("idm=3", "idm = 3: "),
        ("idm.base=elsewhere", "idm.base = 'elsewhere': bootstrap sets this key itself; leave it out"),
        ("select.triplets=x", "select.triplets = 'x': bootstrap sets this key itself"),
        ("seeds=[]", "seeds = "),
        ("seeds=[1, 1]", "seeds = .*different seeds"),
        ("seeds=[-1]", "seed = -1"),
    ],
)
def test_a_mistake_in_any_table_is_told_before_any_work(tmp_path: Path, override: str, said: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match=said) as caught:
        run(BootstrapRecipe.load(DEMO, [f"out={out}", override]))
    assert "\n" not in str(caught.value) and not out.exists()


def test_own_data_and_base_replace_the_nano_world(tmp_path: Path) -> None:
    own = [
        "base_model=models/anole",
        "data.supervised_root=data/mine",
        "data.train_file=a.json",
        "data.test_file=b.json",
    ]
    stages = {
        stage.name: stage.recipe.model_dump() for stage in plan(BootstrapRecipe.load(DEMO, [*own, "data.videos=v/*"]))
    }
    assert "world" not in {stage.name for stage in plan(BootstrapRecipe.load(DEMO, own))}
    assert not {"base", "world", "clips"} & set(stages)
    assert stages["triplets"]["root"] == "data/mine" and stages["triplets"]["file"] == "a.json"
    assert stages["test"]["file"] == "b.json" and stages["annotated"]["videos"] == "v/*"
    assert {stages[name]["base"] for name in ("idm", "fdm", "fdm-ft", "evaluate")} == {"models/anole"}
    assert stages["triplets"]["codec"] == "models/anole"


def test_the_preview_samples_as_the_evaluation_by_default() -> None:
    settings = [
        "evaluate.resources.device=cuda:1",
        "evaluate.resources.num_workers=2",
        "evaluate.resources.dtype=bfloat16",
    ]

    def preview(*more: str) -> dict[str, Any]:
        recipe = BootstrapRecipe.load(DEMO, [*settings, *more])
        return next(stage.recipe.model_dump() for stage in plan(recipe) if stage.name == "preview")

    values = preview()
    assert values["sampling"]["top_p"] == 0.95 and values["storyboard_triplets"] == values["limit"] == 4
    assert (values["resources"]["device"], values["resources"]["dtype"]) == ("cuda:1", "bfloat16")
    assert values["fdm"] == "runs/demo/fdm/model" and values["triplets"] == "runs/demo/test/triplets"
    own = preview("preview.limit=9", "preview.sampling.top_p=0.5", "preview.resources.device=cpu")
    assert (own["limit"], own["sampling"]["top_p"], own["resources"]["device"]) == (9, 0.5, "cpu")
    with pytest.raises(InputError, match=r"preview.fdm = 'x': bootstrap sets this key itself"):
        preview("preview.fdm=x")


def test_a_dry_run_lists_the_stages_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(BootstrapRecipe.load(DEMO, [f"out={tmp_path / 'run'}"]), dry_run=True) == {}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(plan(BootstrapRecipe.load(DEMO))) and all("to do" in line for line in lines[1:])
    assert not (tmp_path / "run").exists()
