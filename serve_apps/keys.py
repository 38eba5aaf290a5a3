"""API keys: ``python -m serve_apps.keys name=alice >> keys.toml`` makes one and prints what the key file holds of it.

A key is 256 random bits. The file holds SHA-256 of it: nobody finds such a key by trying, however fast the hash. Slow
hashes are for passwords, which people make up; here one would only let anybody keep the server busy with guesses.
"""

import hashlib
import hmac
import json
import logging
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from wm import cli
from wm.config import Recipe, read_toml
from wm.errors import InputError

PREFIX = "wm-"
SHOWN_ONCE = "the key, shown this once (a client sends it as `Authorization: Bearer KEY`):\n{}\n"

logger = logging.getLogger("ray.serve")


class KeyLimits(Recipe):
    """Whose a key is and what it may do, at all processes that speak HTTP together."""

    name: str
    """Whose key it is; never in answers, and in metrics only with key_names_in_metrics."""
    requests_per_minute: int = Field(60, ge=1)
    """Requests in a minute; as many may come at once, after a minute without any."""
    concurrent_requests: int = Field(8, ge=1)
    """Requests being answered at a time."""
    max_best_of: int | None = Field(None, ge=1)
    """Candidates a request may ask for; what the server allows if left out."""
    models: list[str] | None = Field(None, min_length=1)
    """Names of the models it may use; all if left out."""


class Key(KeyLimits):
    """An entry ``[[keys]]`` of a key file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the key, 64 hexadecimal digits."""

    @property
    def label(self) -> str:
        """Name of the key in metrics, which anybody may read: 8 digits that the operator finds in the key file."""
        return self.sha256[:8]


class _KeyFile(Recipe):
    keys: list[Key] = Field(min_length=1)


def read_keys(path: str | Path) -> tuple[Key, ...]:
    """Read the keys of a TOML file. Raises :class:`InputError` for a mistake in it, or a name or a key given twice."""
    if not Path(path).is_file():
        raise InputError(f"keys = {str(path)!r}: no such file; `python -m serve_apps.keys name=NAME >> FILE` makes one")
    keys = _KeyFile.parse(read_toml(Path(path)), str(path)).keys
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        duplicate = next((value for value in values if values.count(value) > 1), None)
        if duplicate is not None:
            raise InputError(f"{path}: {field} = {duplicate!r} is given twice")
    return tuple(keys)


class KeyRing:
    """The keys of a file, read again when it changes: a key is added or taken away without a restart. A file that is
    broken, or gone, leaves those that were read before, and a line in the log."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._seen = self._stamp()
        self.keys = read_keys(path)

    def find(self, token: bytes) -> Key | None:
        """Return the entry of a key as a client sent it; it takes as long whichever it is."""
        self._refresh()
        digest, match = hashlib.sha256(token).hexdigest(), None
        # No early end: the time must not say which key it was.
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                match = key
        return match

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        # Before it is read: a file that stays broken is reported once.
        self._seen = stamp
        try:
            self.keys = read_keys(self._path)
        except (InputError, OSError) as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%d keys read from %s", len(self.keys), self._path)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def entry_text(limits: KeyLimits, token: str) -> str:
    """Return what a key file holds of a key.

    Args:
        limits: Its name, and what it may do.
        token: The key itself; its hash alone is in the text.
    """
    values: dict[str, object] = {"name": limits.name, "sha256": hashlib.sha256(token.encode()).hexdigest()}
    values |= {key: value for key, value in limits.model_dump(exclude={"name"}).items() if value is not None}
    # JSON's numbers, lists and texts are TOML's, but for the one control character that JSON leaves as it is.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()]
    return "[[keys]]\n" + "".join(lines).replace("\x7f", "\\u007f")


def run(limits: KeyLimits, *, dry_run: bool = False) -> None:
    """Print the entry to standard output, the key itself to standard error: ``>> keys.toml`` keeps the entry alone.

    Args:
        limits: Its name, and what it may do.
        dry_run: Whether to make none.
    """
    if dry_run:
        print(f"would make a key for {limits.name!r}")
        return
    # 256 bits: see above why a fast hash is enough for them.
    token = PREFIX + secrets.token_urlsafe(32)
    print(SHOWN_ONCE.format(token), file=sys.stderr)
    print(entry_text(limits, token))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return cli.main(KeyLimits, run, name="keys", prog="python -m serve_apps.keys", description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
