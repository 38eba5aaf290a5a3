"""Model cards: what the hub's own parser reads from them, and that texts of strangers stay texts."""

from pathlib import Path

import markdown
import pytest
from huggingface_hub import ModelCard

from wm.cards import (
    code_block,
    escape_markdown,
    is_repo_id,
    license_lines,
    licenses_of,
    list_forbidden,
    quote_yaml,
    read_head,
)
from wm.errors import InputError
from wm.models.base_facts import BaseFacts, describe_base
from wm.models.card import CardFacts, CardFigure, DataSource, strip_paths, write_card
from wm.models.manifest import Manifest

HOSTILE = [
    "a | b | c",
    "<script>alert(1)</script>",
    "![x](http://evil/x.png) [link](javascript:alert(1))",
    "---\nlicense: mit\n---",
    "`code` ``` **bold** # heading",
    "evil\u2028name: \"quoted\" 'single' \\ \x00 \x1b[31m \ud800",
    "{{ template }} {% raw %} &lt; &amp; http://evil.example www.evil.example",
    "x" * 5000,
]


def write(folder: Path, facts: CardFacts, **manifest: object) -> str:
    """Write a card and return its text."""
    values = {"family": "chameleon", "kind": "adapter", "base_id": "chameleon-1", "codec_id": "vq-1", "task": "fdm"}
    folder.mkdir(exist_ok=True)
    Manifest.parse(values | manifest, "test").write(folder)
    return write_card(folder, facts).read_text(encoding="utf-8")


def test_the_hub_reads_the_head(tmp_path: Path) -> None:
    facts = CardFacts(
        "fdm",
        BaseFacts("anole", "GAIR/Anole-7b", ["Chameleon Research License"], "by the card of the base", "SomeClass"),
        [DataSource("me/kubric", "MIT", "human", 1200), DataSource("no repo", "cc-by-nc-4.0", "idm", 34)],
        recipe={"out": "/secret/out", "base": "/models/anole", "optim": {"lr": 0.1}, "resources": {"num_workers": 2}},
        figures=[CardFigure("right", "0.970", 400, "wm evaluate")],
        failures=["It ignores its action."],
    )
    text = write(tmp_path, facts, recipe_digest="abc")
    data = ModelCard(text).data.to_dict()
    assert data == {
        "base_model": "GAIR/Anole-7b",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "other",
        "license_name": "Chameleon Research License, cc-by-nc-4.0, mit",
        "datasets": ["me/kubric"],
        "pipeline_tag": "image-to-image",
        "tags": ["world-model", "wm", "forward-dynamics", "chameleon", "lora"],
    }
    # Licences that forbid, and failures, before anything else.
    body = text.split("---\n")[2]
    top, _, rest = body.partition("A forward dynamics model")
    assert "cc-by-nc-4.0 forbids commercial use" in top and "Chameleon Research License forbids commercial use" in top
    assert "MIT" not in top and "**It ignores its action.**" in top
    assert "| me/kubric | human | 1,200 | MIT |" in rest and "| no repo | idm | 34 | cc-by-nc-4.0 |" in rest
    assert "| right | 0.970 | 400 | wm evaluate |" in rest
    assert 'base = SomeClass.from_pretrained("GAIR/Anole-7b")' in rest and "secret" not in text
    assert '"base": "anole"' in rest and '"lr": 0.1' in rest and "num_workers" not in text
    assert "Digest `abc`" in rest


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    text = write(tmp_path, CardFacts("x", BaseFacts("chameleon-1", note="the base's folder is not here")), kind="full")
    assert ModelCard(text).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-to-image",
        "tags": ["world-model", "wm", "forward-dynamics", "chameleon"],
    }
    for sentence in (
        "Licence of the base: not known (the base's folder is not here).",
        "None: the model was not evaluated.",
        "Not known: the model was not evaluated.",
        "The recipe is not known",
    ):
        assert sentence in text
    assert "With PEFT alone" not in text


@pytest.mark.parametrize("evil", HOSTILE)
def test_texts_of_strangers_stay_texts(tmp_path: Path, evil: str) -> None:
    facts = CardFacts(
        evil,
        BaseFacts(evil, evil, [evil], evil),
        [DataSource(evil, evil, evil, 1)],
        licenses=[evil],
        recipe={"base": evil, "triplets": [{"path": f"/secret/{evil}"}]},
        figures=[CardFigure(evil, evil, 1, evil)],
        failures=[evil],
        unknown=[evil],
    )
    Manifest(family="chameleon", kind="adapter", base_id="b", codec_id="c", task="idm").write(tmp_path)
    path = write_card(tmp_path, facts)
    text = path.read_text(encoding="utf-8")
    data = ModelCard.load(path).data.to_dict()
    assert set(data) == {"library_name", "license", "license_name", "pipeline_tag", "tags"}
    assert data["library_name"] == "peft" and data["license"] == "other"
    # Two lines of dashes alone: those of the head.
    assert [line for line in text.splitlines() if line.strip() == "---"] == ["---", "---"]
    html = markdown.markdown(text.split("---\n", 2)[2], extensions=["tables", "fenced_code"])
    for element in ("<script", "<img", "<a ", 'javascript:alert(1)"'):
        assert element not in html
    assert html.count("<h1>") == 1 and html.count("<h2>") == 6
    # Every table row has as many cells as its header.
    assert html.count("<td") == 4 * 2 + 4 + 4


