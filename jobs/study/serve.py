"""Serve a study to the people who take part: consent, one page an item, the best and the worst; every choice is on the
disk before the page continues.

Works offline. It listens on this machine alone unless host says otherwise, and then people need the link with a key
that it prints. Stop it with Ctrl-C and start it again as often as you like: people continue where they were.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

from pydantic import Field, model_validator

from wm import cli, logs
from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import uri_of
from wm.paths import InputPath, OutputPath
from wm.study.access import is_loopback, load_keys, make_keys
from wm.study.check import check_images
from wm.study.session import StudySession
from wm.study.store import VoteStore
from wm.study.study import STORE_FILE, Study, load_study

STATUS_S: Final = 2.0
"""Seconds between two looks at the store for the status line."""
MAX_CONNECTIONS: Final = 500

logger = logging.getLogger(__name__)


class StudyServeRecipe(Recipe):
    """Which study to serve, and where to listen."""

    study: InputPath
    """Output folder of wm study make, on a local disk."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, which needs keys=FILE."""
    port: int = Field(8010, ge=1, le=65535)
    """TCP port."""
    store: OutputPath = ""
    """SQLite file of the votes, on a local disk; left out, votes.sqlite in the study's folder."""
    keys: OutputPath = ""
    """File with the keys of invitations, one a line; made with one key where there is none. People open the link with
    the key in it. Left out, nobody is asked for one, and host must be of this machine alone."""
    open_seats: int = Field(0, ge=0)
    """How many people may join beyond those that the study plans: everybody who agreed has a seat, also who left."""

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if not (self.keys or is_loopback(self.host)):
            raise ValueError(
                f"host = {self.host!r} lets other machines in, and nobody would be asked for a key: give keys=FILE, "
                "which is made with a key where it is not there"
            )
        return self

    @model_validator(mode="after")
    def _local(self) -> Self:
        # Before anything of a bucket is fetched: votes could not be kept there, one by one.
        for name in ("study", "store", "keys"):
            bucket = uri_of(Path(getattr(self, name) or "."))
            if bucket is not None:
                raise ValueError(f"{name} = {bucket!r}: wm study serve needs it on a local disk, as SQLite does")
        return self


def run(recipe: StudyServeRecipe, *, dry_run: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        recipe: What to serve, and where.
        dry_run: Whether to check everything, print the link and serve nothing.

    Raises:
        InputError: The study, its images, the store, the keys or the port cannot be used.
    """
    # 1. Everything is checked before anybody can open a page.
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise InputError(f"wm study serve needs the package {package}: pip install 'wm[study]'")
    study = load_study(recipe.study)
    check_images(study, Path(recipe.study))
    store_path = Path(recipe.store or Path(recipe.study) / STORE_FILE)
    # 2. The port is taken before a key file or a store is made: a mistyped port leaves nothing behind.
    listener = _listen(recipe.host, recipe.port)
    try:
        keys = _find_keys(recipe.keys, dry_run)
        if dry_run:
            _preview(recipe, study, store_path, keys)
            return
        with VoteStore(store_path) as store:
            _print_welcome(recipe, study, store, keys)
            _serve(StudySession(study, Path(recipe.study), store, open_seats=recipe.open_seats), keys, listener)
            print(f"\nstopped: {_describe(store, study)}; all of it is in {store_path}", file=sys.stderr)
    finally:
        listener.close()


def _find_keys(path: str, dry_run: bool) -> tuple[str, ...]:
    if not path:
        return ()
    if not Path(path).exists():
        return ("A-NEW-KEY",) if dry_run else make_keys(Path(path))
    # Made by hand, or copied: then its mode is whatever it is.
    keys = load_keys(Path(path))
    if Path(path).stat().st_mode & 0o077:
        logger.warning("%s may be read by other users of this machine; chmod 600 keeps the keys yours", path)
    return keys


def _listen(host: str, port: int) -> socket.socket:
    """Take the port at once, so that one in use is reported before anything else is done."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:  # a name such as a..b is not even asked for
        reason = error.strerror if isinstance(error, OSError) else "not a name of a host"
        raise InputError(f"host = {host!r:.300}: no address of this machine: {reason}") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A server that was killed leaves connections behind; its port can be taken all the same.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(f"host = {host!r}, port = {port}: cannot be listened on: {error.strerror}") from error
    return listener


def _preview(recipe: StudyServeRecipe, study: Study, store_path: Path, keys: Sequence[str]) -> None:
    """Say what would be served; the store is opened as it is, and none is made."""
    # Opening it for writing would make it, and switch its journal.
    state = "a new store"
    if store_path.exists():
        with VoteStore(store_path, read_only=True) as store:
            state = _describe(store, study)
    print(f"study {study.study_id}: {study.title}")
    print(
        f"{len(study.items)} items, {len(study.systems)} systems, all images of {study.image_px} x {study.image_px} px"
    )
    print(f"votes in {store_path}: {state}")
    print(f"people would open {_link(recipe, keys)}")


def _print_welcome(recipe: StudyServeRecipe, study: Study, store: VoteStore, keys: Sequence[str]) -> None:
    print(f"study {study.study_id}: {study.title}")
    print(f"people open {_link(recipe, keys)}")
    print(f"votes go to {store.path}; Ctrl-C stops, the same command continues", flush=True)


def _link(recipe: StudyServeRecipe, keys: Sequence[str]) -> str:
    host = recipe.host
    # All addresses: people on other machines need this one's name.
    if host in ("", "0.0.0.0", "::"):
        host = socket.getfqdn()
    # An IPv6 address has colons of its own.
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{recipe.port}/" + (f"#{keys[0]}" if keys else "")


def _describe(store: VoteStore, study: Study) -> str:
    counts = store.count_votes(study.study_id)
    num_people = len(store.list_participants(study.study_id))
    num_items = len(study.items)
    finished = sum(count >= num_items for count in counts.values())
    return (
        f"{sum(counts.values())} of {study.num_participants * num_items} votes, {num_people} of "
        f"{study.num_participants} participants joined, {finished} finished"
    )


def _serve(session: StudySession, keys: tuple[str, ...], listener: socket.socket) -> None:
    import uvicorn

    from wm.study.server import build_app

    @asynccontextmanager
    async def report(_: object) -> AsyncIterator[None]:
        task = asyncio.create_task(_report_status(session))
        try:
            yield
        finally:
            task.cancel()

    # With keys, a proxy or tunnel in front has a name of its own.
    app = build_app(session, keys=keys, is_local=not keys, lifespan=report)
    # Who asked for what, and from where, is not written down. A page that is open keeps no stop from ending.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    # uvicorn raises the signal again once it has ended.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


async def _report_status(session: StudySession) -> None:
    """Write a line whenever something was stored; on a terminal it replaces the one before."""
    last_line = ""
    while True:
        # A store that cannot be read is reported by every request; the status waits for better days.
        with suppress(InputError):
            line = await asyncio.to_thread(_describe, session.store, session.study)
            if line != last_line:
                _write_status(line)
                last_line = line
        await asyncio.sleep(STATUS_S)


def _write_status(line: str) -> None:
    if logs.log_format() == "json":
        logger.info("%s", line)
    elif sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return cli.main(StudyServeRecipe, run, name="study serve", description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
