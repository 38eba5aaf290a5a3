"""Check the models of an annotation before any work, and load them in an actor.

The inverse model may read codes or pixels. Whose codes are stored is another question: those of the recipe's codec, or
of the inverse model's own, or none.
"""

from typing import TYPE_CHECKING, Any

from jobs.annotate.endpoint import EndpointProposer
from jobs.annotate.frames import Observer
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.settings import AnnotatorSettings
from jobs.shared.pixel_models import check_pixel_idm
from wm.errors import InputError

if TYPE_CHECKING:
    from wm.dynamics.protocols import Proposer
    from wm.models import ImageCodec


def load_annotator_models(settings: AnnotatorSettings) -> "tuple[Proposer, ImageCodec | None, Observer]":
    """Load what an actor needs.

    Args:
        settings: The actor's, with paths of this node.

    Returns:
        The inverse model; the codec whose codes are stored, if any; and what shows key-frames to the model.

    Raises:
        InputError: A folder is no such model.
    """
    import torch

    from wm.dynamics.code_models import CodeInverse
    from wm.dynamics.loading import load_inverse_model
    from wm.models import load_codec

    folder = _find_codec(settings.idm, settings.base, settings.codec)
    # The codec stays in float32: its codes must not depend on the precision of the IDM.
    codec = load_codec(folder, device=settings.device) if folder else None
    if settings.endpoint.base_url:
        return EndpointProposer(settings.endpoint, settings.prompt), codec, Observer(None)
    question: dict[str, Any] = {"prompt": settings.prompt} if settings.prompt else {}
    idm = load_inverse_model(
        settings.idm,
        base=settings.base,
        device=settings.device,
        dtype=getattr(torch, settings.dtype),
        rows=settings.idm_batch_size,
        # A codec of the recipe may be another than the IDM's, which then encodes pixels by its own.
        codec=None if settings.codec else codec,
        **question,
    )
    reads_codes = isinstance(idm, CodeInverse) and codec is not None and idm.role.model.codec_id == codec.codec_id
    return idm, codec, Observer(codec if reads_codes else None)


def _reads_codes(idm: str, base: str | None) -> bool:
    """Return whether the inverse model has image codes; one behind an endpoint has none."""
    from wm.dynamics.loading import kind_of

    return bool(idm) and kind_of(idm, base) == "codes"


def _find_codec(idm: str, base: str | None, codec: str | None) -> str | None:
    """Find the folder of the codec whose codes are stored: the given one, the inverse model's own, or None."""
    if codec:
        return codec
    return (base or idm) if _reads_codes(idm, base) else None


def check_models(recipe: AnnotateRecipe) -> None:
    """Check the folders of a recipe by their files; no weights are read.

    Args:
        recipe: Its ``idm``, ``base`` and ``codec``.

    Raises:
        InputError: No model is given, a folder is missing or no model, or the inverse model was trained for the other
            task or is an image editor.
    """
    if not recipe.idm and not recipe.endpoint.base_url:
        raise InputError("idm is missing; expected a model folder, or endpoint.base_url of a server that has a model")
    if recipe.idm:
        _check_folder("idm", recipe.idm)
        _check_task(recipe.idm, recipe.base)
    if recipe.codec:
        _check_folder("codec", recipe.codec)


def check_base(recipe: AnnotateRecipe) -> None:
    """Check the base of a recipe by its files.

    Args:
        recipe: With a ``base``.

    Raises:
        InputError: It is missing or no model, or not the one that the adapter's manifest names.
    """
    if recipe.base and not recipe.idm:
        raise InputError(f"base = {recipe.base!r}: an endpoint's model has no adapter here; leave base out")
    if recipe.base:
        _check_folder("base", recipe.base)
        _check_fit(recipe.idm, recipe.base)