def test_escapes() -> None:
    assert escape_markdown("a|b*c_d`e") == r"a\|b\*c\_d\`e"
    assert escape_markdown("<b>&") == "&lt;b&gt;&amp;" and escape_markdown("a\n\tb\x00") == "a b"
    assert escape_markdown("abcdef", longest=4) == "abc…"
    assert code_block("a\n```\nb", "python") == ["````python", "a", "```", "b", "````"]
    assert quote_yaml('a: "b"\nc\u2028\ud800') == r'"a: \"b\"\nc\U00002028?"'


@pytest.mark.parametrize(
    ("license", "forbidden"),
    [
        ("cc-by-nc-4.0", ["commercial use"]),
        ("CC BY-NC-ND 4.0", ["commercial use", "derivatives"]),
        ("cc_by_nc_nd", ["commercial use", "derivatives"]),
        ("Chameleon Research License", ["commercial use"]),
        ("Non-Commercial, not to be redistributed", ["commercial use", "redistribution"]),
        ("not for commercial use", ["commercial use"]),
        ("For research purposes only; redistribution is not permitted", ["commercial use", "redistribution"]),
        ("No warranty; free to redistribute, commercial use allowed", []),
        ("may not be redistributed", ["redistribution"]),
        ("No redistribution", ["redistribution"]),
        ("All rights reserved", ["redistribution"]),
        ("apache-2.0", []),
        ("MIT", []),
        ("cc-by-sa-4.0", []),
        ("research and development of and for all", []),
        ("", []),
    ],
)
def test_what_licences_forbid(license: str, forbidden: list[str]) -> None:
    assert list_forbidden(license) == forbidden


def test_licences_that_the_hub_knows_go_by_its_identifier() -> None:
    assert license_lines(["Apache-2.0", "apache-2.0 ", ""]) == ["license: apache-2.0"]
    # Of many only those that forbid something are named.
    many = [*(f"licence {number}" for number in range(25)), "CC-BY-ND-4.0"]
    assert license_lines(many)[1] == 'license_name: "CC-BY-ND-4.0, 26 licences, one in each row"'
    assert license_lines(["Apache-2.0", "MIT"]) == ["license: other", 'license_name: "apache-2.0, mit"']


def test_names_of_repositories() -> None:
    assert all(map(is_repo_id, ("me/a", "GAIR/Anole-7b", "a.b/c_d")))
    assert not any(map(is_repo_id, ("a", "a/b/c", "/a", "a/", "me/a--b", "me/..", "me/.a", "me/a-", "me/é", "a b/c")))


def test_heads_that_are_no_yaml(tmp_path: Path) -> None:
    assert read_head(tmp_path) == {}
    path = tmp_path / "README.md"
    for text, problem in (("---\na: [\n---\n", "no YAML"), ("---\n- a\n---\n", "expected a mapping"), ("# a", None)):
        path.write_text(text)
        if problem is None:
            assert read_head(tmp_path) == {}
            continue
        with pytest.raises(InputError, match=problem):
            read_head(tmp_path)
    # Lines that double a value, by aliases and by merges: neither takes memory, nor time.
    doubled = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    path.write_text(f"---\na0: &a0 [x]\n{doubled}license: *a39\nlicense_name: *a39\n---\n")
    assert licenses_of(read_head(tmp_path)) == []
    merged = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
    path.write_text(f"---\na0: &a0 {{x: 1}}\n{merged}---\n")
    with pytest.raises(InputError, match="no YAML"):
        read_head(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\nx \xff")
    assert read_head(tmp_path) == {"license": "mit"}


def test_paths_in_recipes() -> None:
    values = {"a": "/data/x", "b": ["runs/y/", "../z"], "c": "s3://bucket/w", "d": r"C:\models\v", "e": "~/u"}
    assert strip_paths(values) == {"a": "x", "b": ["y", "z"], "c": "w", "d": "v", "e": "u"}
    same = {"base": "nano:base", "targets": r".*\.layers\.\d+\..*(q|k)_proj", "lr": 0.1, "text": "put a / b", "n": None}
    assert strip_paths(same) == same


def test_a_base_is_described_by_its_folder(tiny_base: Path, tmp_path: Path) -> None:
    nano = describe_base("nano:base")
    assert (nano.name, nano.licenses, nano.class_name) == (
        "nano:base",
        ["apache-2.0"],
        "ChameleonForConditionalGeneration",
    )
    # A release without a card: by its family, and said so.
    plain = describe_base(tiny_base)
    assert list(plain.licenses) == ["Chameleon Research License (non-commercial)"] and "has no card" in plain.note
    snapshot = tmp_path / "models--GAIR--Anole-7b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_base)
    assert describe_base(snapshot, repo_id="me/b").repo_id == "me/b"


def test_a_base_that_reads_pixels_is_no_model_of_codes(tmp_path: Path) -> None:
    text = write(tmp_path / "own", CardFacts("base"), family="qwen3_vl", kind="base", codec_id="", task=None)
    (tmp_path / "release").mkdir()
    (tmp_path / "release/config.json").write_text('{"model_type": "qwen3_vl"}')
    release = write_card(tmp_path / "release", CardFacts("base")).read_text(encoding="utf-8")
    for card in (text, release):
        assert "A base model that reads pixels" in card and "| images | pixels |" in card
        assert "idm = load_inverse_model(model)" in card and "load_codec" not in card and "qwen3" in card
    # Others made the release.
    assert "Made with `wm`" in text and "Described by `wm`" in release and "Made with" not in release
    # Of a release of codes the codec is not known without its weights.
    (tmp_path / "release/config.json").write_text('{"model_type": "chameleon"}')
    card = write_card(tmp_path / "release", CardFacts("base")).read_text(encoding="utf-8")
    assert "| family | chameleon |" in card and "| images |" not in card and "load_codec(model)" in card
