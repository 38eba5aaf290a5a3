"""Recipes: unknown keys and wrong types are named, overrides reach into tables, digests follow the values."""

import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from wm.config import Recipe
from wm.errors import InputError


class Inner(Recipe):
    rank: int = Field(default=16, ge=1)
    dropout: float = 0.0
    name: str = ""


class Entry(Recipe):
    path: str
    weight: float = 1.0


class Outer(Recipe):
    out: str
    steps: int = 5
    lr: float = 1e-3
    fast: bool = False
    label: str | None = None
    kind: Literal["mean", "sum"] = "mean"
    lora: Inner = Inner()
    maybe: Inner | None = None
    entries: list[Entry] = Field(default_factory=list)
    models: dict[str, Entry] = Field(default_factory=dict)
    words: list[str] = Field(default_factory=list)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_file_then_overrides_then_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, 'out = "a"\nsteps = 7\n[lora]\nrank = 4\n')
    recipe = Outer.load(path, ["lr=0.5", "lora.dropout=0.25", "fast=true", "kind=sum", 'words=["a", "b"]'])
    assert (recipe.out, recipe.steps, recipe.lr, recipe.fast, recipe.kind) == ("a", 7, 0.5, True, "sum")
    assert (recipe.lora.rank, recipe.lora.dropout) == (4, 0.25)
    assert recipe.words == ["a", "b"]
    assert Outer.load(None, ["out=x"]) == Outer(out="x")


def test_text_fields_keep_what_was_typed() -> None:
    recipe = Outer.load(None, ["out=5", "label=1e3", "lora.name=true", "models.m.path=7", "maybe.name=3"])
    assert (recipe.out, recipe.label, recipe.lora.name) == ("5", "1e3", "true")
    assert recipe.models["m"].path == "7" and recipe.maybe == Inner(name="3")
    assert Outer.load(None, ["out=a=b"]).out == "a=b"


@pytest.mark.parametrize(
    ("override", "key", "known", "absent"),
    [
        ("stepz=3", "stepz", "out, steps, lr, fast", "rank"),
        ("lora.r=3", "lora.r", "rank, dropout, name", "steps"),
        ("maybe.r=3", "maybe.r", "rank, dropout, name", "steps"),
        ("models.one.pth=3", "models.one.pth", "path, weight", "steps"),
        ('entries=[{path = "x", wait = 1}]', "entries.0.wait", "path, weight", "steps"),
    ],
)
def test_an_unknown_key_is_named_with_the_keys_of_its_table(override: str, key: str, known: str, absent: str) -> None:
    with pytest.raises(InputError) as caught:
        Outer.load(None, ["out=x", override])
    message = str(caught.value)
    assert f"unknown key '{key}'" in message and known in message
    assert not re.search(rf"\b{absent}\b", message.split("; the keys")[1].split(";", maxsplit=1)[0])


def test_an_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'out = "a"\n[lora]\nranks = 4\n')
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: unknown key 'lora.ranks'; .*rank, dropout, name"):
        Outer.load(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=many", "steps = 'many': .*integer"),
        ("steps=1.5", "steps = 1.5: .*integer"),
        ('steps="3"', "steps = '3': .*integer"),
        ("fast=1", "fast = 1: .*boolean"),
        ("lr=nan", "lr = nan: .*finite"),
        ("lr=inf", "lr = inf: .*finite"),
        ("kind=median", "kind = 'median': .*'mean' or 'sum'"),
        ("lora.rank=0", "lora.rank = 0: .*greater than or equal to 1"),
        ("lora=3", "lora = 3: lora is a table; give its keys, such as lora.rank=VALUE"),
        ("models.m.weight=1", "models.m.path is missing; give it in the file or as models.m.path=VALUE"),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^the command line: {message}") as caught:
        Outer.load(None, ["out=x", override])
    assert "\n" not in str(caught.value)


def test_a_missing_key_and_several_mistakes_at_once() -> None:
    with pytest.raises(InputError, match="out is missing; give it in the file or as out=VALUE"):
        Outer.load(None)
    with pytest.raises(InputError, match=r"steps = 'a': .*; lr = 'b': "):
        Outer.load(None, ["out=x", "steps=a", "lr=b"])


@pytest.mark.parametrize("override", ["=3", "", "out", " =3", "lora.=3", ".rank=3", "lora..rank=3"])
def test_what_is_no_override(override: str) -> None:
    with pytest.raises(InputError, match=r"expected key=value"):
        Outer.load(None, ["out=x", override])


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(InputError, match="'steps' is a value, not a table"):
        Outer.load(None, ["out=x", "steps=3", "steps.more=1"])


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "steps = = 3\n")
    with pytest.raises(InputError, match=rf"{re.escape(str(path))} is not valid TOML: .*line 1"):
        Outer.load(path)
    path.write_bytes(b'out = "\xff"\n')
    with pytest.raises(InputError, match="is not valid TOML"):
        Outer.load(path)
    with pytest.raises(InputError, match=r"no such recipe file: .*nowhere\.toml$"):
        Outer.load(tmp_path / "nowhere.toml")
    misspelt = path.with_name(path.name.replace(".toml", "s.toml"))
    with pytest.raises(InputError, match=rf"no such recipe file: .*; did you mean {re.escape(str(path))}\?$"):
        Outer.load(misspelt)
    (tmp_path / "table.toml").write_text('out = "x"\n[steps]\nmore = 1\n')
    with pytest.raises(InputError, match=r"steps = \{'more': 1\}: steps is a value, not a table: .*integer"):
        Outer.load(tmp_path / "table.toml")
    with pytest.raises(InputError, match="no such recipe file"):
        Outer.load(tmp_path)