def settle_filters(recipe: AnnotateRecipe) -> AnnotateRecipe:
    """Return the recipe as it can be run: without a codec no filter looks at image codes.

    Args:
        recipe: As it was given.

    Raises:
        InputError: A filter of codes was asked for, or the prompt of a model that has a layout of its own.
    """
    if recipe.prompt and _reads_codes(recipe.idm, recipe.base):
        raise InputError(
            f"prompt = {recipe.prompt!r:.100}: idm = {recipe.idm!r} reads image codes in a layout of its own, without "
            "words; leave it out"
        )
    if _find_codec(recipe.idm, recipe.base, recipe.codec) is not None:
        return recipe
    # The default is no wish: it is dropped, and recorded as it was done.
    filters = recipe.filters
    wishes = {"unchanged": filters.unchanged != "off", "min_changed_codes": True}
    for name, is_wish in wishes.items():
        if is_wish and name in filters.model_fields_set:
            raise InputError(
                f"filters.{name} = {getattr(filters, name)} compares image codes, but {recipe.model_name} reads "
                "pixels; give codec=MODEL, whose codes are then stored too, or filters.unchanged=off"
            )
    return recipe.model_copy(update={"filters": filters.model_copy(update={"unchanged": "off"})})


def check_contents(recipe: AnnotateRecipe) -> None:
    """Load what is small of the models: codec, or processor and chat template. A damaged folder, an adapter without its
    base, a question that cannot be asked, or a threshold that no pair can reach is reported before anything starts.

    Args:
        recipe: Its models are there.

    Raises:
        InputError: For any of these.
    """
    from wm.models import load_codec

    # The IDM itself is loaded by the annotators only.
    if recipe.idm and not _reads_codes(recipe.idm, recipe.base):
        check_pixel_idm(recipe.idm, recipe.base, recipe.prompt)
    folder = _find_codec(recipe.idm, recipe.base, recipe.codec)
    if folder is None:
        return
    num_codes = load_codec(folder).tokens_per_image
    filters = recipe.filters
    if filters.unchanged == "on" and filters.min_changed_codes > num_codes:
        raise InputError(
            f"filters.min_changed_codes = {filters.min_changed_codes}, but an image has {num_codes} codes: every pair "
            f"would be filtered; expected 1 to {num_codes}"
        )


def _check_folder(key: str, folder: str) -> None:
    from wm.models import explain_unreadable, hub_hint, is_model_folder, model_folder
    from wm.models.pipelines import INDEX

    # Before Ray starts: an actor's error would come late and as a trace.
    path = model_folder(folder)
    if not path.is_dir():
        raise InputError(f"{key} = {folder!r}: no such model folder{hub_hint(folder)}")
    if (path / INDEX).is_file():
        raise InputError(
            f"{key} = {folder!r} is an image editor: it makes images and says no action; expected an inverse model"
            if key == "idm"
            else f"{key} = {folder!r} is an image editor; expected a model folder"
        )
    if not is_model_folder(folder):
        explain_unreadable(path)
        raise InputError(f"{key} = {folder!r} is no model folder: it has neither config.json nor adapter_config.json")


def _check_task(idm: str, base: str | None) -> None:
    """Refuse a forward model, and an adapter of codes without a manifest: with ``base`` given, only annotators would
    read it."""
    from wm.dynamics.loading import kind_of
    from wm.models import is_adapter, read_adapter_manifest, read_manifest

    manifest = read_manifest(idm)
    # Adapters of other programs say nothing; those of models that read pixels need not.
    if manifest is None and is_adapter(idm) and (base is None or kind_of(idm, base) == "codes"):
        manifest = read_adapter_manifest(idm)
    # A base has no task: without fine-tuning it is nobody's role yet, but may annotate.
    if manifest is not None and manifest.task not in (None, "idm"):
        raise InputError(f"idm = {idm!r} was trained as {manifest.task}; expected an inverse model (idm)")


def _check_fit(idm: str, base: str) -> None:
    """Refuse a base that the adapter's manifest does not name, before anything is decoded."""
    from wm.models import is_adapter, read_manifest

    # Models of others have no manifest: nothing is known of their bases.
    adapter, full = read_manifest(idm), read_manifest(base)
    if not is_adapter(idm):
        raise InputError(f"idm = {idm!r} is a full model and no adapter; leave base out")
    if adapter is not None and full is not None and adapter.base_id != full.base_id:
        raise InputError(f"adapter {idm} was trained on base {adapter.base_id}, but {base} is {full.base_id}")
