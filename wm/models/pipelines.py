"""Load an image editor of diffusers from a local folder in its released form: the class that was asked for, weights in
safetensors, no code of the folder's own, nothing fetched.

How an editor is called is not known here.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeAlias

from wm.errors import InputError
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, read_json, refusing
from wm.models.folders import quiet_transformers
from wm.models.unreadable import check_folder_exists

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

INDEX = "model_index.json"
"""What names a pipeline's class and those of its parts."""
INSTALL = "pip install 'wm[baselines]'"
_LIBRARIES = ("diffusers", "transformers")
_KINDS = (
    ("transformers", "PreTrainedModel"),
    ("transformers", "PreTrainedTokenizerBase"),
    ("transformers", "FeatureExtractionMixin"),
    ("transformers", "ImageProcessingMixin"),
    ("transformers", "ProcessorMixin"),
    ("diffusers", "ModelMixin"),
    ("diffusers", "SchedulerMixin"),
)
"""What a part may be. Not a pipeline: diffusers would load that with its own defaults, which unpickle weights and fetch
what a README names. Nor anything else that happens to have a ``from_pretrained``."""
_OLD_NAMES = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""Classes that folders of 2022 name and diffusers renames."""
_NUM_LISTED = 6


def load_pipeline(
    folder: str | Path,
    class_name: str,
    *,
    dtype: Precision = "float32",
    device: str = "cpu",
    scheduler: str = "",
    safety_checker: bool = True,
) -> Any:
    """Load an image editor.

    Args:
        folder: A local folder in the form of diffusers, such as ``timbrooks/instruct-pix2pix``.
        class_name: The pipeline's class, which the folder must name too.
        dtype: Type of the weights.
        device: Device of torch.
        scheduler: Class of diffusers that replaces the folder's scheduler; empty: the folder's own.
        safety_checker: Load the folder's safety checker, if it has one.

    Returns:
        The pipeline, in evaluation mode and without progress bars.

    Raises:
        InputError: diffusers is not installed; the folder is missing, damaged, names code or another pipeline, or
            lacks tensors; the class is no image editor; there is no such scheduler.
    """
    path = Path(folder)
    # 1. What can be read without diffusers, whose import takes seconds.
    without = [] if safety_checker else ["safety_checker"]
    parts = read_parts(path, class_name, without)
    diffusers = _import_diffusers()
    pipeline_class = find_editor_class(class_name)
    # 2. The folder's own parts of transformers, so that none is filled with random numbers.
    import torch

    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "local_files_only": True, "use_safetensors": True}
    with refusing(f"{path} holds no {class_name} that can be read"), _quiet_libraries():
        models = {name: _load_part(path / name, part, options) for name, part in _find_models(parts, diffusers).items()}
        if not safety_checker and "safety_checker" in signature(pipeline_class).parameters:
            models |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = pipeline_class.from_pretrained(path, trust_remote_code=False, **models, **options)
        if scheduler:
            pipeline.scheduler = find_scheduler_class(scheduler).from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        match_libraries(pipeline)
        return pipeline.to(device)


def match_libraries(pipeline: Any) -> None:
    """Let GLM-Image's pipeline read source images.

    diffusers 0.42 joins the features of all source images to one tensor, while transformers 5.23 takes a list of them,
    (channels, height, width) each, and reads the channels as so many images. Of one source the joined tensor is that
    image's own, so that it is what belongs into the list.

    Args:
        pipeline: Of any class; others are left as they are.
    """
    if type(pipeline).__name__ != "GlmImagePipeline":
        return
    encoder = pipeline.vision_language_encoder
    tokens_of_list = encoder.get_image_tokens

    def get_image_tokens(features: Any, image_grid_thw: Any = None) -> Any:
        is_one_image = getattr(features, "ndim", 0) == 3
        return tokens_of_list([features] if is_one_image else features, image_grid_thw)

    encoder.get_image_tokens = get_image_tokens


def read_parts(folder: Path, class_name: str, without: Collection[str] = ()) -> dict[str, tuple[str, str]]:
    """Check a folder before anything of diffusers reads it.

    Args:
        folder: A pipeline's folder.
        class_name: The class that its index must name.
        without: Parts that will not be read, and need not be there.

    Returns:
        Name of each other part → library and class.

    Raises:
        InputError: The folder is missing, damaged, names code or another pipeline.
    """
    check_folder_exists(folder)
    if not (folder / INDEX).is_file():
        raise InputError(f"no {INDEX} in {folder}; expected a folder of a {class_name} of diffusers")
    index = read_json(folder / INDEX)
    if index.get("_class_name") != class_name:
        raise InputError(
            f"{folder / INDEX} names the pipeline {index.get('_class_name')!r:.80}, not {class_name}; give pipeline= "
            "with the folder's own class if it edits images"
        )
    parts: dict[str, tuple[str, str]] = {}
    for name, value in index.items():
        # Other values are settings of the pipeline; a part that is left out has no library.
        if name.startswith("_") or not isinstance(value, list) or value == [None, None] or name in without:
            continue
        if len(value) != 2 or not all(isinstance(word, str) for word in value) or not name.isidentifier():
            raise InputError(f"{folder / INDEX}: {name:.60} = {value!r:.80}; expected a library and a class")
        parts[name] = (value[0], value[1])
        _check_part(folder, name, value[0])
    return parts


def _check_part(folder: Path, name: str, library: str) -> None:
    # A library may be a file of the folder, or a package of anybody's.
    if library not in _LIBRARIES and (not library.isidentifier() or (folder / name / f"{library}.py").exists()):
        raise InputError(f"{folder / INDEX}: {name} is of {library!r:.80}, code that is never run")
    # diffusers would read the part from the folder above, whose configurations are not looked at.
    if not (folder / name).is_dir():
        raise InputError(f"{folder / INDEX} names {name}, and there is no folder {folder / name}")
    check_no_code(folder / name)
    # Tokenizers write 10^30 where they bound no length, and no model is built of their settings.
    for file in sorted(set((folder / name).glob("*config.json")) - {folder / name / "tokenizer_config.json"}):
        check_config(read_json(file), file)


def find_editor_class(class_name: str) -> Any:
    """Find a class of diffusers that makes an image of an image and a text.

    Args:
        class_name: Such as ``StableDiffusionInstructPix2PixPipeline``.

    Returns:
        The class.

    Raises:
        InputError: diffusers is not installed, or has no such class that edits images.
    """
    diffusers = _import_diffusers()
    # Imported by this, as diffusers does it late; transformers then says which optional packages are not there.
    with quiet_transformers():
        pipeline_class: Any = getattr(diffusers, class_name, None)
    is_pipeline = isinstance(pipeline_class, type) and issubclass(pipeline_class, diffusers.DiffusionPipeline)
    # Connected pipelines fetch what the folder's README names.
    if not is_pipeline or getattr(pipeline_class, "_load_connected_pipes", False):
        raise InputError(f"pipeline = {class_name!r:.80}: diffusers {diffusers.__version__} has no such pipeline")
    arguments = signature(pipeline_class.__call__).parameters
    if not {"image", "prompt", "generator"} <= set(arguments):
        raise InputError(f"pipeline = {class_name!r:.80} makes no image of an image and a text")
    return pipeline_class


def _import_diffusers() -> Any:
    try:
        # Its import says which optional packages are not there.
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # By name: an optional package, which nothing else of the library needs.
            return import_module("diffusers")
    except ImportError as error:
        raise InputError(f"image editors need diffusers: {INSTALL}") from error


def _find_models(parts: Mapping[str, tuple[str, str]], diffusers: Any) -> dict[str, Any]:
    """Return the classes of those parts that are models of transformers.

    Raises:
        InputError: A part is of another kind than those of :data:`_KINDS`.
    """
    import transformers

    libraries = {"transformers": transformers, "diffusers": diffusers}
    kinds = tuple(getattr(libraries[library], kind) for library, kind in _KINDS)
    classes = {}
    for name, (library, class_name) in parts.items():
        # Such as the safety checker, whose library is the pipeline's own module.
        module = libraries.get(library) or getattr(diffusers.pipelines, library, None)
        if module is None:
            raise InputError(f"{INDEX}: {name} is of {library!r:.80}, code that is never run")
        part_class = getattr(module, _OLD_NAMES.get(class_name, class_name), None)
        if not isinstance(part_class, type) or not issubclass(part_class, kinds):
            raise InputError(
                f"{INDEX}: {name} is {class_name!r:.80} of {library}; expected a model, scheduler, tokenizer or "
                "processor"
            )
        if issubclass(part_class, transformers.PreTrainedModel):
            classes[name] = part_class
    return classes


def _load_part(folder: Path, part_class: Any, options: Mapping[str, Any]) -> Any:
    model, report = part_class.from_pretrained(folder, output_loading_info=True, trust_remote_code=False, **options)
    # transformers would fill them with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{folder}: {len(missing)} tensors are missing: {', '.join(missing[:_NUM_LISTED])}")
    return model


def find_scheduler_class(name: str) -> Any:
    """Find a scheduler of diffusers.

    Args:
        name: Such as ``EulerAncestralDiscreteScheduler``.

    Returns:
        The class.

    Raises:
        InputError: diffusers is not installed, or has no such scheduler.
    """
    diffusers = _import_diffusers()
    scheduler_class = getattr(diffusers, name, None)
    if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, diffusers.SchedulerMixin):
        raise InputError(f"scheduler = {name!r:.80}: diffusers {diffusers.__version__} has no such scheduler")
    return scheduler_class


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Leave out the bars and advice of both libraries: what matters is an error here."""
    logging: Any = import_module("diffusers.utils.logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
