"""The playground under a person's hands, in a real browser, over a server that answers as no good server does."""

import time

import numpy as np
import pytest

from tests.helpers.playground_pages import act, frames, pixels_of, start
from tests.helpers.playground_server import HOSTILE, KEY, Scripted, picture, served


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_may_be_dropped_or_pasted(page, scripted_url, way):
    page.open(scripted_url)
    page.do(f"""(() => {{
        const data = new DataTransfer(), how = {{ bubbles: true, cancelable: true }};
        const bytes = Uint8Array.from(atob("{picture(90)}"), (char) => char.charCodeAt(0));
        data.items.add(new File([bytes], "a.png", {{ type: "image/png" }}));
        const event = "{way}" === "drop" ? new DragEvent("drop", {{ ...how, dataTransfer: data }})
          : new ClipboardEvent("paste", {{ ...how, clipboardData: data }});
        document.querySelector("#start").dispatchEvent(event);
        if (!event.defaultPrevented) throw new Error("the browser would take it");
    }})()""")
    page.wait("document.querySelector('#now img')")
    assert (pixels_of(frames(page)[0][1]) == 90).all()


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
    ("action", "says"),
    [
        ("busy", "The server is busy; try again soon. Try again in 7 s."),
        ("page", "The server answered 502 Bad Gateway."),
        ("cut", "The server's answer broke off before an image came."),
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
    deadline = time.monotonic() + 60
    while scripted.left == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert scripted.left == before + 1


def test_another_picture_ends_what_belonged_to_the_last(page, scripted, scripted_url, tmp_path):
    start(page, scripted_url, tmp_path)
    act(page, "cups")
    page.give_file("#file", tmp_path / "source.png")  # as if pasted: the candidates of another picture are in sight
    page.wait("document.querySelectorAll('.card').length === 0")
    assert len(frames(page)) == 1
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
    deadline = time.monotonic() + 60
    while scripted.left == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert scripted.left == before + 1
    act(page, "cups")
    assert page.do("document.querySelectorAll('.card').length") == 2


def test_a_source_too_large_for_a_link_goes_as_a_smaller_copy(page, tmp_path):
    with served(Scripted(side_px=256).app) as url:
        start(page, url, tmp_path, np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8))
        act(page, "cups")
        page.click(".card", 0)
        page.click("#link")
        page.wait("document.querySelector('#shared input')")
        link = page.do("document.querySelector('#shared input').value")
        assert len(link) < 16_000 and "holds a smaller copy" in page.text("#shared")
        page.open(link)
        assert "smaller copy of the source image" in page.text("#replay-box")
        page.click("#replay")
        page.wait("document.querySelector('#replay-box').hidden")
        assert [name for name, _ in frames(page)] == ["Source", "Step 1: cups"]


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
    assert page.do("document.querySelector('#mode').hidden"), "a server that compares nothing offers nothing"
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
    wide = page.do(f"""[...document.querySelectorAll("body *")]
        .filter((node) => !node.closest(".scroll") && node.checkVisibility())
        .filter((node) => node.getBoundingClientRect().right > {width_px})
        .map((node) => `${{node.tagName}} ${{node.id}} ${{node.className}}`)""")
    assert wide == [] and page.do("document.documentElement.scrollWidth") == width_px
    low = page.do("""[...document.querySelectorAll("button, .button, select, input:not(.unseen), textarea")]
        .filter((node) => node.checkVisibility() && node.type !== "checkbox" && node.offsetHeight < 32)
        .map((node) => node.id || node.className)""")
    assert low == []
