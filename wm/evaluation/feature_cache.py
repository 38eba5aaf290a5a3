"""Store what a model computed of images by the images' hashes and the model's digest, a file a batch.

Files appear complete or not at all, so that several processes may share a cache, in a bucket too.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wm.errors import InputError
from wm.evaluation.metrics.encoders import Vectors
from wm.files.atomic import replace_file
from wm.files.mirror import fetch, publish, uri_of
from wm.files.transfer import BucketError


class FeatureCache:
    """A folder of vectors and captions."""

    def __init__(self, folder: str | Path) -> None:
        """Use a folder, which is made when something is stored."""
        self.folder = Path(folder)

    def vectors(self, digest: str, hashes: Sequence[str], compute: Callable[[], Vectors]) -> Vectors:
        """Load or compute the vectors of a batch.

        Args:
            digest: Identity of the model and of what it computes.
            hashes: Of the images or texts of the batch, in order.
            compute: Computes them, in the same order.

        Returns:
            One vector a hash, (N, D).

        Raises:
            InputError: A file of the cache is damaged.
        """
        path = self._path(digest, hashes, "npy")
        if path.is_file():
            try:
                stored: Vectors = np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise InputError(f"{path} is damaged: {error}; remove it") from error
            if len(stored) != len(hashes):
                raise InputError(f"{path} holds {len(stored)} vectors, expected {len(hashes)}; remove it")
            return stored
        # Not there: computed, and stored for the next run or process.
        vectors = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
        publish(path)
        return vectors

    def texts(self, digest: str, hashes: Sequence[str], compute: Callable[[], list[str]]) -> list[str]:
        """Load or compute the texts of a batch.

        Args:
            digest: Identity of the model and of what it computes.
            hashes: Of the images of the batch, in order.
            compute: Computes them, in the same order.

        Returns:
            One text a hash.

        Raises:
            InputError: A file of the cache is damaged.
        """
        path = self._path(digest, hashes, "json")
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, OSError) as error:
                raise InputError(f"{path} is damaged: {error}; remove it") from error
            if not isinstance(stored, list) or len(stored) != len(hashes):
                raise InputError(f"{path} holds no list of {len(hashes)} texts; remove it")
            return [str(text) for text in stored]
        texts = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
        publish(path)
        return texts

    def _path(self, digest: str, hashes: Sequence[str], ending: str) -> Path:
        """Return a batch's file, which may have to be computed; one that is in a bucket alone is fetched."""
        # A batch of other images, or of a model with other weights, is another file.
        name = hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]
        path = self.folder / digest / f"{name}.{ending}"
        # The name says what is in it: a copy that is here is never old.
        if uri_of(path) is not None and not path.is_file():
            try:
                fetch(path, hold=False)
            except BucketError as error:
                if error.reason != "missing_file":
                    raise
        return path
