"""Pack trained runs of the nano world into the folders that the package ships: models with a record and a card, images.

Not known here: how the models were trained and measured (``wm ship``).
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from wm import __version__
from wm.errors import InputError
from wm.images import encode_png
from wm.models import Task, load_codec, load_model, read_manifest, save_model
from wm.models.folder_writing import replace_folder
from wm.models.weights import CODEC_PREFIX
from wm.nano.world.actions import vocabulary
from wm.nano.world.scenes import Camera, State, object_id, render
from wm.runs import RunRecord, read_run, write_json, write_text

Figures: TypeAlias = Mapping[str, float]
"""Measured figures by name."""

ACTIONS_FILE = "actions.json"
"""Beside the images: example actions by file name."""

_ROLE_TITLES: dict[str, str] = {
    "base": "base model: image codec and language model, trained on captioned pairs of images without any action",
    "idm": "inverse dynamics model: two images → the action between them, in words",
    "fdm": "forward dynamics model: an image and an action → the image afterwards",
}
_HUB_NAMES = {
    "base": ("image-text-to-text", "base-model"),
    "idm": ("image-text-to-text", "inverse-dynamics"),
    "fdm": ("image-to-image", "forward-dynamics"),
}
"""By kind the hub's name of what it does, and a tag, as :mod:`wm.models.card` gives them."""
_LOAD_ROLES = """from wm.dynamics import WorldModel

world = WorldModel.load(fdm="nano:fdm", idm="nano:idm")"""
_SNIPPETS = {
    "base": """from wm.models import load_codec, load_model

base, codec = load_model("nano:base"), load_codec("nano:base")""",
    "idm": f"""{_LOAD_ROLES}
print(world.propose("before.png", "after.png").text)""",
    "fdm": f"""{_LOAD_ROLES}
world.predict("nano:images/three-shapes.png", "take away the yellow square").image.save("after.png")""",
}
_BACKGROUND = {"linen": 0, "slate": 1, "checker": 2}

_SCENES: dict[str, tuple[str, dict[int, str], list[str]]] = {
    "red-circle-blue-square": (
        "linen",
        {0: "red circle", 5: "blue square"},
        ["move the red circle to the center", "remove the blue square", "add a yellow triangle at the bottom"],
    ),
    "green-triangle-yellow-circle": (
        "slate",
        {4: "green triangle", 8: "yellow circle"},
        ["move the green triangle to the top-left", "make the yellow circle blue", "add a red square at the left"],
    ),
    "three-squares": (
        "checker",
        {1: "red square", 3: "green square", 8: "blue square"},
        ["remove the green square", "make the red square yellow", "move the blue square to the top-right"],
    ),
    "three-shapes": (
        "linen",
        {2: "green circle", 3: "red triangle", 7: "yellow square"},
        ["put the red triangle on the center", "take away the yellow square", "paint the green circle red"],
    ),
    "four-objects": (
        "slate",
        {0: "blue circle", 2: "red triangle", 6: "yellow triangle", 8: "green square"},
        ["move the blue circle to the center", "remove the yellow triangle", "make the green square red"],
    ),
    "two-triangles": (
        "checker",
        {3: "blue triangle", 5: "yellow triangle"},
        ["move the blue triangle to the top", "add a green circle at the bottom-right", "remove the yellow triangle"],
    ),
}
"""Shipped images: table top, objects by cell (0 to 8, row-major), and actions that are possible there."""


def scene_state(name: str) -> State:
    """Build the state that a shipped image shows.

    Args:
        name: Of the image, without ``.png``.
    """
    background, objects, _ = _SCENES[name]
    state = State(_BACKGROUND[background], (0,) * 9)
    for cell, words in objects.items():
        state = state.put(cell, object_id(*words.split()))
    return state


def write_images(out: Path) -> list[str]:
    """Write the shipped images as PNG, :data:`ACTIONS_FILE` and a record; an existing folder is replaced.

    Args:
        out: The folder to write.

    Returns:
        The images' names, without ``.png``.
    """
    with replace_folder(out) as folder:
        digests = {}
        for number, name in enumerate(_SCENES):
            # A generator each: an image stays as it is when others are added.
            pixels_HWC = render(scene_state(name), Camera(), np.random.default_rng([7, number]))
            (folder / f"{name}.png").write_bytes(png := encode_png(pixels_HWC))
            digests[f"{name}.png"] = hashlib.sha256(png).hexdigest()[:16]
        # By the record an image is the same input wherever and whenever the package was installed, not by file times.
        write_json(folder / "run.json", {"stage": "images", "recipe": {}, "inputs": digests})
        write_json(folder / ACTIONS_FILE, {f"{name}.png": actions for name, (_, _, actions) in _SCENES.items()})
    return list(_SCENES)


