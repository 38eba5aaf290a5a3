"""Convert a PEFT adapter that another program trained (plain PEFT, LLaMA-Factory, ms-swift): check it against its base
and write it with the manifest that every job and server asks for. No value of it is changed.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wm.cli import main as cli_main
from wm.config import Recipe
from wm.errors import InputError
from wm.paths import InputPath, OutputPath
from wm.runs import Run, digest_of, read_run

if TYPE_CHECKING:
    from wm.models.foreign_adapters import Conversion


class ConvertRecipe(Recipe):
    """Which adapter, of which base, for what."""

    adapter: InputPath
    """Folder with adapter_config.json and adapter_model.safetensors."""
    base: InputPath
    """Model folder of the full model that it was trained on."""
    task: Literal["idm", "fdm"]
    """What it was trained for: idm = from two images to the action, fdm = from image and action to the next image."""
    out: OutputPath
    """Folder for out/model and out/run.json; give out wherever a model folder is expected."""


def run(recipe: ConvertRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Check the adapter and write ``out/model``.

    Args:
        recipe: Adapter, base and task.
        dry_run: Check everything and write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: A folder is missing, or the adapter does not belong to the base.
    """
    for key in ("adapter", "base"):
        if not Path(getattr(recipe, key)).is_dir():
            raise InputError(f"{key} = {getattr(recipe, key)!r}: no such folder")
    inputs = {key: digest_of(getattr(recipe, key)) for key in ("adapter", "base")}
    stage = Run(recipe.out, "convert", recipe, inputs)
    if stage.is_complete():
        print(f"convert: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    from wm.models.checkpoints import written_aside
    from wm.models.foreign_adapters import convert_adapter

    model = Path(recipe.out) / "model"
    # Written elsewhere first: an adapter that is refused, and a dry run, leave no run behind.
    with tempfile.TemporaryDirectory() as folder:
        with stage.timed("convert_s"):
            # Every check is in here; nothing of it is in out yet.
            conversion = convert_adapter(recipe.adapter, recipe.base, Path(folder), task=recipe.task, home=model)
        if dry_run:
            print(f"convert: would write {model}: {_summary(conversion)}")
            return {}
        stage.start()
        with written_aside(model) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
    counts = {"tensors": conversion.tensors, "renamed": conversion.renamed, "unused": conversion.unused}
    record = stage.finish(counts, manifest=conversion.manifest.model_dump(mode="json"))
    print(f"convert: {recipe.adapter} → {model}: {_summary(conversion)}")
    return record


def _summary(conversion: "Conversion") -> str:
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
