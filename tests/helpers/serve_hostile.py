"""What the tests of hostile requests send, and the app that they send it to."""

import base64
import io
import json
import struct
import zlib

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from wm.images import encode_png

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
PNG = encode_png(PIXELS)
MAX_BODY = 3_000_000
MAX_PIXELS = 1_000_000


def hostile_client(base):
    """A client of the app with small bounds."""
    recipe = ServeRecipe(fdm=str(base), idm=str(base), num_candidates=2, max_body_bytes=MAX_BODY, max_pixels=MAX_PIXELS)
    return TestClient(local_app(recipe), raise_server_exceptions=True)


def url_of(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


URL = url_of(PNG)
BODIES = {
    "/v1/images/edits": {"image": URL, "prompt": "move it", "seed": 1},
    "/v1/rollouts": {"image": URL, "actions": ["move it"], "seed": 1},
    "/v1/score": {"image": URL, "targets": [URL], "actions": ["move it"]},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}] * 2}]
    },
}
PATHS = list(BODIES)


def with_image(path, text):
    """The request of a path with another source image."""
    return json.loads(json.dumps(BODIES[path]).replace(json.dumps(URL), json.dumps(text), 1))


def refused(reply, status=400):
    """An error of the client's, in OpenAI's form, in one line."""
    assert reply.status_code == status, reply.text[:300]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"] and len(error["message"]) < 1000
    return error


def saved(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks, bits=8, colour=2):
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

ZEROS = zlib.compress(b"\0" * 100_000_000)

BAD_IMAGES = {
    "empty": b"",
    "text": b"hello",
    "zeros": b"\0" * 5000,
    "html": b"<html>",
    "svg": SVG,
    "svg_declared": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "b">]>' + SVG,
    "pdf": b"%PDF-1.4\n%%EOF",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n",
    "gif": saved("GIF", FRAMES[0]),
    "animated_gif": saved("GIF", FRAMES[0], **ANIMATED),
    "tiff": saved("TIFF"),
    "psd": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + b"\0" * 400,
    "ico": saved("ICO", FRAMES[0]),
    "ppm": saved("PPM"),
    "jpeg2000": saved("JPEG2000"),
    "zip": b"PK\3\4" + b"\0" * 100,
    "truncated_png": PNG[: len(PNG) // 2],
    "truncated_jpeg_head": saved("JPEG")[:100],
    "truncated_webp": saved("WEBP")[:60],
    "no_size": png(0, 0),
    "no_height": png(10, 0),
    "size_of_a_million_squared": png(1_000_000, 1_000_000, chunk(b"IDAT", zlib.compress(b"\0"))),
    "size_of_2_31": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"\0"))),
    "bomb": saved("PNG", Image.new("1", (20_000, 20_000))),
    "bomb_bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "bomb_webp": saved("WEBP", Image.new("RGB", (16_000, 100)), lossless=True)[:30],
    "bomb_jpeg": saved("JPEG", Image.new("L", (2000, 2000))),
    "text_bomb": png(8, 8, chunk(b"zTXt", b"Comment\0\0" + ZEROS), chunk(b"IDAT", b"")),
    "profile_bomb": png(8, 8, chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "no_pixels": png(8, 8),
    "wrong_colour_type": png(8, 8, chunk(b"IDAT", zlib.compress(b"\0" * 300)), colour=5),
    "damaged_check": PNG[:40] + b"\xff" + PNG[41:],
}


def exif_of(rotation):
    exif = Image.Exif()
    exif[0x0112] = rotation
    return exif.tobytes()


GOOD_IMAGES = {
    "png": PNG,
    "animated_png": saved("PNG", FRAMES[0], **ANIMATED),
    "animated_webp": saved("WEBP", FRAMES[0], **ANIMATED),
    "bmp": saved("BMP"),
    "grey": saved("PNG", Image.fromarray(PIXELS).convert("L")),
    "bits": saved("PNG", Image.fromarray(PIXELS).convert("1")),
    "palette": saved("PNG", Image.fromarray(PIXELS).convert("P")),
    "palette_with_transparency": saved("PNG", Image.fromarray(PIXELS).convert("P"), transparency=3),
    "alpha": saved("PNG", Image.fromarray(PIXELS).convert("RGBA")),
    "sixteen_bits": saved("PNG", Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 7)),
    "cmyk": saved("JPEG", Image.fromarray(PIXELS).convert("CMYK")),
    "progressive": saved("JPEG", progressive=True),
    "turned": saved("JPEG", exif=exif_of(6)),
    "turned_by_nonsense": saved("JPEG", exif=exif_of(99)),
    "exif_of_nonsense": saved("JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 200),
    "one_pixel": saved("PNG", Image.new("RGB", (1, 1))),
    "strip": saved("PNG", Image.new("L", (MAX_PIXELS, 1))),
    "tall_strip": saved("PNG", Image.new("L", (1, 60_000))),
    "more_after_the_end": PNG + b"<script>" * 1000,
}