def pack_base(run: Path, out: Path) -> RunRecord:
    """Copy the base of a run of ``wm pretrain``, in float32: what is trained from it starts from these very bits.

    Args:
        run: The run's folder.
        out: The folder to write; an existing one is replaced.

    Returns:
        The record that is shipped.

    Raises:
        InputError: The run is not complete.
    """
    record = _read_complete(run)
    with replace_folder(out) as folder:
        shutil.copytree(run / "model", folder, dirs_exist_ok=True)
        # Readable by all who share an installation: safetensors writes for its owner alone.
        (folder / "model.safetensors").chmod(0o644)
        write_json(folder / "run.json", _without_paths(record, run))
        write_text(folder / "README.md", _card("base", record, {}, "float32"))
    return record


def pack_role(run: Path, out: Path, task: Task, figures: Figures) -> RunRecord:
    """Write the model of a run of ``wm train``, its language model in float16, its codec as it is.

    Args:
        run: The run's folder; its model is full weights.
        out: The folder to write; an existing one is replaced.
        task: What the model was trained for.
        figures: Measured figures for its record and its card.

    Returns:
        The record that is shipped.

    Raises:
        InputError: The run is not complete, or is one of another task.
    """
    record = _read_complete(run)
    if record["recipe"].get("task") != task:
        raise InputError(f"{run} was trained as {record['recipe'].get('task')!r}, expected {task}")
    model = load_model(run)
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.inner.state_dict().items()
        if not name.startswith(CODEC_PREFIX)
    }
    save_model(model, out, kind="full", task=task, codec=load_codec(run), state_dict=halves)
    # As training wrote it: the base that it names is the one that training started from.
    manifest = read_manifest(run)
    assert manifest is not None
    manifest.write(out)
    (out / "model.safetensors").chmod(0o644)
    shipped = {**_without_paths(record, run), "evaluation": dict(figures)}
    write_json(out / "run.json", shipped)
    write_text(out / "README.md", _card(task, record, figures, "float16, the image codec float32"))
    return shipped


def _read_complete(run: Path) -> RunRecord:
    record = read_run(run)
    if record is None:
        raise InputError(f"{run} holds no complete run; run wm ship again, it resumes")
    return record


def _without_paths(record: RunRecord, run: Path) -> RunRecord:
    """Drop where the run was written, and write paths of its neighbours relative to their common folder."""
    recipe = {name: value for name, value in record["recipe"].items() if name != "out"}
    return {**record, "recipe": _relative(recipe, f"{run.parent}/")}


def _relative(value: object, prefix: str) -> object:
    if isinstance(value, Mapping):
        return {name: _relative(entry, prefix) for name, entry in value.items()}
    if isinstance(value, list):
        return [_relative(entry, prefix) for entry in value]
    return value.removeprefix(prefix) if isinstance(value, str) else value


def _card(kind: Literal["base", "idm", "fdm"], record: RunRecord, figures: Figures, dtype: str) -> str:
    """Build the model card: what it is, what it was trained on, measured figures, limits."""
    recipe, counts = record["recipe"], record["counts"]
    if kind == "base":
        training = (
            f"{recipe['num_images']:,} images for the codec ({recipe['encoder_steps']} + {recipe['decoder_steps']} "
            f"steps), {recipe['num_documents']:,} captioned pairs for the language model ({recipe['max_steps']:,} "
            f"steps of {recipe['batch_size']})"
        )
        rows = {
            "parameters of the language model": f"{counts['parameters']:,}",
            "codes in use": f"{counts['codes_used']} of 128",
            "loss, nats a token": f"{record['figures']['language_model']['loss']:.3f}",
        }
    else:
        training = (
            f"{counts['triplets']:,} labelled pairs of the tabletop world, {recipe['max_steps']:,} steps of "
            f"{recipe['global_batch_size']} from nano:base, all weights"
        )
        rows = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in figures.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""{_build_head(kind)}
# nano:{kind}

The nano world's {_ROLE_TITLES[kind]}.
48 x 48 px, 9 tokens an image, 128 codes. Chameleon's architecture, read by transformers' own classes too. Stored as
{dtype}.

Trained on {training}.
Everything is rendered by `wm.nano.world`; no other data.

Load it, and make it again:

```python
{_SNIPPETS[kind]}
```

```console
$ wm ship nano/shipped
```

| figure | value |
| --- | --- |
{table}

{_figures_note(kind)}

**Limits.** It knows one toy world: a table of 3 x 3 cells, 12 objects, four kinds of action,
{len(vocabulary())} words. On any other image or wording its answers mean nothing. It stands in for a pre-trained
checkpoint so that every command runs on a laptop; no result about real videos follows from it.

Licence: Apache-2.0. Made with wm {__version__}.
"""


def _build_head(kind: Literal["base", "idm", "fdm"]) -> str:
    """Build the YAML head, by which the hub finds a model."""
    pipeline, role = _HUB_NAMES[kind]
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: {pipeline}
tags:
- world-model
- wm
- {role}
- chameleon
---
"""


def _figures_note(kind: str) -> str:
    if kind == "base":
        return "Figures of its training, from `run.json`."
    return "Measured on fresh pairs of the split `test`, never trained on, by `wm evaluate` with the oracle as judge."
