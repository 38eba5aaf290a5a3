"""Write the README.md of a model folder: a Hugging Face model card.

It says what the model is, how to load it, what it was trained on under which licences, by which recipe, how good it is
on how many triplets, how it fails, and what is not known. It names no path of the machine. Not known here: how any of
it was measured.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from wm import __version__
from wm.cards import (
    CARD,
    code_block,
    distinct_licenses,
    escape_markdown,
    is_repo_id,
    license_lines,
    list_forbidden,
    quote_yaml,
)
from wm.models.base_facts import BaseFacts
from wm.models.folder_checks import read_json
from wm.models.manifest import Manifest, is_adapter, read_manifest
from wm.runs import write_text

MANY_SOURCES = 50
"""Rows of the table of data at most."""
_ROLES = {
    "idm": "inverse dynamics model: two images → the action between them, in words",
    "fdm": "forward dynamics model: an image and an action in words → the image afterwards",
    None: "base model: text and image tokens in one sequence",
}
_PIXEL_BASE = "base model that reads pixels: images and text → text"
_NOT_KNOWN = "not known"
_PIPELINES = {"idm": "image-text-to-text", "fdm": "image-to-image", None: "image-text-to-text"}
_RUN_KEYS = {"out", "resources", "logging", "checkpoint"}
"""Keys of a recipe that say how a run went, not what the model is."""


@dataclass(frozen=True)
class DataSource:
    """Rows of training data that share origin and licence."""

    dataset: str
    license: str  # empty: not given
    origin: str  # who wrote the actions: human, idm or fdm
    rows: int


@dataclass(frozen=True)
class CardFigure:
    """A measured figure."""

    name: str
    value: str
    count: int | None  # triplets that it is of; None: not known
    origin: str  # what measured it


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside what the model's folder holds."""

    title: str
    base: BaseFacts | None = None  # None: trained from nothing
    sources: Sequence[DataSource] | None = None  # None: not known
    data_note: str = ""  # a sentence on the data, or why they are not known
    licenses: Sequence[str] = ()  # of the model itself, where its owner has chosen one
    recipe: Mapping[str, object] | None = None
    figures: Sequence[CardFigure] = ()
    failures: Sequence[str] = ()
    unknown: Sequence[str] = ()  # sentences on what is not known
    extra: Sequence[str] = field(default_factory=tuple)  # further lines of Markdown, trusted


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write ``README.md`` into a model folder; one that is there is replaced.

    Args:
        folder: Holds ``wm_model.json``.
        facts: What it does not say itself.

    Returns:
        The file.
    """
    manifest = read_manifest(folder) or _describe_release(folder)
    path = folder / CARD
    write_text(path, "\n".join([*_head(manifest, facts), "", *_body(manifest, facts)]).rstrip() + "\n")
    return path


def _describe_release(folder: Path) -> Manifest:
    """Describe what a folder without a manifest holds, as far as its files say it."""
    from wm.models.kinds import kind_of

    # Nothing is known of the base of another program's adapter.
    if is_adapter(folder):
        return Manifest(family="unknown", kind="adapter", base_id=_NOT_KNOWN, codec_id=_NOT_KNOWN)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    codec_id = "" if kind_of(folder) == "pixels" else _NOT_KNOWN
    return Manifest(family=str(config.get("model_type", "unknown")), kind="full", base_id=_NOT_KNOWN, codec_id=codec_id)


def list_licenses(facts: CardFacts) -> list[str]:
    """List the licences that apply to a model: the one chosen for it, its base's and those of its data."""
    names = [*facts.licenses, *(facts.base.licenses if facts.base else ()), *(s.license for s in facts.sources or ())]
    return distinct_licenses(names)


def _head(manifest: Manifest, facts: CardFacts) -> list[str]:
    """Build the YAML head."""
    # Only repositories of the hub may stand here: it links them.
    lines = ["---"]
    if facts.base is not None and is_repo_id(facts.base.repo_id):
        lines += [f"base_model: {quote_yaml(facts.base.repo_id)}"]
        lines += ["base_model_relation: adapter" if manifest.kind == "adapter" else "base_model_relation: finetune"]
    lines += [f"library_name: {'peft' if manifest.kind == 'adapter' else 'transformers'}"]
    lines += license_lines(list_licenses(facts))
    # The hub links these names: others would be no data set.
    names = [source.dataset for source in facts.sources or () if is_repo_id(source.dataset)]
    if names:
        lines += ["datasets:", *(f"- {quote_yaml(name)}" for name in dict.fromkeys(names))]
    lines += [f"pipeline_tag: {_PIPELINES[manifest.task]}", "tags:", "- world-model", "- wm"]
    role = {"idm": "inverse-dynamics", "fdm": "forward-dynamics", None: "base-model"}[manifest.task]
    lines += [f"- {role}", f"- {quote_yaml(manifest.family)}", *["- lora"] * (manifest.kind == "adapter")]
    return [*lines, "---"]


