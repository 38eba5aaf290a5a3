"""Every command of the documentation is one that its recipe takes: file, keys, types of values."""

from pathlib import Path

import pytest

from docs.generate.recipes import build_recipe_pages
from tests.helpers.doc_pages import (
    PAGES,
    ROOT,
    check_command,
    fill,
    python_blocks,
    run_command,
    run_python,
    shell_commands,
    wm_commands,
)
from wm.errors import InputError

TEXTS = {path.relative_to(PAGES).as_posix(): path.read_text() for path in sorted(PAGES.rglob("*.md"))}
TEXTS |= {f"recipes/{name}": text for name, text in build_recipe_pages().items()}
TEXTS["README.md"] = (ROOT / "README.md").read_text()
COMMANDS = {(name, " ".join(words)): words for name, text in TEXTS.items() for words in wm_commands(text)}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=[f"{page}: {words}" for page, words in COMMANDS])
def test_a_command_is_what_its_recipe_takes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_command(words)


def test_make_targets_and_programs_exist() -> None:
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    programs = set()
    for name, text in TEXTS.items():
        for words in shell_commands(text):
            programs.add(words[0])
            assert words[0] != "make" or words[1] in targets, f"{name}: {words}"
    assert programs <= {"wm", "make", "python", "pip", "tensorboard", "ray", "serve", "git", "cd", "curl"}, programs


TEXT = """
```sh
wm train a.toml base=MODEL \\
    optim.lr=3 # why
python -m jobs.select triplets=T k=3 out=O && python -m serve_apps fdm=F idm=I
ray job submit --working-dir . -- wm report run=R out=O
```

```console
wm train what=no-test-reads
```

<!-- run -->
```python
a = 1
```

```python
a = 2
```
"""


def test_commands_are_found_and_an_old_key_is_refused() -> None:
    assert wm_commands(TEXT) == [
        ["train", "a.toml", "base=MODEL", "optim.lr=3"],
        ["select", "triplets=T", "k=3", "out=O"],
        ["serve", "fdm=F", "idm=I"],
        ["report", "run=R", "out=O"],
    ]
    with pytest.raises(InputError, match=r"optim\.lr"):
        check_command(["train", "task=idm", "base=M", "triplets=T", "out=O", "lr=3"])
    with pytest.raises(InputError, match="expected one of"):
        check_command(["no-command"])


def test_marked_python_is_run() -> None:
    assert python_blocks(TEXT) == ["a = 1\n"]
    names: dict[str, object] = {}
    run_python(TEXT, names)
    assert names["a"] == 1


def test_a_command_runs_with_its_placeholders_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tabletop", "out=OUT/world", "train=2", "test=1"]
    assert fill("base=MODEL/x", {"MODEL": "m"}) == "base=m/x"
    assert run_command([*words, "--dry-run"], {"OUT": str(tmp_path)}) == 0
    with pytest.raises(KeyError):
        run_command(words, {})
    assert run_command(["tabletop", "no=OUT"], {"OUT": "x"}) == 2
    assert "no" in capsys.readouterr().err
