"""The listing of adapters: one that is damaged costs itself, and the log names it once."""

import json
import os
import shutil

import pytest

from serve_apps import adapters as served
from serve_apps.adapters import find_adapters
from tests.helpers.models_roles import add_adapter
from wm.models import base_id_of, load_model, save_model

ADAPTER_CONFIG, MANIFEST = "adapter_config.json", "wm_model.json"


@pytest.fixture(scope="module")
def good(tiny_base, tmp_path_factory):
    """An adapter of the tiny base; read only."""
    path = tmp_path_factory.mktemp("adapter") / "good"
    save_model(add_adapter(load_model(tiny_base), 0), path, task="fdm")
    return path


@pytest.fixture
def folder(good, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "_logged", {})
    lines = []
    monkeypatch.setattr(served.logger, "warning", lambda form, *values: lines.append(form % values))
    path = tmp_path / "adapters"
    path.mkdir()
    for name in ("a_good", "z_good"):
        shutil.copytree(good, path / name)
    return path, lines


def damage(file, data):
    file.unlink(missing_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


def edit(**changes):
    """A file of a JSON object with some values changed."""
    return lambda file: damage(file, json.loads(file.read_text()) | changes)


DAMAGES = {
    "half": (MANIFEST, lambda file: damage(file, b'{"family": "cham')),
    "empty": (MANIFEST, lambda file: damage(file, b"")),
    "list": (MANIFEST, lambda file: damage(file, [1])),
    "bytes": (MANIFEST, lambda file: damage(file, b"\xff\xfe\x00")),
    "nested": (MANIFEST, lambda file: damage(file, b"[" * 100_000)),
    "digits": (MANIFEST, lambda file: damage(file, b'{"action_slot_tokens": ' + b"9" * 5000 + b"}")),
    "kind": (MANIFEST, edit(kind="evil")),
    "slot": (MANIFEST, edit(action_slot_tokens=10**12)),
    "minus": (MANIFEST, edit(action_slot_tokens=-1)),
    "extra": (MANIFEST, edit(evil=1)),
    "task": (MANIFEST, edit(task=None)),
    "base": (MANIFEST, edit(base_id="chameleon-0")),
    "none": (MANIFEST, lambda file: file.unlink()),
    "folder": (MANIFEST, lambda file: (file.unlink(), file.mkdir())),
    "code": (ADAPTER_CONFIG, edit(auto_map={"AutoModel": "evil.Evil"})),
    "config": (ADAPTER_CONFIG, lambda file: damage(file, b"{")),
}


def test_damaged_adapters_cost_themselves(folder, good, tiny_base):
    path, lines = folder
    for name, (file, spoil) in DAMAGES.items():
        shutil.copytree(good, path / name)
        spoil(path / name / file)
    (path / "loop").symlink_to(path / "loop")
    (path / "nothing").mkdir()
    (path / "a file").write_text("x")
    shutil.copytree(good, path / "two\nlines")
    shutil.copytree(good, os.fsdecode(os.fsencode(path) + b"/\xff\xfe"))
    base_id = base_id_of(tiny_base)
    for _ in range(3):
        assert list(find_adapters(path, base_id)) == ["base:a_good", "base:z_good"]
    # Each once, whatever the number of listings; what is no adapter at all is passed over without a word.
    assert len(lines) == len(DAMAGES) + 2
    for name in DAMAGES:
        assert sum(f"/{name}' is not served: " in line for line in lines) == 1, name
    assert not any("\n" in line for line in lines)
    json.dumps(list(find_adapters(path, base_id)), ensure_ascii=False).encode()


def test_an_adapter_that_is_mended_is_served(folder, good, tiny_base):
    path, lines = folder
    base_id = base_id_of(tiny_base)
    damage(path / "a_good" / MANIFEST, b"")
    assert list(find_adapters(path, base_id)) == ["base:z_good"]
    shutil.copy(good / MANIFEST, path / "a_good" / MANIFEST)
    assert list(find_adapters(path, base_id)) == ["base:a_good", "base:z_good"]
    damage(path / "a_good" / MANIFEST, b"")
    assert list(find_adapters(path, base_id)) == ["base:z_good"]
    assert len(lines) == 2


def test_a_folder_that_is_gone_lists_nothing(folder, tiny_base):
    path, lines = folder
    shutil.rmtree(path)
    assert find_adapters(path, base_id_of(tiny_base)) == {}
    assert len(lines) == 1 and "cannot be listed" in lines[0]