def test_the_digest_follows_the_resolved_values(tmp_path: Path) -> None:
    digest = Outer(out="x").digest()
    assert digest == Outer.load(None, ["out=x", "steps=5"]).digest() == Outer.load(write(tmp_path, 'out="x"')).digest()
    assert len(digest) == 16 and set(digest) <= set("0123456789abcdef")
    others = [["out=y"], ["steps=6"], ["lora.rank=8"], ["models.m.path=p"], ["fast=true"], ["label=x"]]
    digests = {Outer.load(None, ["out=x", *change]).digest() for change in others}
    assert len(digests) == len(others) and digest not in digests


def test_recipes_do_not_change_after_they_were_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer(out="x").steps = 6  # type: ignore[misc]


class Optim(Recipe):
    RENAMED_KEYS = {"max_lr": "lr"}
    lr: float = 1e-3


class Pools(Recipe):
    num_workers: int = 1


class Renamed(Recipe):
    RESUMABLE_KEYS = frozenset({"pools", "optim.patience"})
    RENAMED_KEYS = {"lr": "optim.lr", "workers": "pools.num_workers", "speed.lr": "optim.lr", "speed.k": "num_steps"}
    num_steps: int = 5
    optim: Optim = Optim()
    pools: Pools = Pools()
    entries: list[Entry] = Field(default_factory=list)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=1", "unknown key 'lr': it is called optim.lr now"),
        ("optim.max_lr=1", "unknown key 'optim.max_lr': it is called optim.lr now"),
        ("speed.k=1", "unknown key 'speed': speed.k is called num_steps now"),
        ("num_step=1", "the keys are num_steps, optim, pools, entries; did you mean num_steps?"),
        ("num_worker=1", "did you mean pools.num_workers?"),
        ("optim.rl=1", "unknown key 'optim.rl'; the keys there are lr"),
    ],
)
def test_an_old_or_misspelt_key_is_told_its_name(override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Renamed.load(None, [override])


@pytest.mark.parametrize(
    "record",
    [
        {"num_steps": 5, "lr": 0.1, "workers": 3},
        {"num_steps": 5, "optim": {"max_lr": 0.1}, "pools": {"num_workers": 7}},
        {"speed": {"lr": 0.1, "k": 5}},
        {"num_steps": 5, "optim": {"lr": 0.1, "patience": 3}, "limit": None},
    ],
)
def test_an_old_record_is_read_under_new_names(record: dict[str, object]) -> None:
    assert Renamed.identity_settings(record) == {"num_steps": 5, "optim": {"lr": 0.1}}


class Grown(Recipe):
    LATER_KEYS = frozenset({"mode", "lora"})
    out: str = "x"
    mode: str = "plain"
    lora: Inner = Inner()
    parts: list["GrownPart"] = Field(default_factory=list)


class GrownPart(Recipe):
    LATER_KEYS = frozenset({"scale"})
    scale: float = 1.0
    path: str = ""


def test_a_later_key_at_its_default_is_no_part_of_a_run() -> None:
    values = Grown(parts=[GrownPart(path="a")]).model_dump()
    assert Grown.identity_settings(values) == {"out": "x", "parts": [{"path": "a"}]}
    assert Grown.identity_settings({"out": "x", "parts": [{"path": "a"}]}) == Grown.identity_settings(values)
    changed = Grown(mode="other", lora=Inner(rank=3), parts=[GrownPart(scale=2.0)]).model_dump()
    settings = Grown.identity_settings(changed)
    assert settings["mode"] == "other" and settings["lora"]["rank"] == 3
    assert settings["parts"] == [{"scale": 2.0, "path": ""}]
