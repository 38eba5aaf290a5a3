"""The playground's files as they are served, and what its sources may not hold. No browser."""

import re
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serve_apps.http import create_app
from serve_apps.routes.playground import router

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "serve_apps" / "playground"
SCRIPTS = sorted(FOLDER.glob("*.js"))


@pytest.fixture(scope="module")
def http():
    app = create_app("test")
    app.include_router(router)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("html", "text/html; charset=utf-8"), ("css", "text/css; charset=utf-8"), ("js", "text/javascript; charset=utf-8"),
     ("svg", "image/svg+xml")],
)  # fmt: skip
def test_files_have_their_type_and_are_revalidated_by_etag(http, name, media_type):
    for file in FOLDER.glob(f"*.{name}"):
        path = "/" if file.name == "index.html" else f"/playground/{file.name}"
        reply = http.get(path)
        assert (reply.status_code, reply.headers["content-type"], reply.content) == (200, media_type, file.read_bytes())
        assert http.get(path, headers={"if-none-match": '"other"'}).status_code == 200
        for known in (reply.headers["etag"], f'"a", W/{reply.headers["etag"]}', "*"):
            again = http.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
        for answer in (reply, again, http.head(path)):
            policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'self'" and policy["img-src"] == "'self' blob: data:"
            assert not {"script-src", "style-src", "connect-src"} & set(policy) and "unsafe" not in str(policy)
            assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    ["/playground/", "/playground/none.js", "/playground/..%2F__init__.py", "/playground/%2e%2e/routes/playground.py",
     f"/playground/{'9' * 5000}.png", "/playground/samples"],
)  # fmt: skip
def test_nothing_else_can_be_asked_for(http, path):
    reply = http.get(path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert http.post("/playground/main.js").status_code == 405


def test_the_page_names_its_files_and_nothing_outside():
    html = (FOLDER / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="(?:playground/)?([^"]+)"', html)) - {"docs"}
    assert named == {file.name for file in FOLDER.iterdir() if file.is_file()} - {"index.html"}
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:", html)
    assert len(re.findall(r'\bid="([^"]+)"', html)) == len(set(re.findall(r'\bid="([^"]+)"', html)))
    for file in [FOLDER / "index.html", FOLDER / "style.css", *SCRIPTS]:
        outside = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}", file.read_text())) - {"http://www.w3.org"}
        assert not outside, f"{file.name}: {outside}"


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_build_no_markup_and_name_what_the_page_has(file):
    source = file.read_text()
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    assert not re.search(markup + r"|eval\(|Function\(", source)
    ids = set(re.findall(r'\bid="([^"]+)"', (FOLDER / "index.html").read_text()))
    assert set(re.findall(r'byId\("([^"]+)"\)', source)) <= ids
    assert {f"{name}.js" for name in re.findall(r'from "\./(\w+)\.js"', source)} <= {script.name for script in SCRIPTS}
    assert source.count("\n") < 300


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_by_day_and_by_night():
    css = (FOLDER / "style.css").read_text()
    day = dict(re.findall(r"--([\w-]+): (#\w{6})", css.partition("@media")[0]))
    night = day | dict(re.findall(r"--([\w-]+): (#\w{6})", css.partition("@media")[2].partition("} }")[0]))
    assert day != night
    pairs = [(text, ground) for text in ("ink", "soft", "mark") for ground in ("ground", "card", "shade")]
    pairs += [("on-mark", "mark"), ("bad", "bad-bg"), ("mid", "mid-bg"), ("good", "card"), ("good", "ground")]
    for colours in (day, night):
        for text, ground in pairs:
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_an_installed_package_holds_the_page():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["serve_apps"]
    found = {file for pattern in packaged for file in (ROOT / "serve_apps").glob(pattern)}
    assert {file for file in FOLDER.iterdir() if file.is_file()} <= found
