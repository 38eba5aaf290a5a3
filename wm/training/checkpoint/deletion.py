"""Delete files and folders of checkpoints, local or in an object store. Not known here: what a checkpoint is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wm.files.transfer import delete_object, list_objects
from wm.files.uris import is_remote, join_uri

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class Deletion:
    """Deletes below one root. pyarrow itself leaves an empty object for each folder from which it deletes."""

    filesystem: "FileSystem"
    root: str
    """Path of the root in the file system."""
    root_uri: str

    def delete_file(self, path: str) -> None:
        """Delete a file, by its path in the file system."""
        if is_remote(self.root_uri):
            delete_object(self._uri_of(path))
        else:
            self.filesystem.delete_file(path)

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all in it, by its path in the file system."""
        if not is_remote(self.root_uri):
            self.filesystem.delete_dir(path)
            return
        for facts in list_objects(self._uri_of(path), missing_ok=True):
            delete_object(self._uri_of(f"{path}/{facts.name}"))

    def _uri_of(self, path: str) -> str:
        return join_uri(self.root_uri, path.removeprefix(f"{self.root}/"))
