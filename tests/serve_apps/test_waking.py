"""Models without a replica: requests wait for one within bounds, once for all, and are told when to come again."""

import asyncio
import base64

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_apps import waking as waking_module
from serve_apps.names import FDM, IDM
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from serve_apps.waking import FIRST_GUESS_S, Waking
from tests.helpers.serve_local import local_app
from wm.errors import InputError
from wm.images import encode_png

URL = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((16, 16, 3), np.uint8))).decode()
EDIT = {"image": URL, "prompt": "move it", "seed": 1, "best_of": 2}
ASLEEP = {"autoscaling_config": {"min_replicas": 0, "max_replicas": 1}}


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Handle:
    """A deployment whose replica comes when the test says so."""

    def __init__(self):
        self.ready, self.questions = asyncio.Event(), 0

    @property
    def describe(self):
        return self

    def remote(self, task):
        self.questions += 1
        return self.ready.wait()


def waking_of(recipe, counts, clock):
    handles = {FDM: Handle(), IDM: Handle()}
    return Waking(recipe, handles, lambda: counts, clock), handles


def recipe_with(tiny_base, **more):
    return ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), fdm_server=ASLEEP, **more)


def test_one_call_wakes_a_model_for_all_that_wait(tiny_base):
    async def scenario():
        clock, counts = Clock(), {"FDMServer": 0, "IDMServer": 1}
        waking, handles = waking_of(recipe_with(tiny_base), counts, clock)
        requests = [asyncio.create_task(waking.wait_for(FDM)) for _ in range(5)]
        while not handles[FDM].questions:
            await asyncio.sleep(0)
        assert await waking.wait_for(IDM) == 0.0
        clock.now_s = 7.0
        handles[FDM].ready.set()
        assert await asyncio.gather(*requests) == [7.0] * 5
        assert (handles[FDM].questions, handles[IDM].questions) == (1, 0)
        # It is known to be there: nobody asks again.
        assert await waking.wait_for(FDM) == 0.0

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_beyond_the_wait_a_client_is_told_when_to_come_again(tiny_base):
    async def scenario():
        clock, counts = Clock(), {"FDMServer": 0}
        waking, handles = waking_of(recipe_with(tiny_base, replica_wait_s=0), counts, clock)
        with pytest.raises(ApiError) as refused:
            await waking.wait_for(FDM)
        error = refused.value
        assert (error.status, error.code, error.headers) == (503, "model_starting", {"Retry-After": "10"})
        assert "the forward model has no replica yet" in error.message and "1 requests wait here" in error.message
        # The start goes its way: how long it took says how long the next one will.
        clock.now_s = 24.0
        handles[FDM].ready.set()
        await next(iter(waking._starts.values()))
        counts["FDMServer"] = 1
        assert await waking.wait_for(FDM) == 0.0
        counts["FDMServer"], handles[FDM].ready = 0, asyncio.Event()
        clock.now_s = 26.0
        with pytest.raises(ApiError) as refused:
            await waking.wait_for(FDM)
        assert refused.value.headers == {"Retry-After": "24"}
        clock.now_s = 42.0
        with pytest.raises(ApiError) as refused:
            await waking.wait_for(FDM)
        assert refused.value.headers == {"Retry-After": "8"} and FIRST_GUESS_S == 10.0
        next(iter(waking._starts.values())).cancel()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_elsewhere_the_controller_is_not_waited_for(tiny_base):
    async def scenario():
        clock, counts = Clock(), {"FDMServer": 0}
        waking, handles = waking_of(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base)), counts, clock)
        assert await waking.wait_for(FDM) == 0.0, "not known yet"
        await waking._counting
        request = asyncio.create_task(waking.wait_for(FDM))
        handles[FDM].ready.set()
        await request
        assert handles[FDM].questions == 1, "now it is: its only replica is gone"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_controller_that_does_not_answer_changes_nothing(tiny_base, serve_log):
    async def scenario():
        def fail():
            raise ConnectionError("no controller")

        recipe = recipe_with(tiny_base)
        waking = Waking(recipe, {FDM: Handle(), IDM: Handle()}, fail, Clock())
        assert await waking.wait_for(FDM) == 0.0

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert "the number of replicas is not known: ConnectionError('no controller')" in serve_log.text


def test_what_a_client_sees(tiny_base, monkeypatch):
    counts = {"FDMServer": 0, "IDMServer": 1}
    monkeypatch.setattr(
        waking_module.Waking.__init__, "__defaults__", (lambda: dict(counts), waking_module.time.monotonic)
    )
    with TestClient(local_app(recipe_with(tiny_base))) as http:
        assert http.get("/health").json() == {"status": "ok", "asleep": ["fdm"]}
        reply = http.post("/v1/images/edits", json=EDIT)
        assert reply.status_code == 200 and float(reply.headers["x-wm-replica-wait-seconds"]) >= 0
        counts["FDMServer"] = 1
        assert "x-wm-replica-wait-seconds" not in http.post("/v1/images/edits", json=EDIT).headers


def test_a_wait_is_shorter_than_the_request(tiny_base):
    values = {"fdm": str(tiny_base), "idm": str(tiny_base), "timeout_s": 10, "replica_wait_s": 10}
    with pytest.raises(InputError, match="replica_wait_s = 10 is no less than timeout_s = 10"):
        ServeRecipe.parse(values, "the command line")
    recipe = ServeRecipe.parse(values | {"replica_wait_s": 9}, "the command line")
    assert recipe.max_replica_wait_s == 9 and recipe_with(tiny_base).max_replica_wait_s == 60
