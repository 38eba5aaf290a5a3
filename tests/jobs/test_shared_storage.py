"""Outputs of a submitted job that only its own node sees, with a cluster of folders in the place of nodes."""

import pytest
import ray

from jobs.evaluate import EvaluateRecipe
from jobs.shared import shared_storage
from jobs.shared.shared_storage import Node, check_shared, find_local_outputs, find_other_nodes, is_seen
from jobs.tabletop import TabletopRecipe, run
from wm.cli import main
from wm.errors import InputError
from wm.paths import SUBMITTED_JOB
from wm.training import TrainRecipe

NEAR, FAR = Node("b", "10.0.0.2"), Node("c", "10.0.0.3")
"""Nodes with the same disk as this one, and with another."""


def look(marker, nodes):
    assert marker.is_file()
    return {node: node is NEAR for node in nodes}


def test_a_folder_that_another_node_does_not_see_is_refused(tmp_path, capsys):
    out = str(tmp_path / "runs" / "x")
    for nodes in ([], [NEAR]):
        check_shared("out", out, nodes, look)
    with pytest.raises(InputError) as caught:
        check_shared("out", out, [NEAR, FAR], look)
    assert str(caught.value) == (
        f"out = {out!r}: what the submitted command writes to {tmp_path} is on its own node alone, not on 10.0.0.3 of "
        "this cluster, and the output would be lost with the node; give a path on storage that all nodes share, such "
        "as out=/mnt/shared/run"
    )
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


def test_a_silent_node_is_noted_and_nothing_is_left(tmp_path, capsys):
    check_shared("out", str(tmp_path), [NEAR, FAR], lambda marker, nodes: {NEAR: True})
    assert capsys.readouterr().err == (
        f"note: 10.0.0.3 did not say within 60 s whether out = {str(tmp_path)!r} is seen there\n"
    )

    def fail(marker, nodes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_shared("out", str(tmp_path), [FAR], fail)
    assert list(tmp_path.iterdir()) == []
    # Where nothing can be written the command says so itself.
    check_shared("out", "/proc/x", [FAR], look)


def test_which_paths_are_asked_for(tmp_path):
    train = TrainRecipe(
        task="idm",
        base="b",
        out="o",
        max_steps=1,
        triplets=[{"path": "t"}],
        checkpoint={"folder": "file:///mnt/a%20b"},
        data={"token_cache": "/local/disk"},
    )
    assert find_local_outputs(train) == {"out": "o", "checkpoint.folder": "/mnt/a b"}
    remote = train.model_copy(update={"checkpoint": train.checkpoint.model_copy(update={"folder": "s3://bucket/x"})})
    assert find_local_outputs(remote) == {"out": "o"}
    assert find_local_outputs(EvaluateRecipe(out="o", triplets="t")) == {"out": "o"}


def test_other_nodes_are_those_alive(monkeypatch):
    nodes = [
        {"NodeID": name, "NodeManagerAddress": f"10.0.0.{place}", "Alive": name != "d"}
        for place, name in enumerate("abcdefg")
    ]

    class Context:
        def get_node_id(self):
            return "a"

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    assert [node.node_id for node in find_other_nodes()] == ["b", "c", "e", "f"]
    assert find_other_nodes()[0] == Node("b", "10.0.0.1")


def test_every_command_of_a_submitted_job_is_checked(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(shared_storage.ray_session, "connect", lambda: calls.append("connect"))
    monkeypatch.setattr(shared_storage.ray_session, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(shared_storage, "find_other_nodes", lambda: [FAR])
    monkeypatch.setattr(shared_storage, "look_on_nodes", look)
    command = [f"out={tmp_path}/x", "--dry-run"]
    # 1. Not submitted, or in a session of one machine: nothing is asked.
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert main(TabletopRecipe, run, name="tabletop", description="", argv=command) == 0
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert main(TabletopRecipe, run, name="tabletop", description="", argv=command) == 0 and calls == []
    # 2. Submitted to a cluster.
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    capsys.readouterr()
    assert main(TabletopRecipe, run, name="tabletop", description="", argv=command) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: out = '{tmp_path}/x': what the submitted command writes") and error.count("\n") == 1
    )
    assert calls == ["connect", "shutdown"]


def test_a_file_is_seen_or_not(tmp_path):
    assert is_seen(str(tmp_path), 0.0) and not is_seen(str(tmp_path / "x"), 0.0)
