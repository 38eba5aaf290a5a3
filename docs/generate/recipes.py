"""Write the recipe reference: one page a command, from the classes that the command itself reads."""

import re
from collections.abc import Container, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from docs.generate.commands import RECIPES, Command, list_commands, list_recipe_files
from jobs.__main__ import GROUPS
from wm.recipe_help import KeyHelp, list_key_help, list_renames

GUIDES = {
    "annotate": "annotate",
    "ask": "ask",
    "benchmark": "benchmarks",
    "bootstrap": "quickstart",
    "card": "share",
    "collect": "evaluate",
    "compare": "evaluate",
    "contradict": "evaluate",
    "convert": "checkpoints",
    "edit": "evaluate",
    "encode": "annotate",
    "evaluate": "evaluate",
    "export": "data-format",
    "gate": "evaluate",
    "imagine": "train",
    "ingest": "train",
    "judge": "evaluate",
    "look": "look",
    "paper": "paper",
    "plan": "annotate",
    "predict": "predict",
    "pretrain": "quickstart",
    "push": "share",
    "relabel": "evaluate",
    "report": "evaluate",
    "score": "evaluate",
    "select": "annotate",
    "serve": "serve",
    "study": "study",
    "tabletop": "quickstart",
    "ship": "quickstart",
    "train": "train",
    "view": "annotate",
}
"""The page that explains when a command is used."""

EXAMPLES = {
    "annotate": "wm annotate videos=VIDEOS idm=runs/c-idm/model out=data/annotated",
    "ask": "wm ask benchmark=spatialmqa data=SPATIALMQA models.c-fdm.path=runs/c-fdm/model"
    " models.c-fdm.label=C-FDM out=runs/ask",
    "benchmark annotate": "wm benchmark annotate out=annotate.json",
    "benchmark demo": "wm benchmark demo out=demo.json",
    "benchmark gpu": "wm benchmark gpu out=gpu.json",
    "benchmark keyframes": "wm benchmark keyframes out=keyframes.json",
    "benchmark pixels": "wm benchmark pixels out=pixels.json",
    "benchmark probe": "wm benchmark probe videos=VIDEOS idm=IDM minutes=10 out=probe.json",
    "benchmark compare": "wm benchmark compare new='[\"sampling.json\"]'",
    "benchmark sampling": "wm benchmark sampling out=sampling.json",
    "benchmark scale": "wm benchmark scale out=scale.json",
    "benchmark score": "wm benchmark score out=score.json",
    "benchmark serve": "wm benchmark serve out=serve.json",
    "benchmark training": "wm benchmark training out=training.json",
    "bootstrap": "wm bootstrap nano/demo",
    "card": "wm card model=runs/c-fdm/model evaluation=runs/evaluate",
    "collect": "wm collect folder=OUTPUTS system=GoT triplets=BENCH pattern='{task}/{row}.png' out=data/got",
    "compare": "wm compare runs/evaluate:C-FDM runs/evaluate:C-FT",
    "contradict": "wm contradict triplets=data/bench base_url=http://127.0.0.1:8001/v1 out=data/contradictions",
    "convert": "wm convert release=DIR out=MODEL",
    "edit": "wm edit model=models/instruct-pix2pix triplets=BENCH out=data/pix2pix resources.device=cuda",
    "encode": "wm encode triplets=data/annotated codec=MODEL out=data/encoded",
    "evaluate": "wm evaluate triplets=data/test/triplets idm=verifier"
    ' models.verifier=\'{ role = "idm", path = "runs/c-idm/model", label = "C-IDM" }\''
    ' models.fdm=\'{ role = "fdm", path = "runs/c-fdm/model", label = "C-FDM" }\''
    " out=runs/evaluate",
    "export": "wm export triplets=data/annotated/triplets format=webdataset out=data/shards",
    "gate": "wm gate role=idm champion=runs/first/model challenger=runs/second/model triplets=data/valid out=runs/gate",
    "imagine": "wm imagine fdm=runs/c-fdm/model idm=runs/c-idm/model sources=data/train actions=data/train"
    " out=data/imagined",
    "ingest": "wm ingest data/aurora-bench root=AURORA codec=MODEL out=data/bench",
    "judge": "wm judge predictions='[\"runs/evaluate\"]' triplets=BENCH max_cost=20 out=runs/judge",
    "look": "wm look VIDEOS",
    "paper": 'wm paper results=\'["runs/evaluate", "runs/score", "runs/judge"]\' out=runs/paper',
    "plan": 'wm plan plan/cluster rates=\'["keyframes.json", "annotate.json"]\' videos=VIDEOS',
    "predict": "wm predict fdm=runs/c-fdm/model idm=runs/c-idm/model image=table.png"
    " actions='[\"put the cup on the left\"]' search.num_candidates=16 out=prediction",
    "pretrain": "wm pretrain out=runs/base",
    "push": "wm push folder=runs/c-fdm/model repo=me/c-fdm --dry-run",
    "relabel": "wm relabel triplets=runs/demo/annotated selection=runs/demo/selected labels=truth out=runs/controls",
    "report": "wm report run=runs/demo out=runs/demo/report",
    "score": 'wm score predictions=\'["runs/evaluate", "data/got"]\' triplets=BENCH out=runs/score',
    "select": "wm select triplets=data/annotated/triplets k=7000 out=data/selected",
    "serve": "wm serve fdm=runs/c-fdm/model idm=runs/c-idm/model",
    "ship": "wm ship nano/shipped",
    "study export": "wm study export study=STUDY out=votes.csv",
    "study import": "wm study import study=STUDY file=results.json",
    "study make": "wm study make paper/study-aurora-bench",
    "study report": "wm study report study=STUDY reference=C-FDM out=runs/study-report",
    "study serve": "wm study serve study=STUDY",
    "study simulate": 'wm study simulate study=STUDY means=\'{ "C-FT" = -0.1, "C-FDM" = 0.1 }\' out=VOTES',
    "tabletop": "wm tabletop out=runs/world",
    "train": "wm train paper/c-idm base=MODEL out=runs/c-idm",
    "view": "wm view triplets=data/annotated out=data/view",
}
"""One complete command each; a test holds every one against its recipe."""


