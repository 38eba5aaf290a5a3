"""The playground in a real browser, headless, over the server's own routes with a tiny model in this process."""

import base64
import json
import time
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image, ImageSequence

from serve_apps.recipe import ServeRecipe
from tests.helpers.models_reference import lively
from tests.helpers.playground_pages import NOISE, act, frames, pixels_of, start
from tests.helpers.playground_server import served
from tests.helpers.serve_local import local_app
from wm.images import encode_png
from wm.models import load_model, save_model
from wm.study.playground import STUDY_ID
from wm.study.store import VoteStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "votes.sqlite"


@pytest.fixture(scope="module")
def url(tiny_base, tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("examples")
    save_model(lively(load_model(tiny_base), seed=9), store.parent / "other", task="fdm")
    (folder / "a_cup.png").write_bytes(encode_png(np.full((40, 40, 3), 77, np.uint8)))
    (folder / "noise.png").write_bytes(encode_png(NOISE))
    (folder / "actions.json").write_text(json.dumps({"a_cup.png": ["move the cup", "take the cup"]}))
    recipe = ServeRecipe(
        fdm=str(tiny_base), idm=str(tiny_base), examples=str(folder), num_candidates=4, max_best_of=8,
        baseline=str(store.parent / "other"), comparisons=str(store),
    )  # fmt: skip
    with served(local_app(recipe)) as address:
        yield address


def ask(url, path, body):
    request = Request(f"{url}v1/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    return json.load(urlopen(request, timeout=60))


def as_url(pixels):
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()


def test_candidates_are_the_servers_with_its_scores(page, url, tmp_path):
    start(page, url, tmp_path)
    act(page, "move it to the left", best_of=6, seed=11)
    body = {"prompt": "move it to the left", "images": [{"image_url": as_url(NOISE)}], "seed": 11, "best_of": 6}
    reply = ask(url, "images/edits", body | {"return_candidates": True})
    assert len(reply["candidates"]) == reply["distinct"] > 1
    cards = page.do("""[...document.querySelectorAll(".card")].map((card) => ({
        src: card.querySelector("img").getAttribute("src"), text: card.innerText.replaceAll("−", "-"),
        label: card.getAttribute("aria-label"), width: card.querySelector(".fill").style.width }))""")
    assert len(cards) == len(reply["candidates"])
    for place, (card, candidate) in enumerate(zip(cards, reply["candidates"], strict=True)):
        told = candidate["verification"]
        assert card["src"] == f"data:image/png;base64,{candidate['b64_json']}"
        for text in (f"#{place + 1}", f"{told['mean_logprob']:.2f}", f"{told['logprob']:.1f}"):
            assert text in card["text"]
        assert f"{told['unchanged_share'] * 100:.0f} %" in card["text"] and f"Rank {place + 1}" in card["label"]
        share = float(np.exp(told["mean_logprob"]))
        assert float(card["width"].rstrip("%")) == pytest.approx(100 * share, rel=1e-3)
    assert f"{reply['distinct']} distinct of 6 sampled" in page.text("#found") and "seed 11" in page.text("#found")


def test_a_storyboard_branches_and_its_link_gives_it_again(page, url, tmp_path):
    start(page, url, tmp_path)
    act(page, "push", seed=1)
    page.click(".card", 0)
    page.click(".card", 1)
    assert [name for name, _ in frames(page)] == ["Source", "Step 1: push (1)", "Step 1: push (2)"]
    assert page.do("document.querySelectorAll('.card[aria-pressed=true]').length") == 1
    page.click(".frame", 1)
    act(page, "pull", seed=2, temperature=0.8)
    page.click(".card", 0)
    page.click(".frame", 0)
    page.type("#action", "lift it\nturn it\nput it down")
    assert page.text("#go") == "Roll out 3 actions"
    page.type("#set-num_beams", "2")
    page.press("Enter")
    page.wait("document.querySelectorAll('.frame').length === 7")
    page.type("#set-num_beams", "")
    before = frames(page)
    assert [name for name, _ in before] == [
        "Source", "Step 1: push (1)", "Step 2: pull", "Step 1: push (2)", "Step 1: lift it", "Step 2: turn it",
        "Step 3: put it down",
    ]  # fmt: skip
    places = page.do(
        "[...document.querySelectorAll('.frame')].map((node) => [node.offsetLeft / 124, node.offsetTop / 184])"
    )
    assert places == [[0, 0], [1, 0], [2, 0], [1, 1], [1, 2], [2, 2], [3, 2]]
    assert np.array_equal(pixels_of(before[0][1]), NOISE)
    body = {"prompt": "pull", "images": [{"image_url": before[1][1]}], "seed": 2, "best_of": 4, "temperature": 0.8}
    assert before[2][1].endswith(ask(url, "images/edits", body)["data"][0]["b64_json"])

    page.click("#link")
    page.wait("document.querySelector('#shared input')")
    link = page.do("document.querySelector('#shared input').value")
    assert len(link) < 6000
    page.open(link)
    assert frames(page) == [before[0], *((f"{name}, not replayed yet", None) for name, _ in before[1:])]
    page.click("#replay")
    page.wait("document.querySelector('#replay-box').hidden")
    assert frames(page) == before


def test_a_link_tells_when_other_pictures_come(page, url, tmp_path):
    start(page, url, tmp_path)
    act(page, "push", seed=1)
    page.click(".card", 0)
    page.click("#save")
    changed = page.do("""(async () => {
        const { state } = await import("/playground/state.js");
        const { toDocument, toFragment } = await import("/playground/link.js");
        state.board.get(1).sum = "00000000";
        return toFragment(toDocument(state.board, 1, { link: true }));
    })()""")
    page.open(f"{url}#{changed}")
    page.click("#replay")
    page.wait("document.querySelector('#replay').hidden")
    assert "Not the images that were shared: Step 1: push" in page.text("#replay-box")


def test_a_file_holds_every_picture(page, url, tmp_path):
    start(page, url, tmp_path)
    act(page, "push", seed=1)
    page.click(".card", 0)
    page.click(".card", 1)
    before = frames(page)
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "down"))
    page.click("#save")
    saved = arrived(tmp_path / "down" / "storyboard.json")
    page.open(url)
    page.give_file("#start .open-file", saved)
    page.wait("document.querySelectorAll('.frame').length === 3")
    assert frames(page) == before and page.do("document.querySelector('#replay-box').hidden")
    assert page.do("document.querySelector('.frame[aria-selected=true]').dataset.id") == "2"


