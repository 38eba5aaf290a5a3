"""List files of every kind, near and far: the same rows, and every mistake named with its line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.storage_servers import http_server
from wm.datasets.videos.listing import LISTING_SCHEMA, listing_digest, listing_note
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError

ROWS = [
    {"uri": "b, c+d/x.mp4", "class_label": 'a/b "q"', "start_s": None, "end_s": None, "license": "CC-BY"},
    {"uri": "s3://bucket/k y.mp4", "class_label": "ünï cödé", "start_s": 1.5, "end_s": 3.25, "license": None},
    {"uri": "s3://bucket/k y.mp4", "class_label": "ünï cödé", "start_s": 3.25, "end_s": None, "license": None},
    {"uri": "/abs/train/yoga/y.mp4", "class_label": None, "start_s": None, "end_s": 2.0, "license": ""},
]


def write(path, rows):
    """The same rows in the form that the suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        import pandas as pd

        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "CSV"])
def test_every_form_gives_the_same_rows(tmp_path, suffix):
    actual = list_videos(write(tmp_path / f"list.{suffix}", [*ROWS, ROWS[0]]))
    assert actual.schema.equals(LISTING_SCHEMA)
    assert [tuple(row.values()) for row in actual.to_pylist()] == [
        ("/abs/train/yoga/y.mp4", "/abs/train/yoga/y.mp4#-2.0", "yoga", None, 2.0, ""),
        (f"{tmp_path}/b, c+d/x.mp4", "b, c+d/x.mp4", 'a/b "q"', None, None, "CC-BY"),
        ("s3://bucket/k y.mp4", "s3://bucket/k y.mp4#1.5-3.25", "ünï cödé", 1.5, 3.25, ""),
        ("s3://bucket/k y.mp4", "s3://bucket/k y.mp4#3.25-", "ünï cödé", 3.25, None, ""),
    ]
    assert listing_note(actual, "duplicates") == "1"


def test_more_columns_and_fewer_are_fine(tmp_path):
    (tmp_path / "l.csv").write_text("\ufeffnote,uri\n1,./a//x.mp4\n\n2,file:///b%20c.mp4\n")
    actual = list_videos(str(tmp_path / "l.csv"))
    assert actual["uri"].to_pylist() == ["/b c.mp4", f"{tmp_path}/a/x.mp4"]
    assert actual["key"].to_pylist() == ["/b c.mp4", "a/x.mp4"]


def test_the_list_may_be_large_and_unsorted(tmp_path):
    keys = [f"{(number * 7919) % 50_000:05d}.mp4" for number in range(60_000)]
    (tmp_path / "l.txt").write_text("\n".join(keys))
    actual = list_videos(str(tmp_path / "l.txt"))
    assert actual["key"].to_pylist() == sorted(set(keys))
    assert listing_note(actual, "duplicates") == str(60_000 - len(set(keys)))
    assert actual["uri"][123].as_py() == f"{tmp_path}/{actual['key'][123]}"


def test_digest_sees_every_column_and_the_files(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"1")
    base = {"uri": "x.mp4", "class_label": "a", "start_s": 1.0, "end_s": 2.0, "license": "l"}
    visited = set()
    for change in ({}, {"class_label": "b"}, {"start_s": 0.5}, {"end_s": 3.0}, {"license": "m"}, {"uri": "y.mp4"}):
        visited.add(listing_digest(list_videos(write(tmp_path / "l.parquet", [base | change]))))
    assert len(visited) == 6
    (tmp_path / "x.mp4").write_bytes(b"22")
    assert listing_digest(list_videos(write(tmp_path / "l.csv", [base]))) not in visited


