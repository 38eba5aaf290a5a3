"""The loop on three Ray nodes that share nothing but a bucket, from ingest to serving; a node is lost, and the bucket's
server goes away for a while. With tests/jobs/annotate/test_kills.py (driver and actors) it is chaos of every commit."""

import base64
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from cluster.chaos.outcomes import digest_rows
from cluster.local_nodes import local_nodes
from jobs import annotate, evaluate, ingest, select, tabletop, train
from jobs.shared import ray_session
from serve_apps.recipe import ServeRecipe
from tests.helpers.annotate_data import annotate_here
from tests.helpers.buckets import Bucket, BucketServers, set_variables
from tests.helpers.faulty_proxy import Fault
from tests.helpers.serve_local import local_app
from wm.buckets import prepare_buckets
from wm.config import Recipe
from wm.files.mirror import fetch
from wm.images import decode_image
from wm.packaged import SHIPPED
from wm.runs import read_run

NUM_VIDEOS = 16
ALONE = {"num_workers": 0}
TRAINING = {"base": "nano:base", "max_steps": 2, "global_batch_size": 8, "resources": ALONE}
LIMIT_S = 200.0
NUM_LOST_REQUESTS = 40
"""Enough that clips, marks and claims are among them."""


@pytest.fixture
def store(bucket_servers: BucketServers, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = bucket_servers.create_bucket("moto")
    set_variables(bucket, monkeypatch)
    return bucket


class Loop:
    """The stages below a URI, each as if its command were given on another machine."""

    def __init__(self, root: str, become: Callable[[str], None]) -> None:
        self.root, self.become = root, become

    def run(self, stage: Callable[[Any], object], kind: type[Recipe], name: str, **values: object) -> None:
        self.become(name)
        recipe = kind.parse({"out": f"{self.root}/{name}", **values}, name)
        prepare_buckets(recipe)
        stage(recipe)

    def make_data(self) -> None:
        sizes = {"train": 16, "tune": 0, "test": 4, "videos": NUM_VIDEOS}
        self.run(tabletop.run, tabletop.TabletopRecipe, "world", **sizes, resources=ALONE)
        for split in ("train", "test"):
            source = {"root": f"{self.root}/world/supervised", "file": f"data/tabletop/{split}.json", "split": split}
            self.run(ingest.run, ingest.recipe.IngestRecipe, split, **source, codec="nano:base", resources=ALONE)

    def train(self, task: str, *triplets: dict[str, str]) -> None:
        self.run(train.run, train.TrainRecipe, task, **TRAINING, task=task, triplets=list(triplets))

    def settings_of_annotation(self) -> dict[str, object]:
        # One pair at a time: there is something left to do when a node is lost.
        actors = {f"{size}_{kind}": 1 for size in ("num", "max") for kind in ("decoders", "annotators")}
        return {
            "videos": f"{self.root}/world/videos/",
            "idm": f"{self.root}/idm/model",
            "videos_per_shard": 1,
            "keyframes": {"min_interval_frames": 8},
            "filters": {"action": "score", "unchanged": "score"},
            "max_new_tokens": 6,
            "resources": {**actors, "idm_batch_size": 1},
        }

    def annotate(self) -> None:
        self.run(annotate.run, annotate.AnnotateRecipe, "annotated", **self.settings_of_annotation())

    def select(self) -> None:
        chosen = {"triplets": f"{self.root}/annotated", "k": 8, "min_changed_codes": 0, "run_on": "here"}
        self.run(select.run, select.recipe.SelectRecipe, "selected", **chosen)

    def evaluate(self) -> None:
        roles = ("idm", "fdm")
        models = {role: {"path": f"{self.root}/{role}/model", "role": role, "label": role} for role in roles}
        self.run(
            evaluate.run, evaluate.EvaluateRecipe, "evaluate", triplets=f"{self.root}/test/triplets", models=models,
            idm="idm", codec="nano:base", judge="oracle", seeds=[0], search={"num_candidates": [1]}, max_new_tokens=6,
            examples=1, resources=ALONE,
        )  # fmt: skip

    def serve(self) -> bytes:
        """Serve both models; returns the image of one answer."""
        self.become("serve")
        models = {role: f"{self.root}/{role}/model" for role in ("fdm", "idm")}
        image = min((SHIPPED / "images").glob("*.png")).read_bytes()
        with TestClient(local_app(ServeRecipe.model_validate(models))) as client:
            reply = client.post(
                "/v1/images/edits",
                files={"image": ("a.png", image, "image/png")},
                data={"prompt": "move the red square left", "seed": "0", "n": "1"},
            )
        assert reply.status_code == 200, reply.text
        return base64.b64decode(reply.json()["data"][0]["b64_json"])


def lose_a_node(
    cluster: Any, count_shards: Callable[[], int], lost: list[int], lose_bucket: Callable[[], object]
) -> threading.Thread:
    """Kill a node with an actor as soon as two shards are finished, and the bucket too; ``lost`` gets the number of
    shards."""

    def has_actor(node: Any) -> bool:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        # Its processes come and go meanwhile.
        with suppress(psutil.NoSuchProcess):
            return any("MapWorker" in "".join(process.cmdline()) for process in raylet.children())
        return False

    def watch() -> None:
        end_s = time.monotonic() + LIMIT_S
        while time.monotonic() < end_s:
            nodes = [node for node in cluster.worker_nodes if has_actor(node)]
            num_shards = count_shards()
            if nodes and num_shards >= 2:
                lose_bucket()
                cluster.remove_node(nodes[-1], allow_graceful=False)
                lost.append(num_shards)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_loop_on_nodes_with_a_bucket_alone_one_of_them_lost(
    store: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cache_of(name: str) -> str:
        return str(tmp_path / name)

    loop = Loop(store.uri("loop"), lambda name: monkeypatch.setenv("WM_CACHE", cache_of(name)))
    loop.make_data()
    loop.train("idm", {"path": f"{loop.root}/train"})
    # Decoder and annotator are not on the head: on one of the other two is room for both.
    lost: list[int] = []
    with local_nodes(
        3, cpus_per_node=1, head={"num_cpus": 0}, variables_of=lambda number: {"WM_CACHE": cache_of(f"node-{number}")}
    ) as cluster:
        shards = "loop/annotated/shards/"
        faults: list[Fault] = []
        watcher = lose_a_node(
            cluster,
            lambda: sum(key.startswith(shards) for key in store.list_keys()),
            lost,
            # As clients see a server that is killed and started again.
            lambda: faults.append(store.proxy.spoil("lose_request", count=NUM_LOST_REQUESTS)),
        )
        try:
            loop.annotate()
        finally:
            ray_session.shutdown()
        watcher.join()
    assert lost and lost[0] < NUM_VIDEOS and [fault.count for fault in faults] == [0]
    loop.select()
    loop.train(
        "fdm", {"path": f"{loop.root}/annotated", "selection": f"{loop.root}/selected/selection"},
        {"path": f"{loop.root}/train"},
    )  # fmt: skip
    loop.evaluate()
    assert decode_image(loop.serve(), "answer").shape[2] == 3
    # Every stage has its record; the rows are those of one process that nothing disturbed.
    loop.become("reader")
    copy = fetch(loop.root)
    records = {folder.name: read_run(folder) for folder in copy.iterdir()}
    stages = {"world", "train", "test", "idm", "annotated", "selected", "fdm", "evaluate"}
    assert set(records) == stages and all(records.values())
    settings = loop.settings_of_annotation() | {"out": str(tmp_path / "here")}
    annotate_here(annotate.AnnotateRecipe.parse(settings, "test"))
    assert digest_rows(copy / "annotated") == digest_rows(tmp_path / "here")
    assert (records["annotated"] or {})["counts"]["videos"] == NUM_VIDEOS
