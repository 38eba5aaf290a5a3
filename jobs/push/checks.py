"""Look through what would be uploaded: secrets, paths of the machine, licences, the card. Knows nothing of the hub."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.push.selection import Selection
from wm.cards import (
    CARD,
    COMMERCIAL_USE,
    DERIVATIVES,
    REDISTRIBUTION,
    distinct_licenses,
    is_repo_id,
    licenses_of,
    list_forbidden,
    read_head,
)
from wm.errors import InputError, to_line
from wm.files.uris import OBJECT_STORES, parse_address

_BINARY = (".safetensors", ".parquet", ".png", ".jpg", ".jpeg", ".webp", ".mp4", ".npy", ".npz", ".tar", ".arrow")
"""Endings of files without text; every other file is looked through, such as a log or a .env without its dot."""
_MAX_TEXT_BYTES = 64 << 20
_SECRETS = {
    "a token of the Hugging Face hub": rb"\bhf_[A-Za-z0-9]{30,}\b",
    "a key of an API": rb"\bsk-[A-Za-z0-9_-]{20,}",
    "a key of wm serve": rb"\bwm-[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])",
    "a password in an address": rb"://[^\s/:@\"'<>{}]+:[^\s/:@\"'<>{}]+@[A-Za-z0-9]",
    "a key of AWS": rb"\bAKIA[0-9A-Z]{16}\b",
    "a token of GitHub": rb"\b(ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{30,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_ABSOLUTE = re.compile(r"(file:/+|/(?=[^/])|~/|[A-Za-z]:\\)\S")
_BUCKET = re.compile(rf"\b(?:{'|'.join(OBJECT_STORES)})://[\w.-]+", re.IGNORECASE)
"""An object store's bucket, whose name says whose it is."""
_ADDRESS = re.compile(r"https?://[^\s\"'<>]+")
_SHARING = (REDISTRIBUTION, DERIVATIVES)
_REWRITTEN = ("run.json", "adapter_config.json", "wm_model.json", "config.json")
"""Files whose values are paths where they look like one; a tokenizer's may be tokens."""


@dataclass(frozen=True)
class Findings:
    """What was found."""

    problems: list[str]  # sentences that a user should read
    rewritten: dict[str, bytes]  # name → content without paths of the machine
    licenses: list[str]


def check_selection(selection: Selection, allowed: Iterable[str]) -> Findings:
    """Look through all files that would be uploaded.

    Args:
        selection: The files.
        allowed: Licences that may be shared although they forbid it.

    Returns:
        Problems, files that go in another form, and licences.

    Raises:
        InputError: A file holds a secret, or a licence forbids sharing.
    """
    problems, rewritten = [], {}
    # Looked for in every text: what nobody expects to have shared.
    needles = _machine_paths(selection.folder)
    for name in selection.files:
        path = selection.folder / name
        if name.lower().endswith(_BINARY):
            problems += _path_columns(path, name) if name.endswith(".parquet") else []
            continue
        if selection.files[name] > _MAX_TEXT_BYTES:
            problems.append(f"{name} is too large to be looked through for secrets and paths")
            continue
        data = path.read_bytes()
        for secret, pattern in _SECRETS.items():
            if re.search(pattern, data):
                raise InputError(f"{name} holds {secret}: remove it, and revoke it if others have seen the file")
        if Path(name).name in _REWRITTEN:
            data = _without_paths(data)
            if data != path.read_bytes():
                rewritten[name] = data
            # Of an endpoint, or of data on the web: it may be private, or what a reader needs.
            if addresses := sorted(set(_ADDRESS.findall(data.decode(errors="replace")))):
                problems.append(f"{name} names the addresses {', '.join(addresses):.300}")
        if any(needle in data for needle in needles):
            problems.append(f"{name} names folders of this machine" + (": wm card writes it again" * (name == CARD)))
        if buckets := sorted(set(_BUCKET.findall(data.decode(errors="replace")))):
            problems.append(f"{name} names the buckets {', '.join(buckets):.300}")
    licenses = _list_licenses(selection)
    problems += _check_licenses(licenses, {name.strip().lower() for name in allowed})
    return Findings([*_card_problems(selection, licenses), *problems], rewritten, licenses)


