"""Say why a remote file or folder could not be read: errors that travel between processes."""


class StorageError(Exception):
    """A remote file or folder could not be read."""

    def __init__(self, reason: str, detail: str, transient: bool = False) -> None:
        """Build the error.

        Args:
            reason: One of ``wm.video.errors.REASONS``: ``missing_file``, ``unreadable``, ``time_out``.
            detail: The reason in words, with the URI.
            transient: The same request may well succeed later.
        """
        super().__init__(reason, detail, transient)  # all arguments, so that it travels between processes unchanged
        self.reason, self.detail, self.transient = reason, detail, transient

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class LoginError(StorageError):
    """The store does not let this machine in, as it has no credentials or others: the file is not at fault."""
