"""Watch a run whose first worker is on another node, through what it publishes to the run's bucket.

Not known here: what is shown of it.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from wm.files.mirror import uri_of
from wm.files.storage import download, object_store
from wm.files.storage_errors import StorageError
from wm.files.uris import join_uri
from wm.training import METRICS
from wm.training.checkpoint.retention import FAILED
from wm.training.monitoring.evaluation import EVALUATIONS

POLL_S: Final = 10.0
"""As often as the figures are published."""
_TAIL_BYTES: Final = 16_384
_LIMIT_S: Final = 30.0


@contextmanager
def watch(out: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Provide a folder with the figures of a run in a bucket, and a function that brings them up to date.

    Args:
        out: Mirrored path of the run's folder.

    Yields:
        The folder, which holds the last lines of ``metrics.jsonl``, all of ``gates.jsonl`` and the note of a failed
        checkpoint; and the function, which leaves the folder as it is where the bucket does not answer.
    """
    uri = str(uri_of(out))
    with tempfile.TemporaryDirectory(prefix="wm-watch-") as name:
        folder = Path(name)

        def refresh() -> None:
            # What was not read now is read the next time: nothing depends on it.
            with suppress(StorageError, OSError):
                _copy_tail(join_uri(uri, METRICS), folder / METRICS)
            for file in (EVALUATIONS, FAILED):
                try:
                    download(join_uri(uri, file), folder / file, time_limit_s=_LIMIT_S)
                except (StorageError, OSError) as error:
                    if isinstance(error, StorageError) and error.reason == "missing_file":
                        (folder / file).unlink(missing_ok=True)

        yield folder, refresh


def _copy_tail(uri: str, path: Path) -> None:
    """Copy the last bytes of an object: a long run has megabytes of figures, of which the last line is shown."""
    store, key = object_store(uri, stall_limit_s=_LIMIT_S)
    with store.open_input_file(key) as source:
        size = source.size()
        source.seek(max(0, size - _TAIL_BYTES))
        path.write_bytes(source.read())
