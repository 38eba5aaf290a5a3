"""Define the one exception whose message is meant for the person at the keyboard, and write others in one line."""


class InputError(ValueError):
    """Something given to ``wm`` is wrong: a recipe, a file, a folder, a checkpoint, an upload.

    The message is one line and names the value, where it came from and what was expected.
    Commands print it without a traceback and exit with status 2.
    """


class MissingPathError(InputError):
    """Nothing is at a path; a command whose recipe has the path names its key."""

    def __init__(self, path: object, kind: str = "file or folder", hint: str = "") -> None:
        """Keep the parts of the message, with which it can be sent to another process.

        Args:
            path: Where nothing is.
            kind: What was expected there.
            hint: Follows the path.
        """
        super().__init__(str(path), kind, hint)
        self.path = str(path)

    def __str__(self) -> str:
        """Return the message."""
        path, kind, hint = self.args
        return f"no such {kind}: {path:.300}{hint}"


class OtherRunError(InputError):
    """The output folder holds another run: another stage's, another recipe's, or one on inputs that have changed."""


def to_line(error: BaseException, max_chars: int | None = None) -> str:
    """Write the message of a library's exception in one line.

    Args:
        error: Its message may have line ends.
        max_chars: Max length; None: all of it.
    """
    return " ".join(str(error).split())[:max_chars]
