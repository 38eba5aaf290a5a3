"""List the served models as ``GET /v1/models`` shows them: the recipe's own, and the adapters in its folder."""

import asyncio
import time

from ray.serve.handle import DeploymentHandle

from serve_apps.calls import call
from serve_apps.names import FDM, IDM
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from serve_apps.results import AdapterEntry, ModelEntry
from wm.errors import InputError
from wm.models.remote import changed_s, to_local

# After so long the folder of adapters is listed again.
REFRESH_S = 5.0
MAX_LISTED = 20


class CatalogEntry(ModelEntry):
    """What ``GET /v1/models`` says of a model: what OpenAI's clients read, and what its server says."""

    id: str
    object: str
    created: int
    owned_by: str


class Catalog:
    """The recipe's own models and the adapters in its folder, as their servers describe them."""

    def __init__(self, recipe: ServeRecipe, handles: dict[str, DeploymentHandle]) -> None:
        self._recipe, self._handles = recipe, handles
        self._own: dict[str, CatalogEntry] = {}
        self._adapters: dict[str, CatalogEntry] = {}
        self._listed_s = -REFRESH_S

    async def entry(self, name: str) -> CatalogEntry:
        """Return the entry of a model; raise :class:`ApiError` 404 for an unknown one."""
        # The recipe's own models never change: they are described once.
        if not self._own:
            await self._describe_own()
        if name not in self._own and (name not in self._adapters or self._is_old):
            await self._list_adapters()
        entry = self._own.get(name) or self._adapters.get(name)
        if entry is None:
            names = [*self._own, *self._adapters]
            others = f" and {len(names) - MAX_LISTED} others" if len(names) > MAX_LISTED else ""
            message = f"no such model: {name!r:.80}; the models are {', '.join(names[:MAX_LISTED])}{others}"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        return entry

    async def entries(self) -> list[CatalogEntry]:
        """Return all entries, the recipe's own first."""
        if not self._own:
            await self._describe_own()
        if self._is_old:
            await self._list_adapters()
        return [*self._own.values(), *self._adapters.values()]

    @property
    def is_described(self) -> bool:
        """Whether the recipe's own models are known."""
        return bool(self._own)

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._listed_s > REFRESH_S

    async def _describe_own(self) -> None:
        folders = self._recipe.model_folders()
        described: list[ModelEntry] = await asyncio.gather(
            *(call(self._handles[IDM if name == IDM else FDM], "describe", name, model=name) for name in folders)
        )
        # A model that reads pixels of any size is given those of the size that it verifies.
        side_px = described[list(folders).index(FDM)].get("side_px")
        if side_px is None:
            message = "the forward model's replica is another recipe's; try again"
            raise ApiError.unavailable(message, "models_do_not_match")
        changed_s = await asyncio.gather(*(asyncio.to_thread(_changed_s, folder) for folder in folders.values()))
        self._own = {
            name: _entry(name, changed, {"side_px": side_px, **entry})
            for name, changed, entry in zip(folders, changed_s, described, strict=True)
        }

    async def _list_adapters(self) -> None:
        if self._recipe.adapters is None:
            return
        adapters: list[AdapterEntry] = await call(self._handles[FDM], "describe_adapters", model=FDM)
        self._adapters = {
            adapter["id"]: _entry(adapter["id"], adapter["created"], self._own[adapter["task"]]) for adapter in adapters
        }
        self._listed_s = time.monotonic()


def _changed_s(folder: str) -> int:
    """Return when a model was last changed, in s; 0 if this node does not see it."""
    try:
        return changed_s(to_local(folder))
    except InputError:
        return 0


def _entry(name: str, created_s: int, described: ModelEntry) -> CatalogEntry:
    return {**described, "id": name, "object": "model", "created": created_s, "owned_by": "wm"}
