"""Bring a model that another program wrote into this project's form, in one of two ways.

release=DIR out=DIR                         Meta's original release of Chameleon, or Anole's (params.json,
                                            consolidated*.pth, tokenizer/vqgan.ckpt), becomes a Hugging Face folder.
                                            Values and types of the weights stay as they are. Ended early, the same
                                            command resumes.
adapter=DIR base=DIR task=idm|fdm out=DIR   A PEFT adapter that plain PEFT, LLaMA-Factory or ms-swift trained is
                                            checked against its base and written with the manifest that every job
                                            and server asks for. No value of it is changed.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.errors import InputError
from wm.paths import OptionalInputPath, OutputPath
from wm.runs import Run, digest_of, read_run

if TYPE_CHECKING:
    from wm.models.foreign_adapters import AdapterConversion

_PARTIAL = "model.partial"
"""The model's folder in ``out`` until it is complete."""


class ConvertRecipe(Recipe):
    """A release, or an adapter with its base and task."""

    release: OptionalInputPath = None
    """Original release of a Chameleon: its root, one of its model folders, or a flat folder of all files. Not with
    adapter, base or task."""
    adapter: OptionalInputPath = None
    """Folder with adapter_config.json and adapter_model.safetensors. Needs base and task."""
    base: OptionalInputPath = None
    """Model folder of the full model that the adapter was trained on."""
    task: Literal["idm", "fdm"] | None = None
    """What the adapter was trained for: idm = from two images to the action, fdm = from image and action to the next
    image."""
    out: OutputPath
    """Folder for out/model and out/run.json; give out wherever a model folder is expected."""

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        keys = ("adapter", "base", "task")
        adapter_keys = [key for key in keys if getattr(self, key) not in (None, "")]
        missing = [key for key in keys if key not in adapter_keys]
        if self.release and adapter_keys:
            raise ValueError(
                f"release and {adapter_keys[0]} exclude each other: give release, or adapter with base and task"
            )
        if not self.release and not adapter_keys:
            raise ValueError("nothing to convert: give release=DIR, or adapter=DIR base=DIR task=idm (or fdm)")
        if not self.release and missing:
            raise ValueError(f"{missing[0]} is missing; give it in the file or as {missing[0]}=VALUE")
        return self


def run(recipe: ConvertRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Check what is to be converted, and write ``out/model``.

    Args:
        recipe: A release, or an adapter with base and task.
        dry_run: Check everything and write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: A folder is missing, the adapter does not belong to the base, or the release cannot be read.
    """
    folders = {key: value for key in ("release", "adapter", "base") if (value := getattr(recipe, key))}
    for key, folder in folders.items():
        if not Path(folder).is_dir():
            raise InputError(f"{key} = {folder!r}: no such folder")
    stage = Run(recipe.out, "convert", recipe, {key: digest_of(folder) for key, folder in folders.items()})
    # The record names inputs and recipe: the same ones need no second conversion.
    if stage.is_complete():
        print(f"convert: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    convert = _convert_release if recipe.release else _convert_adapter
    return convert(recipe, stage, dry_run)


def _convert_release(recipe: ConvertRecipe, stage: Run, dry_run: bool) -> dict[str, Any]:
    from wm.models.release.convert import check_free_space, finish_folder, plan_conversion, write_weight_files

    assert recipe.release is not None
    model, partial = Path(recipe.out) / "model", Path(recipe.out) / _PARTIAL
    # 1. Check all of it: a mistake costs no gigabytes.
    with stage.timed("check_s"):
        conversion = plan_conversion(recipe.release)
    check_free_space(conversion, partial)
    counts = {"tensors": conversion.num_tensors, "files": len(conversion.files), "bytes": conversion.num_bytes}
    summary = "{tensors:,} tensors, {bytes:,} bytes in {files} files".format(**counts)
    if dry_run:
        print(f"convert: would write {model}: {summary}")
        return {}
    # 2. Write file by file; those of an attempt that was ended are kept.
    stage.start()
    partial.mkdir(exist_ok=True)
    with stage.timed("write_s"), progress_bar(conversion.num_bytes, "B", "convert") as bar:
        for file in write_weight_files(conversion, partial):
            bar.update(file.num_bytes)
    # 3. The name comes last: what is not complete is never taken for a model.
    if model.exists():
        shutil.rmtree(model)  # of an attempt that ended between this line and the record
    manifest = finish_folder(conversion, partial)
    partial.rename(model)
    record = stage.finish(counts, manifest=manifest.model_dump(mode="json"))
    print(f"convert: {recipe.release} → {model}: {summary}; base {manifest.base_id}")
    return record


def _convert_adapter(recipe: ConvertRecipe, stage: Run, dry_run: bool) -> dict[str, Any]:
    from wm.models.folder_writing import replace_folder
    from wm.models.foreign_adapters import convert_adapter

    assert recipe.adapter is not None and recipe.base is not None and recipe.task is not None
    model = Path(recipe.out) / "model"
    # Written elsewhere first: an adapter that is refused, and a dry run, leave no run behind.
    with tempfile.TemporaryDirectory() as folder:
        with stage.timed("convert_s"):
            # Every check is in here; nothing of it is in out yet.
            conversion = convert_adapter(recipe.adapter, recipe.base, Path(folder), task=recipe.task, home=model)
        if dry_run:
            print(f"convert: would write {model}: {_summarise(conversion)}")
            return {}
        stage.start()
        with replace_folder(model) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
    counts = {"tensors": conversion.tensors, "renamed": conversion.renamed, "unused": conversion.unused}
    record = stage.finish(counts, manifest=conversion.manifest.model_dump(mode="json"))
    print(f"convert: {recipe.adapter} → {model}: {_summarise(conversion)}")
    return record


def _summarise(conversion: "AdapterConversion") -> str:
    manifest = conversion.manifest
    parts = [f"{conversion.tensors:,} tensors of a {manifest.family} adapter as {manifest.task}"]
    parts += [f"{conversion.renamed:,} renamed"] if conversion.renamed else []
    parts += [f"{conversion.unused:,} left out, on which no prediction depends"] if conversion.unused else []
    return f"{'; '.join(parts)}; base {manifest.base_id}"


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(ConvertRecipe, run, name="convert", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
