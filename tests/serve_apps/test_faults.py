"""A server under load whose replicas are killed, added and taken away: no request is lost."""

import base64
import random
import threading
import time

import httpx2
import numpy as np
import openai
import pytest
from ray import serve

from serve_apps.__main__ import APPLICATION, StartRecipe, start, stop
from tests.helpers.kills import children
from wm.images import encode_png, read_size
from wm.ports import find_free_port

KILLS = [3, pytest.param(20, marks=pytest.mark.soak)]
PNG = encode_png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
ASKED = {"prompt": "move the red cup left", "best_of": "8"}
READY_S = 240
PAUSE_S = 0.1
"""Of a client between two requests: replicas that start need the cores too."""


@pytest.fixture(scope="module")
def url(tiny_base):
    port = find_free_port()
    recipe = StartRecipe(
        fdm=str(tiny_base),
        idm=str(tiny_base),
        port=port,
        fdm_server={
            "ray_actor_options": {"num_cpus": 0.25},
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 2,
                "target_ongoing_requests": 1,
                "upscale_delay_s": 0.5,
                "downscale_delay_s": 4,
                # Ray looks at the load of the last half minute, every 10 s: that would be most of the test.
                "metrics_interval_s": 1,
                "look_back_period_s": 3,
            },
        },
        idm_server={"ray_actor_options": {"num_cpus": 0.25}, "num_replicas": 2},
        ingress={"num_replicas": 2},
    )
    try:
        start(recipe)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop()


class Load:
    """Clients that ask again and again, each on a thread of its own, until the block ends. They repeat nothing: every
    failure counts."""

    def __init__(self, url, clients):
        self._url, self._over = url, threading.Event()
        self.answers, self.count, self.failures = {}, 0, []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=180)
            assert not thread.is_alive()

    def wait_for(self, more):
        """Until so many more requests are answered, or not."""
        wanted, deadline = self.count + len(self.failures) + more, time.monotonic() + READY_S
        while self.count + len(self.failures) < wanted:
            assert time.monotonic() < deadline, "no request is answered any more"
            time.sleep(0.05)

    def _ask(self, number):
        client = openai.OpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=120)
        seed = number
        while not self._over.is_set():
            try:
                reply = client.images.edit(image=("a.png", PNG), prompt=ASKED["prompt"], extra_body={"seed": seed})
            except openai.APIError as error:
                self.failures.append(repr(error))
            else:
                # A seed that comes again, perhaps on a replica that took a dead one's place, has the same answer.
                self.count += 1
                if self.answers.setdefault(seed, reply.data[0].b64_json) != reply.data[0].b64_json:
                    self.failures.append(f"seed {seed} has two answers")
            seed = (seed + 7) % 40
            self._over.wait(PAUSE_S)


def replicas(deployment):
    """How many answer."""
    found = serve.status().applications[APPLICATION].deployments[deployment].replica_states
    return found.get("RUNNING", 0)


def wait_for(deployment, wanted):
    deadline = time.monotonic() + READY_S
    while not wanted(replicas(deployment)):
        assert time.monotonic() < deadline, f"{deployment} has {replicas(deployment)} replicas"
        time.sleep(0.25)


def kill_one(deployment, chooser):
    """SIGKILL to a replica's process, of this session alone."""
    chooser.choice(children("ServeReplica", deployment)).kill()


def test_an_answer_beyond_grpcs_own_bound_arrives(url):
    """Calls between replicas go by gRPC, which refuses 4 MB where nobody sets another bound."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    options = {"seed": 1, "best_of": 10}
    reply = client.images.edit(image=PNG, prompt=ASKED["prompt"], n=10, size="1024x1024", extra_body=options)
    images = [base64.b64decode(image.b64_json) for image in reply.data]
    assert [read_size(image, "reply") for image in images] == [(1024, 1024)] * 10
    assert sum(map(len, images)) * 4 / 3 > 4 * 2**20


@pytest.mark.timeout(2100)
@pytest.mark.parametrize("kills", KILLS)
def test_no_request_is_lost_while_replicas_come_die_and_go(url, kills):
    chooser = random.Random(0)
    with Load(url, clients=8) as load:
        wait_for("FDMServer", lambda count: count == 2)
        for number in range(kills):
            deployment = ("Ingress", "FDMServer", "IDMServer")[number % 3]
            wait_for(deployment, lambda count: count >= 2)
            kill_one(deployment, chooser)
            load.wait_for(8)
        wait_for("FDMServer", lambda count: count >= 2)
    assert load.failures == [] and load.count >= 8 * kills
    with Load(url, clients=1) as trickle:
        wait_for("FDMServer", lambda count: count == 1)
    assert trickle.failures == []
    assert all(load.answers.get(seed, picture) == picture for seed, picture in trickle.answers.items())
    assert httpx2.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