def _machine_paths(folder: Path) -> list[bytes]:
    """List the paths by which a text gives away this machine: the folder, its parents but the shortest, the home."""
    resolved = [folder.resolve(), *folder.resolve().parents, Path.home().resolve(), Path.cwd()]
    # /data or /tmp alone are in many texts.
    return sorted({f"{path}/".encode() for path in resolved if len(path.parts) > 2})


def _without_paths(data: bytes) -> bytes:
    """Replace absolute paths and URIs of buckets among the values of a JSON file by their last names; other files stay
    as they are."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    stripped = _strip_value(value)
    return data if stripped == value else (json.dumps(stripped, indent=1, ensure_ascii=False) + "\n").encode()


def _strip_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strip_value(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_strip_value(entry) for entry in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    if _BUCKET.match(value):
        # Of the key alone: the last name of a bucket itself is the bucket's, and options name the store's host.
        address = parse_address(value)
        return address.key.rstrip("/").split("/")[-1] or f"{address.scheme}://"
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if _ABSOLUTE.match(value) else value


def _path_columns(path: Path, name: str) -> list[str]:
    """Report text columns of a table that hold paths, by the minima of their row groups: no row is read."""
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name} is damaged: {to_line(error)}") from error
    columns = set()
    # Ends of sorted values: absolute paths come before nearly all other texts.
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            column = footer.row_group(group).column(number)
            values = column.statistics
            if values is not None and values.has_min_max:
                ends = [end for end in (values.min, values.max) if isinstance(end, str)]
                if any(_ABSOLUTE.match(end) for end in ends):
                    columns.add(column.path_in_schema)
    return [f"{name}: column {column} holds paths of this machine" for column in sorted(columns)]


def _list_licenses(selection: Selection) -> list[str]:
    """List the licences of a model's card, or of a data set's card and rows."""
    names = licenses_of(read_head(selection.folder))
    # A card of many licences counts them only: the rows have each.
    if selection.kind == "dataset":
        for name in selection.files:
            if name.endswith(".parquet"):
                path = selection.folder / name
                if "license" in pq.read_schema(path).names:
                    column = pq.read_table(path, columns=["license"]).column("license")
                    names += [license for license in column.unique().to_pylist() if license]
    return distinct_licenses(names)


def _check_licenses(licenses: Iterable[str], allowed: set[str]) -> list[str]:
    """Refuse licences that forbid sharing; report those that forbid commercial use."""
    problems = []
    for name in licenses:
        forbidden = list_forbidden(name)
        sharing = [use for use in forbidden if use in _SHARING]
        if sharing and name.lower() not in allowed:
            raise InputError(
                f"licence {name!r:.200} forbids {' and '.join(sharing)}: not pushed. If you have leave to share it: "
                f"allow_license={json.dumps([name], ensure_ascii=False)}"
            )
        if COMMERCIAL_USE in forbidden:
            problems.append(f"licence {name!r:.200} forbids commercial use: keep that in the card")
    return problems


def _card_problems(selection: Selection, licenses: list[str]) -> list[str]:
    """List what a reader of the card will miss."""
    # Not every stage writes one, wm tabletop for example.
    is_model = selection.kind == "model"
    again = "wm card model=FOLDER writes one" if is_model else "write one, with what the files are and their licence"
    if CARD not in selection.files:
        return [f"there is no card ({CARD}): {again}"]
    head: Mapping[str, Any] = read_head(selection.folder)
    text = (selection.folder / CARD).read_text(encoding="utf-8", errors="replace")
    problems = [] if head else [f"{CARD} has no YAML head, by which the hub finds it"]
    problems += [] if licenses else [f"{CARD} names no licence"]
    # The template that PEFT leaves: nobody has filled it in.
    problems += [f"{CARD} is an empty template: {again}"] if "[More Information Needed]" in text else []
    # PEFT writes the folder that the base was read from.
    base = head.get("base_model")
    if isinstance(base, str) and not is_repo_id(base):
        problems.append(f"{CARD} names base_model {base!r:.200}, which is no repository of the hub: {again}")
    if selection.kind == "model" and head and not base and "| base |" in text:
        problems.append(f"{CARD} names no repository of the base: wm card base_model=owner/name adds it")
    return problems
