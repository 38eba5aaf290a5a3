"""Models of every kind in Ray Serve's own processes, started as a user starts them; run by hand."""

import asyncio
import base64

import httpx2
import numpy as np
import openai
import pytest

from tests.helpers.serve_local import HALF_A_CORE
from tests.helpers.serve_process import serve_process
from wm.dynamics import Observation, Search, load_forward_model, predict_observations
from wm.dynamics.loading import load_inverse_model
from wm.images import decode_image, encode_png

pytestmark = pytest.mark.soak
ACTION = "move it"
SOURCE = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
PNG = encode_png(SOURCE)
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
QUESTION = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}] * 2}]
REQUESTS, AT_ONCE = 60, 6


@pytest.mark.parametrize(("fdm", "idm"), [("codes", "pixels"), ("editor", "pixels"), ("editor", "codes")])
@pytest.mark.parametrize("base_sharing", ["separate", "merged"])
def test_many_clients_get_the_librarys_answers(folders_by_kind, tmp_path, fdm, idm, base_sharing):
    folders = folders_by_kind[fdm], folders_by_kind[idm]
    given = {"settings": {"num_inference_steps": 2}, "resolution": 64} if fdm == "editor" else {}
    forward, inverse = load_forward_model(folders[0], **given), load_inverse_model(folders[1])
    settings = [f"fdm={folders[0]}", f"idm={folders[1]}", f"base_sharing={base_sharing}", "num_candidates=3"]
    names = HALF_A_CORE if base_sharing == "separate" else ["fdm_server"]
    settings += [f"{name}={{ray_actor_options = {{num_cpus = 0.5}}}}" for name in names]
    if fdm == "editor":
        settings += ["editor.resolution=64", "editor.settings.num_inference_steps=2"]
    with serve_process(tmp_path, *settings) as port:
        entries = httpx2.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).json()["data"]
        assert [entry["kind"] for entry in entries] == [fdm, idm]
        source = SOURCE if entries[0]["side_px"] == 64 else SOURCE[:16, :16]
        expected = predict_observations(
            forward, inverse, [Observation.from_pixels(source)] * 4, [ACTION] * 4, search=Search(num_candidates=3),
            seed=range(4),
        )  # fmt: skip
        asyncio.run(ask(port, encode_png(source), expected))
        assert httpx2.get(f"http://127.0.0.1:{port}/health", timeout=60).json() == {"status": "ok"}


async def ask(port, png, expected):
    gate = asyncio.Semaphore(AT_ONCE)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:

        async def edit(number):
            async with gate:
                seed = number % 4
                reply = await client.images.edit(image=png, prompt=ACTION, n=1, extra_body={"seed": seed})
                told = reply.data[0].model_extra["verification"]
                assert told["logprob"] == pytest.approx(expected[seed].best.score.logprob, abs=1e-2)
                assert decode_image(base64.b64decode(reply.data[0].b64_json), "reply").ndim == 3

        async def chat(number):
            async with gate:
                settings = {"seed": number, "temperature": 1, "max_tokens": 8}
                plain = await client.chat.completions.create(model="idm", messages=QUESTION, **settings)
                stream = await client.chat.completions.create(model="idm", messages=QUESTION, stream=True, **settings)
                parts = [part.delta.content or "" async for chunk in stream for part in chunk.choices]
                assert "".join(parts) == plain.choices[0].message.content

        async with asyncio.TaskGroup() as group:
            for number in range(REQUESTS):
                group.create_task(edit(number))
                group.create_task(chat(number))
