"""Serve adapters beside the recipe's two models: listed from a folder, loaded when a request names them, evicted for
others."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

from ray import serve

from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ADAPTER
from serve_apps.results import AdapterEntry
from wm.dynamics import Role, load_role
from wm.errors import InputError
from wm.files.mirror import shown, uri_of
from wm.models import read_manifest
from wm.models.folder_checks import check_no_code
from wm.models.manifest import Manifest, is_adapter, is_model_folder, list_model_folders, model_folder
from wm.models.remote import changed_s, to_local

ServedT = TypeVar("ServedT")
logger = logging.getLogger("ray.serve")


def find_adapters(folder: str | Path, base_id: str) -> dict[str, tuple[Path, Manifest]]:
    """Find the adapters of a base in a folder.

    One that cannot be served costs itself alone: a line in the log names it and why, once until its reason changes.

    Args:
        folder: Holds a folder for each adapter; anything else in it is passed over.
        base_id: Of the base that is loaded.

    Returns:
        Folder and manifest of each, by model name, in the order of the names.
    """
    root = to_local(folder)
    try:
        entries = list_model_folders(root) if uri_of(root) is not None else sorted(root.iterdir())
    except (InputError, OSError) as error:
        _log_once(root, f"the folder of adapters {shown(folder)!r} cannot be listed: {error}")
        return {}
    # One that is damaged must not take the others with it.
    adapters = {}
    for entry in entries:
        try:
            manifest = _read_servable(entry, base_id)
        except (InputError, OSError) as error:
            _log_once(entry, f"adapter {shown(entry)!r} is not served: {shown(error)}")
            continue
        # Once it is served again, what is wrong with it later is news.
        if manifest is not None:
            adapters[ADAPTER + entry.name] = model_folder(entry), manifest
            _logged.pop(entry, None)
    return adapters


def _read_servable(entry: Path, base_id: str) -> Manifest | None:
    """Return an adapter's manifest, None for what is no adapter; raise :class:`InputError` if it cannot be served."""
    if not is_model_folder(entry) or not is_adapter(entry):
        return None
    # The name goes into JSON and log lines.
    if not entry.name.isprintable() or entry.name != entry.name.encode("utf-8", "replace").decode():
        raise InputError("its name is no printable text in UTF-8, and cannot be a model's name")
    manifest = read_manifest(entry)
    if manifest is None:
        raise InputError("it has no manifest, which says what base it is of")
    if manifest.task is None or manifest.base_id != base_id:
        raise InputError(f"it says no task, or is of another base than {base_id}")
    # Nobody has vetted the folder: it must not bring code that would run here.
    check_no_code(model_folder(entry))
    return manifest


# The last line about each folder that is not served: listings are frequent, the same line is written once.
_logged: dict[Path, str] = {}


def _log_once(folder: Path, line: str) -> None:
    if _logged.get(folder) != line:
        _logged[folder] = line
        logger.warning("%s", line)


def list_adapters(folder: str | Path, base_id: str) -> list[AdapterEntry]:
    """Describe the adapters of :func:`find_adapters`.

    Args:
        folder: Holds a folder for each adapter.
        base_id: Of the base that is loaded.
    """
    return [
        {"id": name, "task": str(manifest.task), "created": changed_s(path)}
        for name, (path, manifest) in find_adapters(folder, base_id).items()
    ]


class Adapters(Generic[ServedT]):
    """The adapters that a replica has in memory.

    Ray Serve sends a request to a replica that has its adapter already, where there is one.

    Args:
        folder: Of the adapters.
        base: Of all of them.
        build: Turns a role into what is kept in memory.
        max_in_memory: How many; the one whose last request is longest ago makes room.
    """

    def __init__(self, folder: str, base: Role, build: Callable[[Role], ServedT], max_in_memory: int) -> None:
        self._folder, self._base, self._build = folder, base, build

        # Ray's decorator wants a coroutine function of one argument, and its limit when it is applied.
        async def load(name: str) -> ServedT:
            return await asyncio.to_thread(self._load, name)

        self.load: Callable[[str], Awaitable[ServedT]] = serve.multiplexed(max_num_models_per_replica=max_in_memory)(
            load
        )
        """Return an adapter by its model name, from memory or disk; raise :class:`ApiError` 404 for an unknown one, 503
        for one that cannot be loaded."""

    def _load(self, name: str) -> ServedT:
        path, _ = find_adapters(self._folder, self._base.model.base_id).get(name, (None, None))
        # The ingress lists the folder every few seconds only: it may have gone since.
        if path is None:
            raise ApiError(f"no such model: {name!r:.80}", status=404, param="model", code="model_not_found")
        try:
            role = load_role(path, over=self._base)
        except (InputError, OSError) as error:
            logger.error("adapter %s cannot be served: %s", shown(path), shown(error))
            message = f"model {name!r} cannot be loaded; the server's log says why"
            raise ApiError(message, status=503, kind="server_error", code="model_not_loadable") from error
        return self._build(role)
