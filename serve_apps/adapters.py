"""Adapters beside the two models that are always there: found in a folder, read when they are asked for, given up for
others that are."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from ray import serve

from serve_apps.openai import ApiError
from serve_apps.process import Process
from serve_apps.recipe import ADAPTER
from wm.dynamics import Role, load_role
from wm.errors import InputError
from wm.models import read_manifest
from wm.models.folder_checks import check_no_code
from wm.models.manifest import Manifest, is_adapter, is_model_folder, model_folder

logger = logging.getLogger("ray.serve")


def adapters_in(folder: str | Path, base_id: str) -> dict[str, tuple[Path, Manifest]]:
    """List the adapters of a base that a folder holds.

    One that cannot be served costs itself alone: a line in the log names it and why, once until its reason changes.

    Args:
        folder: Holds a folder for each adapter; anything else in it is passed over.
        base_id: Of the base that is loaded.

    Returns:
        Folder and manifest of each, by model name, in the order of the names.
    """
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError as error:
        _log_once(Path(folder), f"the folder of adapters {str(folder)!r} cannot be listed: {error}")
        return {}
    adapters = {}
    for entry in entries:
        try:
            manifest = _servable(entry, base_id)
        except (InputError, OSError) as error:
            _log_once(entry, f"adapter {str(entry)!r} is not served: {error}")
            continue
        if manifest is not None:
            adapters[ADAPTER + entry.name] = model_folder(entry), manifest
            _logged.pop(entry, None)
    return adapters


def _servable(entry: Path, base_id: str) -> Manifest | None:
    """Return the manifest of an adapter that can be served, None for what is no adapter; :class:`InputError` says why
    not."""
    if not is_model_folder(entry) or not is_adapter(entry):
        return None
    if not entry.name.isprintable() or entry.name != entry.name.encode("utf-8", "replace").decode():
        raise InputError("its name is no printable text in UTF-8, and cannot be a model's name")
    manifest = read_manifest(entry)
    if manifest is None:
        raise InputError("it has no manifest, which says what base it is of")
    if manifest.task is None or manifest.base_id != base_id:
        raise InputError(f"it says no task, or is of another base than {base_id}")
    check_no_code(model_folder(entry))
    return manifest


_logged: dict[Path, str] = {}
"""The last line about each folder that is not served: listings come often, the same line is written once."""


def _log_once(folder: Path, line: str) -> None:
    if _logged.get(folder) != line:
        _logged[folder] = line
        logger.warning("%s", line)


class Adapters:
    """Of a process: ``make`` turns a role and its task into what answers for it. Ray Serve sends a request to a replica
    that has its adapter already, where there is one; the one that was asked for longest ago makes room."""

    def __init__(self, process: Process, make: Callable[[Role, str], Any]) -> None:
        assert process.base is not None and process.recipe.adapters is not None
        self._base, self._folder = process.base, process.recipe.adapters

        async def load(name: str) -> Any:
            folder, manifest = await asyncio.to_thread(self._found, name)
            try:
                role = await asyncio.to_thread(load_role, folder, over=self._base)
            except (InputError, OSError) as error:
                logger.error("adapter %s cannot be served: %s", folder, error)
                message = f"model {name!r} cannot be loaded; the server's log says why"
                raise ApiError(message, status=503, kind="server_error", code="model_not_loadable") from error
            return make(role, str(manifest.task))

        most = process.recipe.max_adapters
        self._load = cast(Callable[[str], Awaitable[Any]], serve.multiplexed(max_num_models_per_replica=most)(load))

    async def of(self, name: str) -> Any:
        """Return what answers for an adapter."""
        return await self._load(name)

    def described(self) -> list[dict[str, Any]]:
        """Describe what ``GET /v1/models`` reports of each, beside what it tells of the base."""
        return [
            {"id": name, "task": manifest.task, "created": _changed_s(folder)}
            for name, (folder, manifest) in adapters_in(self._folder, self._base.model.base_id).items()
        ]

    def _found(self, name: str) -> tuple[Path, Manifest]:
        found = adapters_in(self._folder, self._base.model.base_id).get(name)
        if found is None:
            raise ApiError(f"no such model: {name!r:.80}", status=404, param="model", code="model_not_found")
        return found


def _changed_s(folder: Path) -> int:
    """When a folder was last changed, in seconds; 0 if it has been removed since it was listed."""
    try:
        return int(folder.stat().st_mtime)
    except OSError:
        return 0
