"""Asking a deployment: busy ones, and replicas that die at work."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_apps.calls import GRPC_VARIABLE, MAX_TRIES, call, follow_session, stream
from serve_apps.openai.errors import ApiError


class Handle:
    """A deployment handle with one method."""

    def __init__(self, method):
        self.predict = method


class Busy:
    """A deployment's method whose queue is full."""

    async def remote(self):
        raise BackPressureError(65, 64)


def test_a_full_queue_is_an_error_of_the_same_shape():
    with pytest.raises(ApiError) as caught:
        asyncio.run(call(Handle(Busy()), "predict", model="fdm"))
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert caught.value.headers == {"Retry-After": "1"}


class Dying:
    """A deployment's method of which the first so many replicas die at work."""

    def __init__(self, deaths):
        self.left, self.asked = deaths, []

    async def remote(self, *arguments):
        self.asked.append(arguments)
        self.left -= 1
        if self.left >= 0:
            raise ActorDiedError
        return "found"


def test_after_a_death_another_replica_is_called_up_to_a_limit():
    method = Dying(MAX_TRIES - 1)
    assert asyncio.run(call(Handle(method), "predict", 1, "two", model="fdm")) == "found"
    assert method.asked == [(1, "two")] * MAX_TRIES
    method = Dying(99)
    with pytest.raises(ApiError) as caught:
        asyncio.run(call(Handle(method), "predict", model="fdm"))
    assert (caught.value.status, caught.value.code, len(method.asked)) == (503, "replica_died", MAX_TRIES)
    assert caught.value.headers == {"Retry-After": "1"}


class DyingStream:
    """A deployment's generator whose replicas die after so many items each."""

    def __init__(self, *lives):
        self.lives = list(lives)

    def options(self, *, stream):
        assert stream
        return self

    async def remote(self, *arguments):
        for place in range(self.lives.pop(0)):
            yield (*arguments, place)
        if self.lives:
            raise ActorDiedError


def test_a_stream_goes_on_after_its_replica_died():
    async def read(method):
        return [item async for item in stream(Handle(method), "predict", "a", model="fdm")]

    assert asyncio.run(read(DyingStream(2, 0, 3, 5))) == [("a", place) for place in range(5)]
    with pytest.raises(ApiError, match="replicas at work on this request died"):
        asyncio.run(read(DyingStream(1, 1, 1, 1, 1)))


@pytest.mark.parametrize(("value", "is_task"), [("1", False), ("0", True), (None, True)])
def test_calls_go_as_the_session_says(value, is_task, monkeypatch):
    monkeypatch.delenv(GRPC_VARIABLE, raising=False)
    # Its own method would start a session.
    monkeypatch.setattr(DeploymentHandle, "options", lambda _, **options: options)
    handle = DeploymentHandle("FDMServer", "world_model")
    if value is not None:
        # Set after the handle was made, as by `wm serve`, which has imported Ray by then.
        monkeypatch.setenv(GRPC_VARIABLE, value)
    assert follow_session(handle) == {"_by_reference": is_task}


def test_what_acts_as_a_handle_is_left_as_it_is():
    local = Handle(None)
    assert follow_session(local) is local
    assert follow_session(None) is None