def _body(manifest: Manifest, facts: CardFacts) -> list[str]:
    lines = [f"# {escape_markdown(facts.title)}", ""]
    # 1. What a reader must know before anything else.
    lines += _restriction_lines(list_licenses(facts))
    lines += [f"**{line}**\n" for line in map(escape_sentence, facts.failures)]
    # 2. What it is.
    article = "An" if manifest.task == "idm" else "A"
    role = _PIXEL_BASE if manifest.task is None and manifest.reads_pixels else _ROLES[manifest.task]
    # Of a release without a manifest nothing but the card is ours.
    verb = "Described by" if manifest.base_id == _NOT_KNOWN else "Made with"
    lines += [f"{article} {role}. {verb} `wm` {__version__}.", ""]
    lines += _identity_lines(manifest, facts)
    lines += ["", "## Load it", "", *code_block(_wm_snippet(manifest, facts), "python"), ""]
    if manifest.kind == "adapter":
        lines += ["With PEFT alone:", "", *code_block(_peft_snippet(manifest, facts), "python"), ""]
    # 3. Where it comes from.
    lines += ["## Data and licences", "", *_data_lines(facts), ""]
    lines += ["## Recipe", "", *_recipe_lines(manifest, facts), ""]
    # 4. How good it is.
    lines += ["## Figures", "", *_figure_lines(facts.figures), ""]
    lines += ["## Known failures", ""]
    none = "None was seen in the figures above." if facts.figures else "Not known: the model was not evaluated."
    lines += [f"- {escape_sentence(text)}" for text in facts.failures] or [none]
    if facts.unknown:
        lines += ["", "## Not known", "", *(f"- {escape_sentence(text)}" for text in facts.unknown)]
    return [*lines, *(["", *facts.extra] if facts.extra else [])]


def _restriction_lines(licenses: Sequence[str]) -> list[str]:
    """Name every licence that forbids something."""
    lines = []
    for name in licenses:
        forbidden = list_forbidden(name)
        if forbidden:
            lines += [f"> **Licence: {escape_markdown(name)} forbids {' and '.join(forbidden)}.**", ">"]
    return [*lines[:-1], ""] if lines else []


def _identity_lines(manifest: Manifest, facts: CardFacts) -> list[str]:
    # A table without a header: names and values.
    rows = {"family": manifest.family, "weights": "a LoRA adapter" if manifest.kind == "adapter" else "complete"}
    if facts.base is not None:
        is_named = facts.base.name != manifest.base_id and manifest.base_id
        rows["base"] = f"{facts.base.name} ({manifest.base_id})" if is_named else facts.base.name
    if manifest.codec_id != _NOT_KNOWN:
        rows["images"] = "pixels" if manifest.reads_pixels else f"codes of codec {manifest.codec_id}"
    if manifest.action_slot_tokens:
        rows["action slot"] = f"{manifest.action_slot_tokens} tokens"
    lines = ["| | |", "| --- | --- |"]
    return lines + [f"| {name} | {escape_markdown(value)} |" for name, value in rows.items()]


def _wm_snippet(manifest: Manifest, facts: CardFacts) -> str:
    # An adapter needs its base, wherever its user has it.
    base = ', base="BASE"' if manifest.kind == "adapter" else ""
    lines = ["from huggingface_hub import snapshot_download"]
    folder = 'model = snapshot_download("OWNER/NAME")  # or the path of this folder'
    if manifest.task == "fdm":
        lines += ["from wm.dynamics import WorldModel", "", folder]
        lines += [f'world = WorldModel.load(fdm=model, idm="INVERSE-MODEL"{base})']
        lines += ['prediction = world.predict("before.png", "put the cup on the plate", num_candidates=8)']
        lines += ['prediction.image.save("after.png")']
    elif manifest.task == "idm" and not manifest.reads_pixels:
        lines += ["from wm.dynamics import WorldModel", "", folder]
        lines += [f'world = WorldModel.load(fdm="FORWARD-MODEL", idm=model{base})']
        lines += ['print(world.propose("before.png", "after.png").text)']
    elif manifest.reads_pixels:
        lines += ["from wm.dynamics.loading import load_inverse_model", "", folder]
        lines += [f"idm = load_inverse_model(model{base})"]
    else:
        lines += ["from wm.models import load_codec, load_model", "", folder]
        lines += ["base, codec = load_model(model), load_codec(model)"]
    return "\n".join(lines)


