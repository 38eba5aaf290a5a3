"""Index the videos that are there, so that a data set's own table finds them by name.

The table decides what is listed: a row whose video is not there stays, under the path where it should be, and becomes
a reject when it is read; a video that no row names is left out and counted.
"""

from wm.datasets.videos.folders import Found
from wm.files.uris import ends_in


class VideoIndex:
    """The videos that are there, by name, for a table that names them."""

    def __init__(self, videos: Found) -> None:
        """Index what was found: some 300 bytes a video."""
        self.num_unnamed = 0
        self._head, self._tail = ends_in(videos.root)
        self._odd: dict[str, str] = {}
        self._keys: dict[str, str | list[str]] = {}
        for uri, key in videos.files:
            self.num_unnamed += 1
            # Tables name videos without folder and suffix, and downloads differ in case.
            stem = key.rpartition("/")[2].rpartition(".")[0].lower()
            # Most names occur once: a string alone, as a list for each costs 60 bytes a video.
            keys = self._keys.setdefault(stem, key)
            if keys is not key:
                self._keys[stem] = [*keys, key] if isinstance(keys, list) else [keys, key]
            # Videos of a list file lie anywhere; of a folder the URI follows from the key.
            if uri != self._head + key + self._tail:
                self._odd[key] = uri
        self._found: set[str] = set()
        self._used: set[str] = set()
        self._passed_over = videos.passed_over

    def uri_of(self, key: str) -> str:
        """Return how to open the video of this key, whether it is there or not; the video is then a listed one."""
        # Of several videos of one name those that are not used are counted later.
        self._used.add(key)
        return self._odd.get(key) or self._head + key + self._tail

    def find(self, stem: str) -> list[str]:
        """Return the sorted keys of the videos of this name (no folder, no suffix; any case), now named."""
        # A name may be looked for in many rows; its videos are counted once.
        keys = self._keys_of(stem.lower())
        if not keys:
            self._passed_over.add("absent", stem)
        if keys and stem.lower() not in self._found:
            self._found.add(stem.lower())
            self.num_unnamed -= len(keys)
        return keys

    def count_unused(self) -> None:
        """Count the videos that were not looked for, and those of one name of which another one was taken."""
        for stem in self._keys:
            kind = "same_name" if stem in self._found else "unnamed"
            for key in self._keys_of(stem):
                if key not in self._used:
                    self._passed_over.add(kind, key)

    def _keys_of(self, stem: str) -> list[str]:
        keys = self._keys.get(stem, [])
        return [keys] if isinstance(keys, str) else sorted(keys)
