"""Adapters beside the two models that are always there: found in a folder, read when they are asked for, given up for
others that are."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from ray import serve

from serve_apps.process import Process
from serve_apps.recipe import ADAPTER
from wm.api import ApiError
from wm.dynamics import Role, load_role
from wm.errors import InputError
from wm.models import read_manifest
from wm.models.adapters import is_adapter
from wm.models.manifest import Manifest, is_model_folder, model_folder

logger = logging.getLogger("ray.serve")


def adapters_in(folder: str | Path, base_id: str) -> dict[str, tuple[Path, Manifest]]:
    """Folder and manifest of every adapter of a base in a folder, by model name. What is none is passed over, an
    adapter of another base with a line in the log."""
    found = {}
    for entry in sorted(Path(folder).iterdir()):
        if not is_model_folder(entry) or not is_adapter(entry):
            continue
        manifest = read_manifest(entry)
        if manifest is None or manifest.task is None or manifest.base_id != base_id:
            logger.warning("adapter %s is not served: it says no task, or is of another base than %s", entry, base_id)
            continue
        found[ADAPTER + entry.name] = model_folder(entry), manifest
    return found


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
            except InputError as error:
                logger.error("adapter %s cannot be served: %s", folder, error)
                message = f"model {name!r} cannot be loaded; the server's log says why"
                raise ApiError(message, status=503, kind="server_error", code="model_not_loadable") from error
            return make(role, str(manifest.task))

        most = process.recipe.max_adapters
        self._load = cast(Callable[[str], Awaitable[Any]], serve.multiplexed(max_num_models_per_replica=most)(load))

    async def of(self, name: str) -> Any:
        """What answers for an adapter."""
        return await self._load(name)

    def described(self) -> list[dict[str, Any]]:
        """What ``GET /v1/models`` tells of each, beside what it tells of the base."""
        return [
            {"id": name, "task": manifest.task, "created": int(folder.stat().st_mtime)}
            for name, (folder, manifest) in adapters_in(self._folder, self._base.model.base_id).items()
        ]

    def _found(self, name: str) -> tuple[Path, Manifest]:
        found = adapters_in(self._folder, self._base.model.base_id).get(name)
        if found is None:
            raise ApiError(f"no such model: {name!r:.80}", status=404, param="model", code="model_not_found")
        return found
