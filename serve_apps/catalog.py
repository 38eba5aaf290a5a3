"""The models served: the recipe's two, and the adapters in its folder."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from serve_apps.openai import ApiError
from serve_apps.recipe import FDM, IDM, OTHER_CODEC, ServeRecipe

REFRESH_S = 5.0
"""After so long the folder of adapters is looked at again."""
Ask = Callable[..., Awaitable[Any]]
"""Given a role, a method and its arguments."""


class Catalog:
    """What ``GET /v1/models`` tells, as the replicas describe themselves."""

    def __init__(self, recipe: ServeRecipe, ask: Ask) -> None:
        self._recipe, self._ask = recipe, ask
        self._own: dict[str, dict[str, Any]] = {}
        self._adapters: dict[str, dict[str, Any]] = {}
        self._looked_s = -REFRESH_S

    async def entry(self, name: str) -> dict[str, Any]:
        """Of one model; :class:`ApiError` 404 for a name that is none."""
        if not self._own:
            await self._look_up_own()
        if name not in self._own and (name not in self._adapters or self._is_old):
            await self._look_up_adapters()
        found = self._own.get(name) or self._adapters.get(name)
        if found is None:
            known = [*self._own, *self._adapters]
            told = ", ".join(known[:20]) + (f" and {len(known) - 20} others" if len(known) > 20 else "")
            message = f"no such model: {name!r:.80}; the models are {told}"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        return found

    async def entries(self) -> list[dict[str, Any]]:
        """Of all: the recipe's two first."""
        if not self._own:
            await self._look_up_own()
        if self._is_old:
            await self._look_up_adapters()
        return [*self._own.values(), *self._adapters.values()]

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._looked_s > REFRESH_S

    async def _look_up_own(self) -> None:
        folders = {FDM: self._recipe.fdm, IDM: self._recipe.idm}
        described = await asyncio.gather(*(self._ask(name, "describe", name) for name in folders))
        codecs = [entry["codec"] for entry in described]
        if len(set(codecs)) > 1:
            message = OTHER_CODEC.format(*codecs)
            raise ApiError(message, status=503, kind="server_error", code="models_do_not_match")
        self._own = {
            name: _entry(name, int(Path(folder).stat().st_mtime) if Path(folder).exists() else 0) | entry
            for (name, folder), entry in zip(folders.items(), described, strict=True)
        }

    async def _look_up_adapters(self) -> None:
        if self._recipe.adapters is None:
            return
        found = await self._ask(FDM, "describe_adapters")
        self._adapters = {
            entry["id"]: self._own[entry["task"]] | _entry(entry["id"], entry["created"]) for entry in found
        }
        self._looked_s = time.monotonic()


def _entry(name: str, created_s: int) -> dict[str, Any]:
    """Return what OpenAI's clients read."""
    return {"id": name, "object": "model", "created": created_s, "owned_by": "wm"}