def arrived(path):
    """A download, once it is whole."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)
    return path


def test_the_gif_shows_the_way_to_the_chosen_frame(page, url, tmp_path):
    start(page, url, tmp_path)
    act(page, "push", seed=1)
    page.click(".card", 1)
    act(page, "pull", seed=2)
    page.click(".card", 0)
    expected = [pixels_of(picture) for _, picture in frames(page)]
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "down"))
    page.type("#gif-seconds", "0.5")
    page.click("#gif-captions")
    page.click("#gif-button")
    with Image.open(arrived(tmp_path / "down" / "storyboard.gif")) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (3, (288, 288), 0)
        shown = [(frame.info["duration"], np.array(frame.convert("RGB"))) for frame in ImageSequence.Iterator(gif)]
    assert [duration for duration, _ in shown] == [500, 500, 1000]
    for (_, pixels), original in zip(shown, expected, strict=True):
        assert np.array_equal(pixels, original.repeat(18, 0).repeat(18, 1))  # 16 x 16 has at most 256 colours
    page.click("#gif-captions")
    page.do("document.querySelector('#gif-made').replaceChildren()")
    page.click("#gif-button")
    page.wait("document.querySelector('#gif-made img')?.naturalHeight > 288")


def test_what_happened_between_any_two_frames(page, url, tmp_path):
    start(page, url, tmp_path)
    act(page, "push", seed=1)
    page.click(".card", 0)
    act(page, "pull", seed=2)
    page.click(".card", 0)
    pictures = [picture for _, picture in frames(page)]
    page.do("""(() => { const from = document.querySelector("#from");
        from.value = "0"; from.dispatchEvent(new Event("change", { bubbles: true })); })()""")
    page.click("#ask-button")
    page.wait("document.querySelector('#answer .action')")
    parts = [{"type": "image_url", "image_url": {"url": pictures[place]}} for place in (0, 2)]
    body = {"model": "idm", "messages": [{"role": "user", "content": parts}], "logprobs": True}
    reply = ask(url, "chat/completions", body)
    said = reply["choices"][0]["message"]["content"]
    assert page.do("document.querySelector('#answer .action').textContent") == (said or "(no words)")
    assert f"{reply['mean_logprob']:.2f}".replace("-", "−") in page.text("#answer")
    assert page.do("document.querySelectorAll('#answer .tokens li').length") == len(
        reply["choices"][0]["logprobs"]["content"]
    )


def test_an_example_is_one_click_from_its_candidates(page, url):
    page.open(url)
    page.wait("document.querySelectorAll('.example').length === 2")
    labels = page.do("[...document.querySelectorAll('.example')].map((node) => node.getAttribute('aria-label'))")
    assert labels == ["a cup: predict “move the cup”", "noise: start with this image"]
    page.click(".example", 0)
    page.wait("document.querySelector('.card')")
    assert page.text("#found .action") == "move the cup" == page.text(".chip")
    # The image as it is, not its thumbnail.
    assert (pixels_of(frames(page)[0][1]) == 77).all()
    page.click(".chip", 1)
    page.wait(
        "document.querySelector('#found .action')?.textContent === 'take the cup' && document.querySelector('.card')"
    )
    # Without an action, the image alone; by the keyboard too.
    page.click("#new")
    page.press("Tab")
    assert page.do("document.activeElement === document.querySelectorAll('.example')[1]")
    page.press("Enter")
    page.wait("document.querySelectorAll('.card').length === 0 && !document.querySelector('#work').hidden")
    assert page.do("document.activeElement.id") == "action" and page.do("document.querySelector('.chip')") is None
    assert np.array_equal(pixels_of(frames(page)[0][1]), NOISE)


def test_two_models_are_compared_blind_by_the_keyboard(page, url, store, tmp_path):
    start(page, url, tmp_path)
    page.click("#mode-compare")
    page.type("#action", "push")
    page.press("Enter")
    told = []
    for key in ("ArrowLeft", "0", "ArrowRight"):
        page.wait("document.querySelector('.versus') && document.querySelector('#stop').hidden")
        shown = page.do("[...document.querySelectorAll('.versus img')].map((node) => node.src)")
        assert not any(name in page.text("#found") + page.text("#status") for name in ("fdm", "baseline"))
        page.press(key)
        page.wait("document.querySelector('.tally') && document.querySelector('#stop').hidden")
        names = page.do("[...document.querySelectorAll('.versus figcaption b')].map((node) => node.textContent)")
        seed = page.text("#found").partition("Seed ")[2].partition(",")[0]
        body = {"prompt": "push", "images": [{"image_url": as_url(NOISE)}], "seed": int(seed)}
        images = [ask(url, "images/edits", body | {"model": name})["data"][0]["b64_json"] for name in names]
        assert shown == [f"data:image/png;base64,{image}" for image in images]
        told.append((tuple(names), {"ArrowLeft": names[0], "0": None, "ArrowRight": names[1]}[key]))
        page.press("Enter")  # Next has the focus
    page.wait("document.querySelector('.versus') && !document.querySelector('.tally')")
    with VoteStore(store, read_only=True) as votes:
        stored = votes.list_votes(STUDY_ID)
    assert [(vote.systems, vote.best) for vote in stored] == told
    assert len({vote.participant for vote in stored}) == 1 and page.do("sessionStorage.length") == 1
    # On a narrow phone too; and two equal models are refused.
    page.shape(320, 800, phone=True)
    assert page.do("document.documentElement.scrollWidth") == 320
    page.do("document.querySelector('#step details').open = true")
    page.do("for (const end of ['first', 'second']) document.querySelector(`#compare-${end}`).value = 'fdm'")
    page.click("#go")
    page.wait("!document.querySelector('#error').hidden")
    assert "Choose two different models" in page.text("#error")
