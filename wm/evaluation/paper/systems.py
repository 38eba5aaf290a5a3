"""Name the systems of the paper's tables, and say which command makes what a cell lacks of one."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.sources import Sources
from wm.evaluation.rows import CEILING, COPY

Origin: TypeAlias = Literal["bench", "base", "trained", "external"]

BENCH = "data/triplets/aurora-bench"
"""Where the recipes expect AURORA-Bench."""


@dataclass(frozen=True)
class System:
    """A system of the paper.

    Attributes:
        key: Its name in tables, and the label that the recipes give it.
        origin: Who makes it: the bench itself, a base as it is, a training, or somebody else.
        recipe: Recipe that trains it, or the evaluation of its base; of somebody else's the one that runs it, if any.
    """

    key: str
    origin: Origin
    recipe: str = ""


_CHAMELEON, _LIQUID = "paper/evaluate-aurora-bench", "paper/evaluate-aurora-bench-liquid"

SYSTEMS = {
    system.key: system
    for system in (
        System(COPY, "bench"),
        System(CEILING, "bench"),
        System("PixInst", "external", "paper/edit-instruct-pix2pix"),
        System("GoT", "external"),
        System("SE", "external"),
        System("VILA-U", "external"),
        System("C-ZS", "base", _CHAMELEON),
        System("C-FT", "trained", "paper/c-ft"),
        System("C-FDM", "trained", "paper/c-fdm"),
        System("C-FDM w/o Synth.", "trained", "paper/c-fdm-no-synthetic"),
        System("C-FDM w/o LW", "trained", "paper/c-fdm-no-weights"),
        System("C-IDM", "trained", "paper/c-idm"),
        System("C-IDM (all Kubric)", "trained", "paper/c-idm-all-kubric"),
        System("L-ZS", "base", _LIQUID),
        System("L-FT", "trained", "paper/l-ft"),
        System("L-FDM", "trained", "paper/l-fdm"),
        System("L-IDM", "trained", "paper/l-idm"),
    )
}
"""The paper's systems by their keys, which are the keys of ``names`` too."""
_TOY_TRAINED = ("C-IDM", "C-FT", "C-FDM", "C-FDM w/o LW")
"""What the loop of the toy world trains of them."""
_ALL_MODELS = "clip=CLIP blip=BLIP dino=DINO"


def explain_unscored(sources: Sources, system: str, command: Literal["judge", "score"], key: str = "") -> Absent:
    """Say why a system has no figure of a judge or of a metric.

    Args:
        sources: The results.
        system: Key of the paper's system, or a label of the results.
        command: Which figures: the judge's or the scoring's.
        key: A key that the command needs for this figure, such as ``dino=DINO``.

    Returns:
        The reason, and the next command towards the figure: first the predictions, then their scores.
    """
    label = sources.label(system)
    bench = sources.triplets or BENCH
    if command == "judge":
        return _explain_unjudged(sources, system, label, bench)
    # 1. Scored, but not by this metric: its models were not given.
    if key and label in sources.scored_systems:
        # With all models at once: three scorings of one system could not be given together.
        names = " or ".join(part.partition("=")[0] for part in key.split())
        return Absent(f"scored without {names}", score_command(_scored_sets(sources, label), bench, _ALL_MODELS))
    if label in sources.scored_systems:
        return Absent(f"{system} was scored at other numbers of candidates than 1, which tables show")
    # 2. Not predicted: somebody has to make the images.
    if label not in sources.predicted_in and label not in (COPY, CEILING):
        return explain_unpredicted(sources, system)
    models = " ".join([*(["codec=MODEL"] if label == CEILING else []), *([_ALL_MODELS] if key else [])])
    return Absent("not scored", score_command([_set_of(sources, label)], bench, models))


