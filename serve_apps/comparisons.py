"""The deployment that owns the store of votes: comparisons of all processes that speak HTTP, in one machine's file.

One replica, on the head node, whose disk has the file. It holds no state: another one begins where it ended.
"""

import sqlite3
from asyncio import get_running_loop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from serve_apps.loopback import keep_replica_local
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ADAPTER, ServeRecipe
from wm.errors import InputError
from wm.files.mirror import shown
from wm.packaged import to_packaged_name
from wm.study.playground import Choice, Comparison, Comparisons
from wm.study.store import RefusedError, VoteStore

T = TypeVar("T")


class ComparisonServer:
    """Keep what is shown and chosen.

    Args:
        path: The store; made if it is not there.
        folders: What :func:`list_folders` returns of the recipe.

    Raises:
        InputError: The file is no store, or of other models.
    """

    def __init__(self, path: str, folders: dict[str, str]) -> None:
        keep_replica_local()
        try:
            # As other outputs: runs/ need not be there before the first of them.
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._comparisons = Comparisons(VoteStore(path))
            self._comparisons.check_folders(partial(folder_of, folders))
        except (InputError, OSError) as error:
            raise InputError(f"comparisons = {path!r}: {error}") from error
        # SQLite waits for the disk: off the event loop, one write after the other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="comparisons")

    async def join(self, code: str | None) -> str:
        """Return the code of who compares, as :meth:`Comparisons.join`.

        Args:
            code: Of an earlier comparison.
        """
        return await self._call(partial(self._comparisons.join, code), "participant")

    async def add(self, comparison: Comparison) -> Comparison:
        """Store a comparison, as :meth:`Comparisons.add`.

        Args:
            comparison: Without name and time.
        """
        return await self._call(partial(self._comparisons.add, comparison))

    async def choose(self, item_id: str, choice: Choice) -> Comparison:
        """Store a choice, as :meth:`Comparisons.choose`.

        Args:
            item_id: Of the comparison.
            choice: Left, right, or no difference.
        """
        return await self._call(partial(self._comparisons.choose, item_id, choice))

    async def count(self) -> int:
        """Return how many choices are stored."""
        return await self._call(self._comparisons.count)

    async def _call(self, function: Callable[[], T], unknown: str = "comparison") -> T:
        try:
            return await get_running_loop().run_in_executor(self._thread, function)
        except RefusedError as error:
            raise _to_api_error(error, unknown) from error


def _to_api_error(error: RefusedError, unknown: str) -> ApiError:
    """Word a refusal of the store.

    Args:
        error: The refusal.
        unknown: What was looked up: its field.
    """
    message = str(error)
    # The store says why for programs; clients get it as a status.
    match error.code:
        case "unknown":
            return ApiError(message, status=404, param=unknown, code=f"{unknown}_not_found")
        case "expired":
            return ApiError(message, status=410, code="comparison_expired")
        case "answered":
            return ApiError(message, status=409, param="choice", code="already_chosen")
    # What SQLite met is the cause of the refusal; the low byte is its kind (https://sqlite.org/rescode.html).
    if getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return ApiError(message, status=507, kind="server_error", code="disk_full")
    return ApiError.unavailable(message, "store_unavailable")


def list_folders(recipe: ServeRecipe) -> dict[str, str]:
    """List the folder of every model that may be compared, named as in ``GET /v1/models``.

    Args:
        recipe: What is served; of its adapters the folder that holds them, as :data:`ADAPTER`.
    """
    folders = recipe.model_folders() | ({ADAPTER: recipe.adapters} if recipe.adapters else {})
    # The names of shipped models and of buckets are the same on every machine.
    return {name: shown(to_packaged_name(folder)) for name, folder in folders.items()}


def folder_of(folders: dict[str, str], model: str) -> str | None:
    """Return the folder of a model; None if the recipe has no place for one of that name.

    Args:
        folders: Of :func:`list_folders`.
        model: Name of one of the recipe's own models, or of an adapter.
    """
    # Adapters come and go while a server runs: their folder follows from the name.
    if model.startswith(ADAPTER) and ADAPTER in folders:
        return f"{folders[ADAPTER]}/{model.removeprefix(ADAPTER)}"
    return folders.get(model)
