"""Write the card of a folder of contradicting actions: which model, asked what."""

from collections.abc import Mapping
from pathlib import Path

from jobs.contradict.recipe import PAPERS_MODEL, ContradictRecipe
from wm.evaluation.contradictions import CONTRADICT_TEMPLATE
from wm.evaluation.counterfactuals import COUNTERFACTUALS_FILE
from wm.evaluation.judge.template import Template
from wm.files.mirror import shown
from wm.runs import write_text


def write_card(recipe: ContradictRecipe, template: Template, counts: Mapping[str, object]) -> None:
    """Write ``README.md``.

    Args:
        recipe: The model and its settings.
        template: What was asked.
        counts: Of triplets, contradictions and rejects.
    """
    default = "the default of the model" if recipe.model_folder else "the default of the endpoint"
    temperature = default if recipe.temperature is None else f"{recipe.temperature:g}"
    # Whoever reads the numbers must know what was asked.
    owner = "words of our own" if template.text == CONTRADICT_TEMPLATE else f"{recipe.template}"
    lines = [
        "# Contradicting actions",
        "",
        f'`{COUNTERFACTUALS_FILE}`: one line `{{"triplet_id": …, "action": …}}` for each of '
        f"{counts['counterfactuals']:,} of {counts['triplets']:,} triplets of `{recipe.triplets}`; the others are in "
        "`rejects/`, with the reason. `replies/` has every reply of the model as it came; quotation marks around it, a "
        "label before it, and a full stop or a capital that the bench's action lacks are taken away.",
        "",
        f"- model: {recipe.model_folder or recipe.model} (the paper: {PAPERS_MODEL.rpartition('/')[2]})",
        f"- temperature: {temperature}; max_tokens: {recipe.max_tokens}; attempts at most: {recipe.max_attempts}",
        f"- prompt: {owner}, sha256 {template.digest}; the paper does not print its own",
        "",
        "The prompt, in one message of the user:",
        "",
        "```text",
        template.text.rstrip("\n"),
        "```",
        "",
    ]
    # The card goes where its readers have no copies of this node.
    write_text(Path(recipe.out) / "README.md", shown("\n".join(lines)))
