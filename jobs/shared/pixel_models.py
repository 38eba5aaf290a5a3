"""Check an inverse model that reads pixels by its files: its weights take minutes to load."""


def check_pixel_idm(path: str, base: str | None, prompt: str) -> None:
    """Try the chat template and the processor of a model with a question about two images.

    Args:
        path: Its folder, full or an adapter, whose processor is its base's.
        base: Base of an adapter; None: the one that its manifest names.
        prompt: The question; empty: the one of this package.

    Raises:
        InputError: The folder is damaged or runs code, the base is not there or not needed, two images or the question
            cannot be given.
    """
    # Imported here: commands that ask no such model need none of it.
    from wm.dynamics.pixel_check import check_two_images
    from wm.errors import InputError
    from wm.files.mirror import uri_of
    from wm.models import is_adapter, model_folder
    from wm.models.manifest import adapter_base, read_manifest
    from wm.models.pixels.chats import PROMPT
    from wm.models.pixels.folders import check_pixel_folder, load_pixel_processor

    folder, question = model_folder(path), prompt or PROMPT
    # One of another program says nothing of its base.
    if is_adapter(folder):
        folder = adapter_base(folder, base) if read_manifest(folder) or base is None else model_folder(base)
    elif base is not None:
        raise InputError(f"{path} is no adapter, so that base = {base!r} has no effect; leave it out")
    # Of a bucket only the configuration is here: whoever loads the model fetches the rest.
    if uri_of(folder) is not None:
        return
    check_pixel_folder(folder)
    check_two_images(load_pixel_processor(folder, question), question, folder)