@cache
def build_recipe_pages() -> dict[str, str]:
    """Build the Markdown of every page below ``recipes``, by its path there."""
    return {f"{command.page}.md": _build_page(command) for command in list_commands()}


def build_recipe_menu() -> list[dict[str, object]]:
    """Build the menu of the pages, in the groups of ``wm --help``."""
    pages = [(command.words, f"recipes/{command.page}.md") for command in list_commands()]
    return [
        {title.capitalize(): [{f"wm {words}": page} for words, page in pages if words.split()[0] in names]}
        for title, names in GROUPS.items()
    ]


def list_summaries() -> str:
    """Build the tables of all commands with a line each, for the first page of the reference."""
    lines: list[str] = []
    for title, names in GROUPS.items():
        lines += ["", f"## {title.capitalize()}", "", "| command | |", "| --- | --- |"]
        for command in list_commands():
            name = command.words.split()[0]
            if name in names:
                text = names[name] if name == command.words else _first_sentence(command.about)
                lines.append(f"| [`wm {command.words}`]({command.page}.md) | {text} |")
    return "\n".join(lines)


def _build_page(command: Command) -> str:
    summary = next((names[command.words] for names in GROUPS.values() if command.words in names), "")
    summary = summary or _first_sentence(command.about)
    guide = GUIDES.get(command.words.split()[0])
    lines = [f"# wm {command.words}", "", f"{summary[0].upper()}{summary[1:].rstrip('.')}."]
    if guide is not None:
        lines[-1] += f" Explained in [its guide](../{guide}.md)."
    example = EXAMPLES.get(command.words, f"wm {command.words} --help")
    lines += ["", "```sh", wrap_command(example), "```", "", *_to_markdown(command.about)]
    if files := list_recipe_files(command.recipe):
        lines += ["", "## Recipes in the package", "", "| recipe | |", "| --- | --- |"]
        lines += [f"| `{_recipe_name(file)}` | {_first_comment(file)} |" for file in files]
    keys = list(list_key_help(command.recipe))
    lines += ["", "## Keys", "", *_build_tables(keys)]
    paths = {key.path for key in keys}
    if renames := list_renames(command.recipe):
        lines += [
            "", "## Names of earlier versions", "",
            "A recipe that uses an old name is refused with the new one; a finished run is read under it.",
            "", "| before | now |", "| --- | --- |",
            *(f"| `{old}` | {_link_key(new, paths)} |" for old, new in renames.items()),
        ]  # fmt: skip
    return "\n".join([*lines, ""])


