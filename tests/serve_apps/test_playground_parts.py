"""The playground's parts, each in a real browser: pictures, GIFs, links, streams."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.helpers.playground_pages import SIDE_PX, frames, pixels_of
from tests.helpers.playground_server import picture
from wm.images import decode_image, fit_square


def test_a_large_source_fits_into_a_link_as_a_smaller_copy(page, scripted_url):
    page.open(scripted_url)
    found = page.do("""(async () => {
        const { smallCopy } = await import("/playground/images.js");
        const canvas = Object.assign(document.createElement("canvas"), { width: 512, height: 512 });
        const paper = canvas.getContext("2d");
        const noise = paper.createImageData(512, 512);
        for (let at = 0, drawn = 1; at < noise.data.length; at++) { // a linear congruential generator
            drawn = (Math.imul(drawn, 1664525) + 1013904223) | 0;
            noise.data[at] = at % 4 === 3 ? 255 : drawn >>> 24;
        }
        paper.putImageData(noise, 0, 0);
        const url = canvas.toDataURL();
        return [url.length, await smallCopy(url, 8000), await smallCopy(url, 20)];
    })()""")
    assert found[0] > 200_000 and len(found[1]) <= 8000 and found[2] is None
    with Image.open(io.BytesIO(base64.b64decode(found[1].partition(",")[2]))) as image:
        assert image.width == image.height >= 32


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
    given = json.dumps([base64.b64encode(data).decode() for data in rgba])
    page.open(scripted_url)
    encoded = page.do(f"""(async () => {{
        const {{ encodeGif }} = await import("/playground/gif.js");
        const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
        const frames = {given}.map((text) => ({{ data: bytes(text), delay_cs: 7 }}));
        const gif = encodeGif({{ width: {width}, height: {height}, frames }});
        return [...gif].map((byte) => String.fromCharCode(byte)).join("");
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


@pytest.mark.parametrize(
    ("fragment", "says"),
    [
        ("s=", "damaged"),
        ("s=%3Cimg", "damaged"),
        ("s=AAAA", "damaged"),
        ({"format": "other"}, "its format is not wm-storyboard"),
        ({"frames": []}, "expected 1 to 500 frames"),
        ({"frames": [{"image": "javascript:window.pwned=1"}]}, "its source is no image"),
        ({"frames": [{"image": "https://elsewhere/a.png"}]}, "its source is no image"),
        ({"frames": [1, {"parent": 5, "action": "a"}]}, "frame 1 has no parent before it"),
        ({"frames": [1, {"parent": 0, "action": 7}]}, "frame 1 has no action"),
        (
            {"frames": [1, {"parent": 0, "action": "a", "via": {"kind": "edit", "seed": "x"}}]},
            "seed of frame 1 is no number",
        ),
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
