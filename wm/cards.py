"""Write and read what all cards (READMEs of the Hugging Face hub) share: the YAML head, licences, texts of others.

Not known here: what a card is of.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from wm.errors import InputError, to_line

CARD: Final = "README.md"

KNOWN_LICENSES = {
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "mit",
    "openrail",
}
"""Identifiers that the Hugging Face hub takes for ``license``; of any other text it is the name."""

MANY_LICENSES = 20
"""A card names so many at most: where each row has its own (an attribution, say) there may be millions."""

COMMERCIAL_USE, REDISTRIBUTION, DERIVATIVES = "commercial use", "redistribution", "derivatives"
_FORBIDDING = {
    COMMERCIAL_USE: r"\bnon-?\s?commercial|\bnc\b|research[- ](use[- ]|purposes[- ])?(only|licen[cs]e)|academic use"
    r"|(evaluation|personal use) only|\b(no|not)\b[^.,;]{0,12}\bcommercial",
    REDISTRIBUTION: r"\b(no|not|without)\b[^.,;]{0,15}\b(re)?distribut|proprietary|all rights reserved"
    r"|distribution[^.,;]{0,15}\b(not|prohibited|forbidden)\b",
    DERIVATIVES: r"\bnd\b|no[- ]derivative",
}
"""What a licence forbids → words of it that say so. A name without such words may forbid it all the same."""

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_MAX_CARD_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Read YAML without merge keys (<<), by which a few lines describe a mapping of gigabytes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge nothing: such a key is an error then."""


def list_forbidden(license: str) -> list[str]:
    """List what a licence forbids, as far as its name says it: :data:`COMMERCIAL_USE` and the like."""
    # Identifiers separate words by hyphens and underscores, which are no ends of words.
    words = license.lower().replace("_", "-")
    return [use for use, pattern in _FORBIDDING.items() if re.search(pattern, words)]


def distinct_licenses(licenses: Iterable[str]) -> list[str]:
    """List the different licences, sorted; one that the hub knows goes by the hub's identifier, however it is cased."""
    names = {text.strip() for text in licenses if text.strip()}
    return sorted({name.lower() if name.lower() in KNOWN_LICENSES else name for name in names})


def license_lines(licenses: Sequence[str]) -> list[str]:
    """Build the YAML lines of the hub's ``license`` for the different licences of a data set; none if none is given."""
    names = distinct_licenses(licenses)
    if not names:
        return []
    if len(names) == 1 and names[0] in KNOWN_LICENSES:
        return [f"license: {names[0]}"]
    if len(names) > MANY_LICENSES:
        # Those that forbid something are named all the same.
        forbidding = [name for name in names if list_forbidden(name)][:MANY_LICENSES]
        names = [*forbidding, f"{len(names)} licences, one in each row"]
    name = ", ".join(names)
    return ["license: other", f"license_name: {quote_yaml(name)}"]


def license_sentence(counts: Mapping[str, int]) -> str:
    """Describe the licences of a data set with their rows, the commonest first."""
    commonest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{' '.join(name.split()) or 'not given'} ({count:,})" for name, count in commonest[:MANY_LICENSES]]
    more = [f"and {len(commonest) - len(texts):,} more"] if len(commonest) > len(texts) else []
    return f"Licences: {', '.join([*texts, *more])}."


def quote_yaml(text: str) -> str:
    """Quote a text as a YAML string on one line: nothing in it becomes structure."""
    # Half of a surrogate pair cannot be written at all.
    plain = text.encode("utf-8", "replace").decode()
    # JSON's strings are YAML's, but for controls and separators, which YAML takes escaped alone.
    return "".join(
        sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in json.dumps(plain, ensure_ascii=False)
    )


def escape_markdown(text: str, *, longest: int = 200) -> str:
    """Escape a text for a line or a cell of Markdown: no markup, HTML, link, row or heading of it survives.

    Args:
        text: Anything, such as the name that somebody gave a data set.
        longest: Signs after which it is cut.
    """
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    plain = plain if len(plain) <= longest else f"{plain[: longest - 1]}…"
    # Entities rather than backslashes where HTML would begin: not all renderers honour a backslash there.
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        plain = plain.replace(sign, entity)
    escaped = re.sub(r"([\\`*_{}\[\]#!|~$])", r"\\\1", plain)
    # A bare address would become a link.
    return re.sub(r"(?i)(https?|www|ftp|mailto)([:.])", r"\1&#8203;\2", escaped)


def code_block(text: str, language: str = "") -> list[str]:
    """Fence a text by more backticks than any run of them inside: lines of Markdown.

    Args:
        text: The code.
        language: Of the highlighting.
    """
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [f"{fence}{language}", *text.splitlines(), fence]


def is_repo_id(text: str) -> bool:
    """Return whether a text is ``owner/name``, as the hub names repositories."""
    # The hub's own rule: neither two hyphens or dots in a row, nor one of them at an end, nor a .git.
    return bool(_REPO_ID.fullmatch(text)) and not re.search(r"--|\.\.|[.-](/|$)|/[.-]|\.git$", text)


def read_head(folder: Path) -> dict[str, Any]:
    """Read the YAML head of a folder's card; empty where there is no card, or one without a head.

    Raises:
        InputError: The head is no YAML, or no mapping.
    """
    path = folder / CARD
    if not path.is_file():
        return {}
    # A model folder is untrusted: no endless file, and no bytes that are no text.
    with path.open("rb") as file:
        text = file.read(_MAX_CARD_BYTES).decode("utf-8", errors="replace")
    match = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        head = yaml.load(match[1], Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: its head is no YAML: {to_line(error)}") from error
    if head is not None and not isinstance(head, dict):
        raise InputError(f"{path}: expected a mapping between the lines ---, got {type(head).__name__}")
    return head or {}


def licenses_of(head: Mapping[str, Any]) -> list[str]:
    """List the licences that a card's head names: ``license``, or the parts of ``license_name`` where it is other."""
    value, name = head.get("license"), head.get("license_name")
    # Texts alone: nested aliases of a hostile head would print as gigabytes.
    names = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text]
    if names == ["other"] and isinstance(name, str) and name:
        return [part.strip() for part in name.split(",") if part.strip()]
    return names