BAD = [
    ("l.csv", "path,label\nx,y\n", "line 1: no column 'uri'; columns found: path, label"),
    ("l.csv", "", "line 1: no column 'uri'; columns found: none"),
    ("l.csv", "uri\n", "lists no video"),
    ("l.csv", "uri,start_s\nx.mp4,0\ny.mp4,one\n", "line 3: start_s = 'one', expected seconds, 0 or more"),
    ("l.csv", "uri,start_s\nx.mp4,-1\n", "line 2: start_s = '-1', expected seconds, 0 or more"),
    ("l.csv", "uri,end_s\nx.mp4,nan\n", "line 2: end_s = 'nan', expected seconds"),
    ("l.csv", "uri,end_s\nx.mp4,inf\n", "line 2: end_s = 'inf', expected seconds"),
    ("l.csv", "uri,end_s\nx.mp4,0\n", "line 2: end_s = 0, expected more than start_s = 0"),
    ("l.tsv", "uri\tstart_s\tend_s\nx.mp4\t2\t1\n", "line 2: end_s = 1, expected more than start_s = 2"),
    ("l.csv", 'uri,class_label\n"x\ny.mp4",a\n,b\n', "line 4: no value for 'uri'"),
    ("l.csv", "uri,class_label\nx.mp4,a,b\n", "line 2: 3 fields, expected the 2 of the header"),
    ("l.csv", "uri\nftp://host/x.mp4\n", "line 2: .*unknown scheme 'ftp'; expected a local path or one of s3://"),
    ("l.csv", b"\xff\xfeu\0r\0i\0\n\0", "not UTF-8"),
    ("l.txt", "x.mp4\nhf://a/b.mp4\n", "line 2: .*unknown scheme 'hf'"),
    ("l.jsonl", '{"uri": "x"}\n{"uri": }\n', "line 2: not valid JSON"),
    ("l.jsonl", '["x"]\n', "line 1: .*expected an object with uri"),
    ("l.jsonl", '{"url": "x"}\n', "line 1: no value for 'uri'"),
    ("l.jsonl", '{"uri": 5}\n', "line 1: uri = 5, expected text"),
    ("l.jsonl", '{"uri": "x", "start_s": true}\n', "line 1: start_s = True, expected seconds"),
    ("l.jsonl", "\n", "lists no video"),
    ("l.jsonl", "[" * 100_000, "line 1: not valid JSON"),
    ("l.parquet", "uri\nx\n", "not a readable Parquet file"),
    ("l.jsonl", '{"uri": "x"}\n{"uri": "y", "start_s": ' + "1" * 5000 + "}\n", "line 2: .* more digits than are read"),
    ("l.jsonl", '{"uri": ' + "1" * 4000 + "}\n", "line 1: uri = 1*, expected text"),
    ("l.jsonl", '{"uri": "x", "start_s": ' + "1" * 4000 + "}\n", "line 1: start_s = 1*, expected seconds"),
    ("l.jsonl", '{"uri": "x", "end_s": 1e999}\n', "line 1: end_s = inf, expected seconds"),
    ("l.jsonl", '{"uri": "x", "end_s": NaN}\n', "line 1: end_s = nan, expected seconds"),
    ("l.jsonl", '{"uri": "a\\u0000b.mp4"}\n', r"line 1: uri = '.*a\\x00b.mp4' holds a zero byte"),
    ("l.jsonl", '{"uri": "a\\ud800b.mp4"}\n', r"line 1: uri = '.*a\\ud800b.mp4' is no Unicode text"),
    ("l.jsonl", '{"uri": "x", "class_label": "\\udce9"}\n', r"line 1: class_label = '\\udce9' is no Unicode text"),
    ("l.jsonl", '{"uri": "s3://b/\\udce9.mp4"}\n', r"line 1: uri = 's3://b/\\udce9.mp4' is no Unicode text"),
    ("l.jsonl", '{"uri": "x", "license": "\\u0000"}\n', r"line 1: license = '\\x00' holds a zero byte"),
    ("l.jsonl", '{"uri": "x"}\n{"a": ' * 1500, "line 2: not valid JSON"),
    ("l.txt", b"x.mp4\na\0b.mp4\n", r"line 2: uri = .* holds a zero byte"),
    ("l.csv", b"uri,class_label\nx.mp4,caf\xe9\n", r"line 2: class_label = 'caf\\udce9' is no Unicode text"),
    ("l.csv", "uri,start_s\nx.mp4," + "1" * 5000 + "\n", "line 2: start_s = '1*, expected seconds"),
    ("l.csv", "uri\nfile://[x.mp4\n", "line 2: .* is no URI"),
    ("l.txt", "file:///a%00b.mp4\n", "line 1: uri = '/a.*b.mp4' holds a zero byte"),
    ("l.txt", "x\n".encode("utf-16"), "UTF-16"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_mistakes_are_named_with_their_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        list_videos(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["l.txt", "l.csv", "l.tsv", "l.jsonl"])
def test_byte_order_marks_and_line_ends_change_nothing(tmp_path, name, mark, end):
    lines = {"l.txt": ["ä.mp4", "y.mp4"], "l.jsonl": ['{"uri": "ä.mp4"}', '{"uri": "y.mp4"}']}
    text = end.join(lines.get(name, ["uri", "ä.mp4", "y.mp4"]))
    (tmp_path / name).write_bytes((mark + text + end).encode())
    assert list_videos(str(tmp_path / name))["key"].to_pylist() == ["y.mp4", "ä.mp4"]


def test_odd_addresses_stay_rows(tmp_path):
    """Whatever is behind them shows when they are read."""
    (tmp_path / "l.txt").write_text("http://[x.mp4\nhttps://host\ns3://bucket\n")
    assert list_videos(str(tmp_path / "l.txt"))["class_label"].to_pylist() == ["", "", ""]


def test_mistakes_in_parquet(tmp_path):
    for row, message in [
        ({"url": "x"}, "no column 'uri'; columns found: url"),
        ({"uri": "x", "start_s": "soon"}, "column 'start_s' holds string, expected double"),
        ({"uri": "x", "start_s": True}, "column 'start_s' holds bool, expected double"),
        ({"uri": ["x"]}, "column 'uri' holds list<.*>, expected string"),
        ({"uri": "x", "end_s": -1.0}, "row 1: end_s = -1.0, expected seconds"),
    ]:
        with pytest.raises(InputError, match=message):
            list_videos(write(tmp_path / "l.parquet", [row]))
    rows = [{"uri": "x", "start_s": float("nan"), "end_s": float("nan")}]
    assert list_videos(write(tmp_path / "l.parquet", rows))["start_s"].null_count == 1


def test_a_list_far_away(tmp_path):
    text = b"uri,class_label\nclips/a b.mp4,x\n../up.mp4,y\nhttps://other.example/z.mp4?t=1,z\n"
    with http_server({"/set/list.csv": text, "/set/bad.csv": b"uri\n/etc/passwd\n"}) as (root, _):
        actual = list_videos(f"{root}/set/list.csv?token=1")
        assert {row["key"]: row["uri"] for row in actual.to_pylist()} == {
            "clips/a b.mp4": f"{root}/set/clips/a b.mp4",
            "../up.mp4": f"{root}/up.mp4",
            "https://other.example/z.mp4?t=1": "https://other.example/z.mp4?t=1",
        }
        assert listing_digest(actual) == listing_digest(list_videos(f"{root}/set/list.csv"))
        with pytest.raises(InputError, match=r"bad.csv line 2: '/etc/passwd' is an absolute path"):
            list_videos(f"{root}/set/bad.csv")
        with pytest.raises(InputError, match=r"gone.csv'.*HTTP status 404"):
            list_videos(f"{root}/set/gone.csv")


def test_a_list_far_away_names_no_local_file(tmp_path):
    with http_server({"/list.txt": b"file:///etc/passwd\n"}) as (root, _), pytest.raises(InputError, match="is local"):
        list_videos(f"{root}/list.txt")


def test_a_segment_from_minus_zero_has_the_key_of_zero(tmp_path):
    (tmp_path / "l.jsonl").write_text(
        '{"uri": "a.mp4", "start_s": -0.0, "end_s": 1}\n{"uri": "a.mp4", "end_s": 1.0, "start_s": 0}'
    )
    actual = list_videos(str(tmp_path / "l.jsonl"))
    assert actual["key"].to_pylist() == ["a.mp4#0.0-1.0"] and listing_note(actual, "duplicates") == "1"