def _explain_unjudged(sources: Sources, system: str, label: str, bench: str) -> Absent:
    judge = f"wm judge predictions={_list([_set_of(sources, label)])} triplets={shlex.quote(bench)} out=JUDGED"
    if label in sources.judged_systems:
        return Absent(f"no judgement of {system} on a subset: without predictions, or all failed")
    # At other K alone, which tables do not show.
    if any(score.system == label for score in sources.judgements):
        return Absent(f"{system} was not judged at num_candidates = 1", f"{judge} num_candidates='[1]'")
    if label == CEILING:
        return Absent("targets through the codec are no predictions, which alone are judged")
    if label not in sources.predicted_in and label != COPY:
        return explain_unpredicted(sources, system)
    return Absent("not judged", judge)


def _set_of(sources: Sources, label: str) -> str:
    # Copy and the codec's ceiling have no set: whichever is scored, they are scored beside it.
    return sources.predicted_in.get(label) or next(iter(sources.predicted_in.values()), "PREDICTIONS")


def _scored_sets(sources: Sources, label: str) -> list[str]:
    """List the prediction sets of the scoring that holds a system, so that its next scoring holds no less."""
    for source in sources.of("score"):
        if any(row["system"] == label for row in source.load_json("scores.json")["rows"]):
            return [str(folder) for folder in source.recipe("predictions", [])]
    return [_set_of(sources, label)]


def explain_unpredicted(sources: Sources, system: str) -> Absent:
    """Say how the images of a system that the results lack are made.

    Args:
        sources: The results.
        system: Key of the paper's system, or a label of the results.

    Returns:
        The reason, and the commands from a recipe to the images.
    """
    entry = SYSTEMS.get(system)
    bench = shlex.quote(sources.triplets or BENCH)
    if entry is not None and entry.origin != "external":
        return _explain_model(sources, entry, f"no images of {system}")
    # Where this package runs it itself, there is nothing to collect.
    if entry is not None and entry.recipe:
        return Absent(f"no images of {system}", f"wm edit {entry.recipe} triplets={bench}")
    label = shlex.quote(sources.label(system))
    return Absent(f"no images of {system}", f"wm collect folder=OUTPUTS system={label} triplets={bench} out=COLLECTED")


def _explain_model(sources: Sources, entry: System, reason: str) -> Absent:
    # The paper's recipes are of no use in the toy world, whose loop trains a part of the systems only.
    if sources.is_toy:
        if entry.key in _TOY_TRAINED:
            return Absent(reason, "wm bootstrap nano/full")
        return Absent(f"{reason}, which the toy world's loop does not make")
    # A base is evaluated as it is, by the same recipe as what is trained on it.
    if entry.origin == "base":
        return Absent(reason, f"wm evaluate {entry.recipe}")
    family = _LIQUID if entry.key.startswith("L-") else _CHAMELEON
    return Absent(reason, f"wm train {entry.recipe} && wm evaluate {family}")


def explain_unread(sources: Sources, system: str) -> Absent:
    """Say how the actions of an inverse model that the results lack are made.

    Args:
        sources: The results.
        system: Key of the paper's system, or a label of the results.

    Returns:
        The reason, and the commands from a recipe to the actions.
    """
    entry = SYSTEMS.get(system)
    if entry is not None and entry.origin != "external":
        return _explain_model(sources, entry, f"no actions of {system}")
    # A label of one's own may have blanks.
    label, bench = shlex.quote(sources.label(system)), sources.triplets or BENCH
    return Absent(
        f"no actions of {system}",
        f"wm collect actions=ACTIONS.jsonl system={label} triplets={shlex.quote(bench)} out=COLLECTED && "
        + score_command(["COLLECTED"], bench),
    )


def score_command(folders: Sequence[str], bench: str, key: str = "") -> str:
    """Write the command that scores prediction sets.

    Args:
        folders: Of the sets.
        bench: Folder of the bench.
        key: What else it needs, such as ``dino=DINO``.

    Returns:
        The command, ready for a shell.
    """
    command = f"wm score predictions={_list(folders)} triplets={shlex.quote(bench)} out=SCORED"
    return f"{command} {key}" if key else command


def _list(folders: Sequence[str]) -> str:
    # Paths may have blanks and quotes.
    return shlex.quote(json.dumps(list(folders), ensure_ascii=False))