def _peft_snippet(manifest: Manifest, facts: CardFacts) -> str:
    auto_class = "AutoModelForImageTextToText"
    name = (facts.base.class_name if facts.base else "") or auto_class
    repo_id = facts.base.repo_id if facts.base and is_repo_id(facts.base.repo_id) else "BASE"
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {name}",
            "",
            f'base = {name}.from_pretrained("{repo_id}")',
            'model = PeftModel.from_pretrained(base, "OWNER/NAME")',
        ]
    )


def _data_lines(facts: CardFacts) -> list[str]:
    lines = []
    if facts.sources:
        lines += ["| data set | actions by | rows | licence |", "| --- | --- | ---: | --- |"]
        for source in list(facts.sources)[:MANY_SOURCES]:
            cells = [source.dataset or "(no name)", source.origin or "not given"]
            license = source.license.strip() or "not given"
            lines.append(
                f"| {' | '.join(map(escape_markdown, cells))} | {source.rows:,} | {escape_markdown(license)} |"
            )
        rest = list(facts.sources)[MANY_SOURCES:]
        if rest:
            lines += ["", f"And {len(rest):,} more kinds of rows, {sum(source.rows for source in rest):,} rows."]
        lines += [""]
    if facts.data_note:
        lines += [escape_sentence(facts.data_note), ""]
    if facts.base is not None:
        names = ", ".join(escape_markdown(name) for name in facts.base.licenses) or "not known"
        lines += [f"Licence of the base: {names} ({escape_sentence(facts.base.note)}). A fine-tuned model is a derived"]
        lines += ["work: its base's licence applies to it too."]
    elif not facts.licenses:
        lines += ["The licence of the weights is not given."]
    return lines


def _recipe_lines(manifest: Manifest, facts: CardFacts) -> list[str]:
    if facts.recipe is None:
        digest = f" Its digest is `{manifest.recipe_digest}`." if manifest.recipe_digest else ""
        return [f"The recipe is not known: there is no `run.json` beside the model.{digest}"]
    keys = {name: strip_paths(value) for name, value in facts.recipe.items() if name not in _RUN_KEYS}
    digest = f"Digest `{manifest.recipe_digest}`; names" if manifest.recipe_digest else "Names"
    lines = [f"{digest} in place of paths, without output, resources, checkpoints and logging.", ""]
    return [*lines, *code_block(json.dumps(keys, indent=1), "json")]


def _figure_lines(figures: Sequence[CardFigure]) -> list[str]:
    # Said, so that nobody looks for them elsewhere.
    if not figures:
        return ["None: the model was not evaluated. `wm evaluate` measures it, `wm card` adds its figures here."]
    lines = ["| figure | value | n | by |", "| --- | ---: | ---: | --- |"]
    for figure in figures:
        count = "not known" if figure.count is None else f"{figure.count:,}"
        cells = [figure.name, figure.value, count, figure.origin]
        lines.append(f"| {' | '.join(map(escape_markdown, cells))} |")
    return lines


def strip_paths(value: object) -> object:
    """Replace every path in the values of a recipe by its last name: a card says nothing of the machine.

    Args:
        value: A value of a recipe, as JSON has it.
    """
    if isinstance(value, Mapping):
        return {str(name): strip_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [strip_paths(entry) for entry in value]
    # Names of the package and regular expressions are no paths.
    if isinstance(value, str) and re.match(r"([a-z0-9]+:/)?/|~|\.{1,2}/|[A-Za-z]:\\|[\w.-]+/", value):
        return PurePosixPath(value.replace("\\", "/")).name
    return value


def escape_sentence(text: str) -> str:
    """Escape a sentence, which may hold names of others; longer than a cell's text."""
    return escape_markdown(text, longest=2000)