def _build_tables(keys: list[KeyHelp]) -> Iterator[str]:
    """Build a table of the keys outside tables, then one for each table, under its name."""
    # A table's own keys come before those of tables in it, wherever these are in the class.
    heads = {key.path: key for key in keys if key.is_table}
    groups: dict[str, list[KeyHelp]] = {}
    for key in keys:
        if not key.is_table:
            groups.setdefault(_table_of(key.path), []).append(key)
    for name, members in groups.items():
        if name:
            yield from ("", f"### [{name}]" if name in heads else f"### {name}", "")
            text = heads[name].text if name in heads else f"Keys of each entry of `{name.removesuffix('[]')}`."
            yield from (_escape(text), "")
        yield from ("| key | type | default | what it is |", "| --- | --- | --- | --- |")
        yield from map(_build_row, members)


def _link_key(path: str, paths: Container[str]) -> str:
    # Keys below one that takes any table (Ray's own options) have no row.
    return f"[`{path}`](#{path})" if path in paths else f"`{path}`"


def _table_of(path: str) -> str:
    return path.rpartition(".")[0]


def _build_row(key: KeyHelp) -> str:
    is_list = key.type_words.startswith("list of ")
    values = [f"`{word}`" if word else '`""`' for word in key.type_words.removeprefix("list of ").split(" | ")]
    kind = "list of " * is_list + " or ".join(values) if len(values) > 1 else key.type_words
    kind += f", {key.bounds}" if key.bounds else ""
    default = key.default if key.default in ("required", "optional") else f"`{key.default}`"
    # A default path of the checkout is the same on every machine.
    default = default.replace(f"{RECIPES.parents[1]}/", "")
    # Other pages link to a key by its name.
    cells = f'<a id="{key.path}"></a>`{key.path}`', kind, default, key.text
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _escape(text: str) -> str:
    """Keep a text in one cell of a table."""
    return text.replace("|", "\\|")


def _to_markdown(text: str) -> Iterator[str]:
    """Convert a module's docstring: paragraphs and aligned lists, without what it says about the code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    text = text.replace("python -m serve_apps", "wm serve").replace("python -m jobs.", "wm ")
    for is_code, group in groupby(text.strip().split("\n\n"), key=lambda part: bool(re.search(r"\S {3,}\S", part))):
        for paragraph in group:
            if paragraph.startswith(("Not known here", "Known here")):
                continue
            yield from (["```text", paragraph, "```"] if is_code else [paragraph])
            yield ""


def _first_sentence(text: str) -> str:
    return re.split(r"[.:]\s", " ".join(text.split()).replace("``", "`"))[0]


def wrap_command(command: str, width: int = 80) -> str:
    """Break a long command between its words, as a shell reads it on.

    Args:
        command: In one line.
        width: Characters of a line at most, where no word is longer.
    """
    words, lines = re.findall(r"(?:[^\s']|'[^']*')+", command), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append(f"    {word}")
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip() if len(lines) == 1 else f"{lines[-1]} {word}"
    return " \\\n".join(lines)


def _recipe_name(file: Path) -> str:
    return file.relative_to(RECIPES).with_suffix("").as_posix()


def _first_comment(file: Path) -> str:
    """Return the first sentence of a recipe file's first comment."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])
    return _escape(re.split(r"(?<=\.) (?=[A-Z])", comment)[0])
