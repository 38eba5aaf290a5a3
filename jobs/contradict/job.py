"""Have a language model write, for each action of a bench, one that contradicts it: the probe's fifth negative.

Replies are stored line by line in OUT/replies: nothing is asked twice, a killed run resumes, and a triplet without a
usable reply is a reject with its reason. ``wm evaluate counterfactuals=OUT`` reads the result.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.contradict.card import write_card
from jobs.contradict.recipe import ContradictRecipe
from jobs.contradict.session import ContradictionStore, ContradictSession, LocalEndpoint
from jobs.shared.chat.asking import Endpoint, ask_all, list_pending, spent_so_far
from jobs.shared.chat.client import ChatClient
from jobs.shared.devices import check_device
from wm import cli
from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow, read_bench_rows
from wm.evaluation.contradictions import (
    CONTRADICT_TEMPLATE,
    ContradictSettings,
    contradiction_key,
    count_tokens,
)
from wm.evaluation.counterfactuals import COUNTERFACTUALS_FILE, write_counterfactuals
from wm.evaluation.judge.template import Template, load_template
from wm.evaluation.subsets import spread_rows
from wm.models.chat_model import load_chat_model
from wm.records import REJECT_SCHEMA, RejectRow, reject_row
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.tables import write_table


def run(recipe: ContradictRecipe, *, dry_run: bool = False) -> RunRecord:
    """Ask about every action that has no contradiction yet, and write ``counterfactuals.jsonl``.

    Args:
        recipe: Whose actions, which model.
        dry_run: Report how much would be asked and what it costs.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: The bench or the model is wrong, the key is missing, the endpoint refuses, ``max_cost`` is reached,
            or requests got no answer. What was answered is kept.
    """
    # 1. What is to be asked; everything that can be wrong is found before the first request.
    template = load_template(recipe.template, CONTRADICT_TEMPLATE)
    rows = read_bench_rows(recipe.triplets)
    rows = [rows[number] for number in spread_rows(len(rows), recipe.limit or None)]
    inputs = {"template": template.digest, "triplets": digest_of(recipe.triplets)}
    if recipe.model_folder:
        inputs["model"] = digest_of(recipe.model_folder)
    stage = Run(recipe.out, "contradict", recipe, inputs)
    if stage.is_complete():
        print(f"contradict: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    # 2. The questions. Equal actions are one question.
    settings = ContradictSettings(inputs.get("model", recipe.model), recipe.max_tokens, recipe.temperature)
    actions = dict.fromkeys(row.action for row in rows if row.action.strip())
    if not actions:
        raise InputError(f"no triplet of {recipe.triplets} has an action, so that there is nothing to contradict")
    keys = {action: contradiction_key(action, template, settings) for action in actions}
    store = ContradictionStore(recipe.store or recipe.out)
    questions = {key: action for action, key in keys.items()}
    pending = list_pending(questions, store, recipe.max_attempts)
    _print_plan(recipe, len(rows), len(keys), [question.item for question in pending], template)
    if dry_run:
        return {}
    # 3. Ask. The folder may hold replies of a run that was stopped.
    client = _build_endpoint(recipe)
    stage.start()
    session = ContradictSession(template, settings, client, store, recipe)
    with stage.timed("ask_s"), store.writing():
        # The store was read again.
        pending = list_pending(questions, store, recipe.max_attempts)
        with cli.progress_bar(len(pending), "action", "contradict") as bar:
            unanswered = ask_all(session, pending, bar.update)
    if unanswered:
        raise InputError(
            f"{len(unanswered):,} of {len(keys):,} actions got no answer; the replies so far are kept, the same "
            "command asks the rest"
        )
    # 4. Every triplet has its contradiction, or is a reject.
    return _write_results(stage, session, rows, keys)


def _build_endpoint(recipe: ContradictRecipe) -> Endpoint:
    if not recipe.model_folder:
        return ChatClient(recipe, recipe.base_url)
    check_device(recipe.resources.device)
    dtype = getattr(torch, recipe.resources.dtype)
    model = load_chat_model(recipe.model_folder, device=recipe.resources.device, dtype=dtype)
    return LocalEndpoint(model, recipe.model_folder)


def _print_plan(
    recipe: ContradictRecipe, num_triplets: int, num_actions: int, actions: Sequence[str], template: Template
) -> None:
    tokens = sum(count_tokens(action, template) for action in actions)
    price = recipe.cost(tokens, len(actions) * recipe.max_tokens)
    # Local models and many endpoints have no price.
    cost = f", at most {price:.2f} in the prices' currency" if recipe.input_price or recipe.output_price else ""
    print(
        f"contradict: {num_triplets:,} triplets, {num_actions:,} different actions, {len(actions):,} to ask: about "
        f"{tokens:,} input tokens{cost}"
    )


def _write_results(
    stage: Run, session: ContradictSession, rows: Sequence[BenchRow], keys: Mapping[str, str]
) -> dict[str, Any]:
    """Write the contradictions, the rejects and the card; returns the run's record."""
    recipe, store = session.recipe, session.store
    actions: dict[str, str] = {}
    rejects: list[RejectRow] = []
    for row in rows:
        # A triplet without an action has no question: whatever a model made of it would contradict nothing.
        if row.action not in keys:
            rejects.append(_build_reject(row, "no action"))
            continue
        line = store.answered.get(keys[row.action])
        if line is not None and line["action"]:
            actions[row.triplet_id] = line["action"]
        else:
            # Given up after the last attempt: its reason is the one that counts.
            rejects.append(_build_reject(row, store.failures[keys[row.action]][-1]["failure"] or ""))
    out = Path(recipe.out)
    write_counterfactuals(actions, out / COUNTERFACTUALS_FILE)
    # An empty table too: whoever reads the folder finds it.
    write_table(rejects, out / "rejects" / "part-00000.parquet", REJECT_SCHEMA)
    reasons = dict(sorted(Counter(reject["reason"] for reject in rejects).items()))
    counts: dict[str, object] = {
        "triplets": len(rows),
        "actions": len(keys),
        "counterfactuals": len(actions),
        "rejects": len(rejects),
        "rejects_by_reason": reasons,
        "torn_lines": store.num_torn,
    }
    write_card(recipe, session.template, counts)
    record = stage.finish(counts, cost=round(spent_so_far(store, recipe), 6))
    print(f"contradict: {len(actions):,} of {len(rows):,} triplets have one: {out / COUNTERFACTUALS_FILE}")
    for reason, count in reasons.items():
        print(f"  rejects, {reason}: {count:,}")
    return record


def _build_reject(row: BenchRow, reason: str) -> RejectRow:
    return reject_row(
        uri=f"{row.triplet_id}#counterfactual_action", stage="contradict", outcome="failed",
        reason=reason.replace(" ", "_"), detail=f"no contradiction of {row.action!r:.200}: {reason}",
        dataset=row.dataset, split=row.split, class_label=row.class_label,
    )  # fmt: skip


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli.main(ContradictRecipe, run, name="contradict", description=__doc__ or "")
