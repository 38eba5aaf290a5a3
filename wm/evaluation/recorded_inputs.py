"""Find what the record of a result names: a folder of this machine, or one of a bucket, which is fetched.

Not known here: what the folder holds.
"""

from wm.files.mirror import fetch, to_path
from wm.files.transfer import BucketError


def fetch_recorded(name: str) -> str:
    """Return the local path of a file or folder that a record names; what is gone has a path at which nothing is.

    Args:
        name: A path, or the URI of an object store, as in the recipe of ``run.json``.

    Returns:
        The path.

    Raises:
        BucketError: The bucket cannot be read.
    """
    path = to_path(name)
    try:
        return str(fetch(path))
    except BucketError as error:
        # The caller says what it is that is not there.
        if error.reason != "missing_file":
            raise
        return path
