"""Name the systems of the paper's tables, and say which command makes what a cell lacks of one."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.sources import Sources
from wm.evaluation.units import CEILING, COPY

Origin: TypeAlias = Literal["bench", "base", "trained", "external"]

BENCH = "data/triplets/aurora-bench"
"""Where the recipes expect AURORA-Bench."""


@dataclass(frozen=True)
class System:
    """A system of the paper.

    Attributes:
        key: Its name in tables, and the label that the recipes give it.
        origin: Who makes it: the bench itself, a base as it is, a training, or somebody else.
        recipe: Recipe that trains it, or the evaluation of its base.
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
        System("PixInst", "external"),
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
    folder = _set_of(sources, label)
    # 1. Scored, but not by this metric: its models were not given.
    if key and label in sources.scored_systems:
        return Absent(f"scored without {key.partition('=')[0]}", _score(folder, bench, key))
    # 2. Not predicted: somebody has to make the images.
    if label not in sources.predicted_in and label not in (COPY, CEILING):
        return explain_unpredicted(sources, system)
    return Absent("not scored", _score(folder, bench, f"codec=MODEL {key}" if label == CEILING else key))


def _explain_unjudged(sources: Sources, system: str, label: str, bench: str) -> Absent:
    judge = f"wm judge predictions='[\"{_set_of(sources, label)}\"]' triplets={bench} out=JUDGED"
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


def explain_unpredicted(sources: Sources, system: str) -> Absent:
    """Say how the images of a system that the results lack are made.

    Args:
        sources: The results.
        system: Key of the paper's system, or a label of the results.

    Returns:
        The reason, and the commands from a recipe to the images.
    """
    entry = SYSTEMS.get(system)
    bench = sources.triplets or BENCH
    if entry is None or entry.origin == "external":
        return Absent(
            f"no images of {system}",
            f"wm collect folder=OUTPUTS system={_quote(sources.label(system))} triplets={bench} out=COLLECTED",
        )
    # A base is evaluated as it is, by the same recipe as what is trained on it.
    if entry.origin == "base":
        return Absent(f"no images of {system}", f"wm evaluate {entry.recipe}")
    # The paper's recipes are of no use there.
    if sources.is_toy:
        return Absent(f"no images of {system}", "wm bootstrap nano/full")
    family = _LIQUID if system.startswith("L-") else _CHAMELEON
    return Absent(f"no images of {system}", f"wm train {entry.recipe} && wm evaluate {family}")


def explain_unread(sources: Sources, system: str) -> Absent:
    """Say how the actions of an inverse model that the results lack are made.

    Args:
        sources: The results.
        system: Key of the paper's system, or a label of the results.

    Returns:
        The reason, and the commands from a recipe to the actions.
    """
    entry = SYSTEMS.get(system)
    bench = sources.triplets or BENCH
    if entry is None or entry.origin == "external":
        # A label of one's own may have blanks.
        label = _quote(sources.label(system))
        return Absent(
            f"no actions of {system}",
            f"wm collect actions=ACTIONS.jsonl system={label} triplets={bench} out=COLLECTED && wm score "
            f"predictions='[\"COLLECTED\"]' triplets={bench} out=SCORED",
        )
    if entry.origin == "base":
        return Absent(f"no actions of {system}", f"wm evaluate {entry.recipe}")
    family = _LIQUID if system.startswith("L-") else _CHAMELEON
    return Absent(f"no actions of {system}", f"wm train {entry.recipe} && wm evaluate {family}")


def _score(folder: str, bench: str, key: str) -> str:
    return " ".join(f"wm score predictions='[\"{folder}\"]' triplets={bench} out=SCORED {key}".split())


def _quote(text: str) -> str:
    return text if text.replace("-", "").replace(".", "").isalnum() else f"'{text}'"
