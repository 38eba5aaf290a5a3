"""The playground in a real browser, headless, over the server's own routes with a tiny model, and over a scripted server
where it is bad answers that count."""

import base64
import io
import json
import time
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image, ImageSequence

from serve_apps.recipe import ServeRecipe
from tests.browser import Browser
from tests.playground_server import HOSTILE, KEY, Scripted, picture, served
from tests.serve_local import local_app
from wm.images import decode_image, encode_png, fit_square

SIDE_PX = 16
NOISE = np.random.default_rng(3).integers(0, 256, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def url(tiny_base):
    with served(local_app(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), best_of=4, max_best_of=8))) as address:
        yield address


@pytest.fixture(scope="module")
def scripted():
    return Scripted()


@pytest.fixture(scope="module")
def scripted_url(scripted):
    with served(scripted.app) as address:
        yield address


@pytest.fixture
def page(window):
    """The window; whatever a test did, no script failed and no policy was violated."""
    window.shape(1300, 900)
    window.console.clear()
    yield window
    assert [line for line in window.console if "Failed to load resource" not in line] == []
    assert window.do("typeof window.pwned") == "undefined"


def start(page, url, tmp_path, pixels=NOISE):
    """The page with a picked source."""
    page.open(url)
    file = tmp_path / "source.png"
    file.write_bytes(encode_png(pixels))
    page.give_file("#file", file)
    page.wait("document.querySelector('#now img')")


def act(page, text, **settings):
    """Ask for one action and wait for its candidates."""
    page.do("document.querySelector('#step details').open = true")
    for name, value in settings.items():
        page.type(f"#set-{name}", str(value))
    page.do("document.querySelector('#found').replaceChildren()")
    page.type("#action", text)
    page.click("#go")
    page.wait("document.querySelector('#found .card')")


def frames(page):
    """The storyboard: (text, picture) of each frame, in the order of the document."""
    found = page.do("""[...document.querySelectorAll("#board .frame")].map((node) =>
        [node.getAttribute("aria-label"), node.querySelector("img")?.getAttribute("src") ?? null])""")
    return [tuple(item) for item in found]


