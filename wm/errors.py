"""Define the one exception whose message is meant for the person at the keyboard."""


class InputError(ValueError):
    """Something given to ``wm`` is wrong: a recipe, a file, a folder, a checkpoint, an upload.

    The message is one line and names the value, where it came from and what was expected.
    Commands print it without a traceback and exit with status 2.
    """


class OtherRunError(InputError):
    """The output folder holds another run: another stage's, another recipe's, or one on inputs that have changed."""
