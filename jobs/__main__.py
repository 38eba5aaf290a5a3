"""Run any command as ``wm NAME …``, which is ``python -m jobs.NAME …``, and the server as ``wm serve …``.

``wm --help`` lists the commands; ``wm completion bash`` (or zsh, fish) prints what a shell needs to complete them.
Knows none of their keys: those are in ``wm NAME --help``.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from wm.interrupts import exit_on_interrupt, quiet_when_unread

GROUPS: dict[str, dict[str, str]] = {
    "the whole loop": {
        "bootstrap": "annotate, train, verify and report, by one recipe",
    },
    "data": {
        "ingest": "human-labelled pairs of images or segments become triplets",
        "look": "a page of your videos' motion curves, key-frames and pairs; needs no model",
        "annotate": "videos become triplets: key-frames, and the action between them by the inverse model",
        "plan": "what a long annotation will take, from measured rates",
        "encode": "image codes for triplets without them, or those of another codec",
        "select": "the likeliest triplets of every class",
        "view": "a static page to look at triplets and rejects",
        "export": "triplets for other programs: AURORA JSON, WebDataset, LeRobot",
        "relabel": "the controls of an evaluation: selected triplets with true or shuffled actions",
    },
    "models": {
        "train": "fine-tune an inverse or forward model on triplets",
        "convert": "bring an original release or a foreign adapter into this project's form",
        "card": "a model's card again: licences, data, recipe, and figures of an evaluation",
        "push": "a model or a data set to the Hugging Face hub",
        "gate": "compare two models on the same triplets; keep the better one",
        "imagine": "verified predictions as further triplets",
    },
    "use and judge": {
        "predict": "the image after an action or several, each prediction verified",
        "serve": "OpenAI's image and chat API over both models, with a playground",
        "evaluate": "text and image metrics, preference probe, verification at several N",
        "judge": "a vision-language model scores predicted images: editing success and minimal editing",
        "contradict": "a language model writes an action that contradicts each one of a bench, for the probe",
        "ask": "questions about images, such as SpatialMQA, asked of any model",
        "collect": "images and actions of any other system become a prediction set",
        "edit": "an image editor of diffusers, such as InstructPix2Pix, predicts the targets of a bench",
        "score": "L1, CLIP, DINO and captions of prediction sets, of any systems side by side",
        "study": "people choose the best and the worst of several systems' predictions, blind",
        "paper": "the tables and figures of the paper, own numbers beside the published ones",
        "compare": "which of two systems is better, on which subsets, with what certainty",
        "report": "one HTML page of a run",
        "benchmark": "measure this machine",
    },
    "the toy world": {
        "tabletop": "render pairs and clips of a tabletop with exact states",
        "pretrain": "train the toy base that stands in for a pre-trained checkpoint",
        "ship": "make the toy models and images again that are installed with the package",
    },
}
"""Commands with a line each, in the order in which one meets them."""

COMMANDS = [name for group in GROUPS.values() for name in group]

RENAMED = {"curves": "look"}
"""Commands of earlier versions by what they are called today."""

_COMPLETIONS = {
    "bash": "complete -o default -W '{names}' wm",
    "zsh": "#compdef wm\n_arguments '1:command:({names})' '*:file:_files'",
    "fish": "complete -c wm -n __fish_is_first_token -f -a '{names}'",
}


def describe_commands() -> str:
    """Build the text of ``wm --help``."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: wm COMMAND [recipe.toml] [key=value ...]", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:{width}}{summary}" for name, summary in commands.items()), ""]
    lines += [
        "A recipe is a file, or an installed one by its name: wm predict nano/predict, wm bootstrap nano/demo.",
        "wm COMMAND --help lists the keys of its recipe; --dry-run checks everything and does nothing.",
        "wm completion bash | zsh | fish prints the completion of command names.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names.

    Args:
        argv: Arguments; None: those of this process.

    Returns:
        The command's exit status; 2 for an unknown command.
    """
    with quiet_when_unread():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    name, *rest = [*argv] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(describe_commands())
        return 0
    if name == "completion":
        return _print_completion(rest)
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        hint = f"; {name} is now {RENAMED[name]}: wm {RENAMED[name]} VIDEOS" if name in RENAMED else hint
        print(f"error: command {name!r}; expected one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return 2
    # Imported under its own name, not as __main__: Ray's workers find its functions by it.
    sys.argv = [f"wm {name}", *rest]
    with exit_on_interrupt():
        module = import_module("serve_apps.__main__" if name == "serve" else f"jobs.{name}")
    status: int = module.main()
    return status


def _print_completion(shells: Sequence[str]) -> int:
    if len(shells) != 1 or shells[0] not in _COMPLETIONS:
        print(f"error: completion of {' '.join(shells)!r}; expected {', '.join(_COMPLETIONS)}", file=sys.stderr)
        return 2
    print(_COMPLETIONS[shells[0]].format(names=" ".join(COMMANDS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
