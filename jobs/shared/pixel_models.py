"""Check an inverse model that reads pixels by its files: its weights take minutes to load."""


def check_pixel_idm(path: str, base: str | None, prompt: str) -> None:
    """Try the chat template and the processor of a model with a question about two images.

    Args:
        path: Its folder, full or an adapter, whose processor is its base's.
        base: Base of an adapter; None: the one that its manifest names.
        prompt: The question; empty: the one of this package.

    Raises:
        InputError: The base is not needed, or as :func:`wm.dynamics.pixel_check.check_pixel_files`.
    """
    # Imported here: commands that ask no such model need none of it.
    from wm.dynamics.pixel_check import check_pixel_files
    from wm.errors import InputError
    from wm.models import is_adapter

    if base is not None and not is_adapter(path):
        raise InputError(f"{path} is no adapter, so that base = {base!r} has no effect; leave it out")
    check_pixel_files(path, base, prompt)
