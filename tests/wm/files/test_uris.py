"""URIs: what is part of a key, what an option, and what no URI of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm.errors import InputError
from wm.files.uris import ObjectAddress, ends_in, is_remote, join_uri, local_path, parse_address, path_in, scheme_of

names = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@pytest.mark.parametrize(
    ("uri", "key", "options"),
    [
        ("s3://b/a b/x+1.mp4", "a b/x+1.mp4", ()),
        ("s3://b", "", ()),
        ("s3://b/what?.mp4", "what?.mp4", ()),
        ("s3://b/what?region=x&y=1", "what?region=x&y=1", ()),
        ("gs://b/k?anonymous=true", "k", (("anonymous", "true"),)),
        ("s3://b/a?.mp4?scheme=http", "a?.mp4", (("scheme", "http"),)),
        ("S3://b/?endpoint_override=h%3A1&region=", "", (("endpoint_override", "h:1"), ("region", ""))),
    ],
)
def test_keys_are_written_as_they_are_and_options_known_by_name(uri, key, options):
    assert parse_address(uri) == ObjectAddress(uri.split(":")[0].lower(), "b", key, options)
    assert path_in(uri) == key


@given(st.lists(names, min_size=1, max_size=3), st.sampled_from(["s3://b", "s3://b/pre/fix?region=r", "gs://b/p/"]))
def test_what_is_joined_is_found_again(parts, folder):
    path = "/".join(parts)
    if "?" in path:  # a name that ends as options do stands for options
        path = path.replace("?", "")
    head, tail = ends_in(folder)
    if not all(path.split("/")) or any(part in (".", "..") for part in path.split("/")):
        return
    assert join_uri(folder, path) == f"{head}{path}{tail}"
    address = parse_address(f"{head}{path}{tail}")
    root = parse_address(folder)
    assert (address.key, address.options) == (f"{root.key.rstrip('/')}/{path}".lstrip("/"), root.options)


def test_local_paths_and_schemes():
    assert [is_remote(uri) for uri in ("/a", "a:b/c", "file:///a", "s3://b/k", "HTTPS://h/x")] == [False] * 3 + [
        True
    ] * 2
    assert scheme_of("GS://b") == "gs"
    assert local_path("file:///a%20b.mp4") == "/a b.mp4"
    assert local_path("a%20b.mp4") == path_in("a%20b.mp4") == "a%20b.mp4"
    assert path_in("https://h.example/a%20b.mp4?x=/y") == "/a b.mp4"
    assert ends_in(".") == ("", "") and ends_in("/") == ("/", "") and ends_in("a/b/") == ("a/b/", "")
    assert ends_in("https://h.example/x") == ("https://h.example/x/", "")


def test_http_names_are_references():
    assert join_uri("https://h.example/a", "b c.mp4") == "https://h.example/a/b c.mp4"
    assert join_uri("https://h.example/a/", "../x.mp4?t=1") == "https://h.example/x.mp4?t=1"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: scheme_of("ftp://h/x"), "unknown scheme 'ftp'; expected a local path or one of s3://, gs://, http://"),
        (lambda: local_path("s3://b/k"), "is remote; expected a local path"),
        (lambda: local_path("file://host/x"), "without a host"),
        (lambda: parse_address("https://h/x"), "expected s3://bucket/key or gs://bucket/key"),
        (lambda: parse_address("s3:///k"), "names no bucket; expected s3://bucket/key"),
        (lambda: join_uri("s3://b/a", "../../k"), "leads out of the bucket"),
    ],
)
def test_what_is_no_uri_is_named(call, told):
    with pytest.raises(InputError, match=told):
        call()