def pixels_of(data_url):
    return decode_image(base64.b64decode(data_url.partition(",")[2]), "picture")


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
    assert f"{reply['distinct']} distinct of 6 drawn" in page.text("#found") and "seed 11" in page.text("#found")


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
    page.type("#set-beam", "2")
    page.press("Enter")
    page.wait("document.querySelectorAll('.frame').length === 7")
    page.type("#set-beam", "")
    before = frames(page)
    assert [name for name, _ in before] == [
        "Source", "Step 1: push (1)", "Step 2: pull", "Step 1: push (2)", "Step 1: lift it", "Step 2: turn it",
        "Step 3: put it down",
    ]  # fmt: skip
    places = page.do(
        "[...document.querySelectorAll('.frame')].map((node) => [node.offsetLeft / 124, node.offsetTop / 172])"
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
        const { state } = await import("/playground/state.js"), { toDocument, toFragment } = await import("/playground/link.js");
        state.board.get(1).sum = "00000000";
        return toFragment(toDocument(state.board, 1, { link: true }));
    })()""")
    page.open(f"{url}#{changed}")
    page.click("#replay")
    page.wait("document.querySelector('#replay').hidden")
    assert "Not the pictures that were shared: Step 1: push" in page.text("#replay-box")


def test_a_large_source_fits_into_a_link_as_a_smaller_copy(page, url, tmp_path):
    start(page, url, tmp_path)
    found = page.do("""(async () => {
        const { smallCopy } = await import("/playground/pictures.js");
        const canvas = Object.assign(document.createElement("canvas"), { width: 512, height: 512 }), paper = canvas.getContext("2d");
        const noise = paper.createImageData(512, 512);
        for (let at = 0, drawn = 1; at < noise.data.length; at++) { // a linear congruential generator
            drawn = (Math.imul(drawn, 1664525) + 1013904223) | 0;
            noise.data[at] = at % 4 === 3 ? 255 : drawn >>> 24;
        }
        paper.putImageData(noise, 0, 0);
        return [canvas.toDataURL().length, await smallCopy(canvas.toDataURL(), 8000), await smallCopy(canvas.toDataURL(), 20)];
    })()""")
    assert found[0] > 200_000 and len(found[1]) <= 8000 and found[2] is None
    with Image.open(io.BytesIO(base64.b64decode(found[1].partition(",")[2]))) as image:
        assert image.width == image.height >= 32


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
    deadline = time.monotonic() + 20
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


def images_of(kind):
    rng, (height, width) = np.random.default_rng(0), (97, 131)
    y, x = np.mgrid[0:height, 0:width]
    return {
        "one colour": [np.full((height, width, 3), 7)],
        "two colours": [np.where((x // 3 + y // 5) % 2, 250, 3)[..., None].repeat(3, 2)],
        "256 colours in noise": [
            rng.integers(0, 256, (256, 3))[rng.integers(0, 256, (height, width))] for _ in range(3)
        ],
        "a gradient": [np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)],
        "all noise": [rng.integers(0, 256, (height, width, 3))],
    }[kind]


@pytest.mark.parametrize("kind", ["one colour", "two colours", "256 colours in noise", "a gradient", "all noise"])
def test_any_picture_becomes_a_gif_that_others_read(page, scripted_url, kind):
    frames = [np.asarray(image, np.uint8) for image in images_of(kind)]
    height, width = frames[0].shape[:2]
    rgba = [np.dstack([image, np.full((height, width), 255, np.uint8)]).tobytes() for image in frames]
    page.open(scripted_url)
    encoded = page.do(f"""(async () => {{
        const {{ encodeGif }} = await import("/playground/gif.js");
        const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
        const frames = {json.dumps([base64.b64encode(data).decode() for data in rgba])}.map((text) => ({{ data: bytes(text), delay_cs: 7 }}));
        return [...encodeGif({{ width: {width}, height: {height}, frames }})].map((byte) => String.fromCharCode(byte)).join("");
    }})()""")
    with Image.open(io.BytesIO(encoded.encode("latin-1"))) as gif:
        assert (gif.n_frames, gif.size) == (len(frames), (width, height))
        for frame, original in zip(ImageSequence.Iterator(gif), frames, strict=True):
            assert frame.info["duration"] == 70
            found = np.array(frame.convert("RGB"))
            if len(np.unique(original.reshape(-1, 3), axis=0)) <= 256:
                assert np.array_equal(found, original)
                continue
            cut = Image.fromarray(original).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            assert lost(found, original) <= lost(np.array(cut.convert("RGB")), original)


def lost(found, original):
    """Root of the mean squared distance of colours."""
    return float(np.sqrt(((found.astype(float) - original) ** 2).sum(-1).mean()))


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


def test_samples_are_one_click_away(page, url):
    page.open(url)
    page.wait("document.querySelectorAll('.sample').length >= 4")
    page.click(".sample", 2)
    page.wait("document.querySelector('.chip')")
    chip = page.text(".chip")
    page.click(".chip")
    page.wait("document.querySelector('.card')")
    assert page.text("#found .action") == chip
    assert page.do("document.querySelector('#now img').naturalWidth") == SIDE_PX


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_may_be_dropped_or_pasted(page, scripted_url, way):
    page.open(scripted_url)
    page.do(f"""(() => {{
        const data = new DataTransfer(), bytes = Uint8Array.from(atob("{picture(90)}"), (char) => char.charCodeAt(0));
        data.items.add(new File([bytes], "a.png", {{ type: "image/png" }}));
        const event = "{way}" === "drop" ? new DragEvent("drop", {{ dataTransfer: data, bubbles: true, cancelable: true }})
          : new ClipboardEvent("paste", {{ clipboardData: data, bubbles: true, cancelable: true }});
        document.querySelector("#start").dispatchEvent(event);
        if (!event.defaultPrevented) throw new Error("the browser would take it");
    }})()""")
    page.wait("document.querySelector('#now img')")
    assert (pixels_of(frames(page)[0][1]) == 90).all()


def test_what_is_seen_is_what_the_server_would_cut_out(page, scripted_url, tmp_path):
    y, x = np.mgrid[0:120, 0:200]
    photo = np.stack([x * 255 / 200, y * 255 / 120, 128 + 100 * np.sin(x / 17)], -1).astype(np.uint8)
    file = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(photo).save(file, quality=97, exif=exif)
    page.open(scripted_url)
    page.give_file("#file", file)
    page.wait("document.querySelector('#now img')")
    found = pixels_of(frames(page)[0][1]).astype(int)
    wanted = fit_square(decode_image(file.read_bytes(), "photo"), SIDE_PX).astype(int)
    assert found.shape == (SIDE_PX, SIDE_PX, 3)
    assert np.abs(found - wanted).mean() < 3


def test_text_stays_text(page, scripted, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    assert HOSTILE.replace("\u2028", "") in page.do("document.querySelector('#models').textContent").replace(
        "\u2028", ""
    )
    page.type("#action", HOSTILE)
    page.click("#go")
    page.wait("!document.querySelector('#error').hidden")
    assert HOSTILE in page.do("document.querySelector('#error-text').textContent")
    act(page, f"cups {HOSTILE}")
    assert scripted.seen[-1]["prompt"].startswith("cups <img src=x onerror=")
    page.click(".card", 0)
    page.click("#ask-button")
    page.wait("document.querySelector('#answer .action')")
    assert page.do("document.querySelector('#answer .action').textContent") == HOSTILE
    assert "<img" in page.text("#board") and "<img" in page.text("#now")
    assert page.do("document.querySelectorAll('img[src=x], body script').length") == 0
    refused = page.do("""(() => {
        const found = {};
        try { document.body.insertAdjacentHTML("beforeend", "<b>x</b>"); } catch (error) { found.markup = error.name; }
        const inline = document.createElement("div");
        inline.setAttribute("style", "color: red");
        found.colour = inline.style.color;
        return found;
    })()""")
    assert refused == {"markup": "TypeError", "colour": ""}
    page.console.clear()  # these violations were ours


@pytest.mark.parametrize(
    ("fragment", "says"),
    [
        ("s=", "damaged"),
        ("s=%3Cimg", "damaged"),
        ("s=AAAA", "damaged"),
        ({"format": "other"}, "its format is not wm-storyboard"),
        ({"frames": []}, "expected 1 to 500 frames"),
        ({"frames": [{"image": "javascript:window.pwned=1"}]}, "its source is no picture"),
        ({"frames": [{"image": "https://elsewhere/a.png"}]}, "its source is no picture"),
        ({"frames": [1, {"parent": 5, "action": "a"}]}, "frame 1 has no parent before it"),
        ({"frames": [1, {"parent": 0, "action": 7}]}, "frame 1 has no action"),
        ({"frames": [1, {"parent": 0, "action": "a", "via": {"kind": "edit", "seed": "x"}}]}, "seed of frame 1 is no number"),
        ({"frames": [1, {"parent": 0, "action": "a", "via": {"kind": "shell"}}]}, "does not say how it was made"),
        ("bomb", "damaged"),
    ],
)  # fmt: skip
def test_a_bad_link_is_told_in_words(page, scripted_url, fragment, says):
    if isinstance(fragment, dict):
        value = {"format": "wm-storyboard", "version": 1} | fragment
        value["frames"] = [
            {"image": f"data:image/png;base64,{picture(1)}"} if frame == 1 else frame
            for frame in value.get("frames", [])
        ]
        fragment = page_fragment(page, scripted_url, json.dumps(value))
    elif fragment == "bomb":
        fragment = page_fragment(page, scripted_url, '"' + "a" * 6_000_000 + '"')
        assert len(fragment) < 20_000
    page.open(f"{scripted_url}#{fragment}")
    page.wait("!document.querySelector('#error').hidden")
    assert says in page.text("#error") and page.do("!document.querySelector('#start').hidden")


def page_fragment(page, url, text):
    page.open(url)
    return page.do(
        f"""(async () => (await import("/playground/link.js")).toFragment(JSON.parse({json.dumps(text)})))()"""
    )


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("busy", "The server is busy; try again soon. Try again in 7 s."),
        ("page", "The server answered 502 Bad Gateway."),
        ("cut", "The server's answer broke off before a picture came."),
        ("fail", "The replicas died <img"),
        ("", "Type an action first"),
    ],
)
def test_what_goes_wrong_is_said(page, scripted_url, tmp_path, action, says):
    start(page, scripted_url, tmp_path)
    page.type("#action", action)
    page.click("#go")
    page.wait("!document.querySelector('#error').hidden")
    assert says in page.text("#error")
    assert page.do("document.querySelector('#stop').hidden && !document.querySelector('#go').hidden")
    assert page.do("document.querySelector('#action').value") == action  # nothing typed is lost
    page.click("#error-close")
    assert page.do("document.querySelector('#error').hidden")


def test_a_setting_out_of_range_is_named(page, scripted, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    asked = len(scripted.seen)
    page.do("document.querySelector('#step details').open = true")
    page.type("#set-temperature", "11")
    page.type("#action", "cups")
    page.click("#go")
    page.wait("document.querySelector('#set-temperature:invalid')")
    assert len(scripted.seen) == asked


def test_a_server_that_streams_nothing_is_asked_plainly(page, scripted, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    act(page, "plain words")
    assert page.do("document.querySelectorAll('.card').length") == 2
    first, second = scripted.seen[-2:]
    assert first["stream"] and first["return_candidates"]
    assert not {"stream", "partial_images", "return_candidates"} & set(second) and second["n"] == 10


def test_a_request_can_be_stopped(page, scripted, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    before = scripted.left
    page.type("#action", "slow words")
    page.press("Enter")
    page.wait("document.querySelector('.preview progress')?.value === 0.25")
    assert (pixels_of(page.do("document.querySelector('.preview img').getAttribute('src')")) == 1).all()
    page.click("#stop")
    page.wait("document.querySelector('#stop').hidden")
    assert page.do("document.querySelector('#error').hidden")
    deadline = time.monotonic() + 10
    while scripted.left == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert scripted.left == before + 1


def test_another_picture_ends_what_belonged_to_the_last(page, scripted, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    act(page, "cups")
    page.click("#new")
    assert page.do("!document.querySelector('#start').hidden && document.querySelector('#work').hidden")
    page.give_file("#file", tmp_path / "source.png")
    page.wait("!document.querySelector('#work').hidden")
    assert page.do("document.querySelectorAll('.card').length") == 0 and len(frames(page)) == 1
    before = scripted.left
    page.type("#action", "slow words")
    page.press("Enter")
    page.wait("document.querySelector('.preview')")
    page.do("document.querySelector('#new').click()")
    page.give_file("#file", tmp_path / "source.png")
    page.wait("!document.querySelector('#work').hidden && document.querySelector('#stop').hidden")
    deadline = time.monotonic() + 10
    while scripted.left == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert scripted.left == before + 1
    act(page, "cups")
    assert page.do("document.querySelectorAll('.card').length") == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_events_are_read_however_they_are_cut(page, scripted_url, newline, size):
    wanted = [["first", {"text": "é 名 a\nb"}], ["", {"n": 1}], ["last", {"long": "x" * 300}]]
    lines = [
        ": a comment",
        "event: first",
        'data: {"text":',
        f"data:  {json.dumps(wanted[0][1]['text'], ensure_ascii=False)}}}",
        "",
    ]
    lines += [
        "id: 7",
        'data:{"n": 1}',
        "",
        "event: nothing",
        "",
        "event: last",
        f"data: {json.dumps(wanted[2][1])}",
        "",
    ]
    lines += ["data: [DONE]", "", "data: {}", "", ""]
    data = base64.b64encode(newline.join(lines).encode()).decode()
    if page.do("location.href") != scripted_url:
        page.open(scripted_url)
    found = page.do(f"""(async () => {{
        const {{ serverEvents }} = await import("/playground/api.js"), found = [];
        const bytes = Uint8Array.from(atob("{data}"), (char) => char.charCodeAt(0));
        const body = new ReadableStream({{ start(queue) {{
            for (let at = 0; at < bytes.length; at += {size}) queue.enqueue(bytes.slice(at, at + {size}));
            queue.close();
        }} }});
        for await (const {{ event, data }} of serverEvents(body)) found.push([event, data]);
        return found;
    }})()""")
    assert found == wanted


def test_a_key_is_asked_for_and_sent(page, tmp_path):
    with served(Scripted(needs_key=True).app) as url:
        page.open(url)
        page.wait("document.querySelector('#key-box').open")
        assert "No API key is given. Give an API key at the top of the page." in page.text("#error")
        page.type("#key", KEY)
        page.press("Enter")
        page.wait("document.querySelector('#models').textContent.includes('16 × 16')")
        assert page.do("sessionStorage['wm-api-key']") == KEY and page.do("localStorage.length") == 0
        assert page.do("document.querySelector('#key').value") == ""
        start(page, url, tmp_path)
        act(page, "cups")
        page.click("#key-box summary")
        page.click("#key-forget")
        assert page.do("sessionStorage.length") == 0


def test_the_keyboard_is_enough(page, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    focus = "document.activeElement"
    assert page.do(f"{focus}.id") == "action"
    page.send("Input.insertText", text="cups")
    page.press("Enter")
    page.wait("document.querySelector('.card')")
    for _ in range(20):
        page.press("Tab")
        if page.do(f"{focus}.classList.contains('card')"):
            break
    page.press("Enter")
    page.wait("document.querySelectorAll('.frame').length === 2")
    assert page.do(f"{focus}.id") == "action"
    page.click(".card", 1)
    page.do("document.querySelector('.frame[aria-selected=true]').focus()")
    walked = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowLeft"):
        page.press(key)
        walked.append(page.do(f"{focus}.dataset.id"))
    assert walked == ["0", "1", "2", "1", "0", "0"]
    page.press("ArrowRight")
    page.press("Delete")
    assert [name for name, _ in frames(page)] == ["Source", "Step 1: cups"] and page.do(f"{focus}.dataset.id") == "0"
    page.click("#undo")
    assert len(frames(page)) == 3


def test_whoever_listens_hears_a_name_for_everything(page, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    act(page, "cups")
    page.click(".card", 0)
    page.do("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "textbox",
        "spinbutton",
        "checkbox",
        "combobox",
        "treeitem",
        "tree",
        "link",
        "image",
        "progressbar",
        "form",
    }
    seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles - {"form"}]
    nameless = [node["role"]["value"] for node in seen if not node.get("name", {}).get("value")]
    assert nameless == [] and {"button", "textbox", "spinbutton", "treeitem"} <= {
        node["role"]["value"] for node in seen
    }
    assert page.do("document.querySelector('#status').textContent").startswith("Step 1 is in the storyboard")


@pytest.mark.parametrize("width_px", [320, 390, 820])
def test_a_phone_shows_all_of_it(page, scripted_url, tmp_path, width_px):
    page.shape(width_px, 800, phone=True)
    start(page, scripted_url, tmp_path)
    act(page, "cups " + "and " * 40 + "x" * 80)
    page.click(".card", 0)
    page.click("#ask-button")
    page.wait("document.querySelector('#answer .action')")
    wide = page.do(f"""[...document.querySelectorAll("body *")].filter((node) => !node.closest(".scroll") && node.checkVisibility() &&
        node.getBoundingClientRect().right > {width_px}).map((node) => `${{node.tagName}} ${{node.id}} ${{node.className}}`)""")
    assert wide == [] and page.do("document.documentElement.scrollWidth") == width_px
    low = page.do("""[...document.querySelectorAll("button, .button, select, input:not(.unseen), textarea")]
        .filter((node) => node.offsetParent && node.type !== "checkbox" && node.offsetHeight < 32).map((node) => node.id || node.className)""")
    assert low == ["error-close"] or low == []
