"""Read tables of triplets in a bucket column by column: of rows with images, training reads a hundredth.

No file is copied to this node: what is read goes into the token cache, once. Not known here: which columns are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from wm.errors import InputError
from wm.files.mirror import list_below, mirrored_path, uri_of
from wm.files.storage import StorageError, object_store

_TRIPLETS = "triplets/"


def list_tables(path: str | Path) -> list[tuple[Path, int, int]]:
    """List the finished Parquet files of a table in a bucket.

    Args:
        path: Mirrored path of a folder of triplets, of a stage's output folder that holds ``triplets``, or of a file.

    Returns:
        Mirrored path, size in bytes and time of change in ns of each, sorted by path; hidden names are left out.

    Raises:
        InputError: There is no Parquet file, or the bucket cannot be read.
    """
    uri = str(uri_of(path))
    root = mirrored_path(uri)
    objects = list_below(uri)
    # A stage's output folder has other tables beside.
    triplets = [facts for facts in objects if facts.name.startswith(_TRIPLETS)]
    files = [
        (root / facts.name, facts.size_bytes, facts.mtime_ns)
        for facts in triplets or objects
        if f"{root}{facts.name}".endswith(".parquet") and not any(part[0] == "." for part in Path(facts.name).parts)
    ]
    if not files:
        raise InputError(f"no Parquet file below {uri}")
    return sorted(files)


@contextmanager
def open_table(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, local or in a bucket, to be read in small parts.

    Args:
        file: A path, mirrored for one of a bucket, of which only the requested columns are then read.

    Yields:
        The file.

    Raises:
        OSError: The bucket cannot be read.
    """
    uri = uri_of(file)
    if uri is None:
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet:
            yield parquet
        return
    try:
        store, key = object_store(uri)
    except StorageError as error:
        raise OSError(error.detail) from error
    # Ranges of several columns are asked for at once: each request waits for the server.
    with store.open_input_file(key) as source, pq.ParquetFile(source, pre_buffer=True) as parquet:
        yield parquet
