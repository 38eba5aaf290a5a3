"""Have predicted images judged by a vision-language model behind OpenAI's chat API: editing success, minimal editing.

Replies are stored line by line in OUT/judgements: nothing is asked twice, a killed run resumes, a failure is never a 0.
The API's key is read from the environment (OPENAI_API_KEY).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.judge import report
from jobs.judge.batches import ask_in_batches, check_none_underway
from jobs.judge.recipe import NANO_JUDGE, JudgeRecipe
from jobs.judge.session import JudgeSession, estimate_cost
from jobs.shared.chat.asking import ask_all, list_pending, spent_so_far
from jobs.shared.chat.client import ChatClient
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.errors import InputError
from wm.evaluation.judge.figures import ItemScore, compute_figures
from wm.evaluation.judge.items import COPY, Bench, JudgeItem, choose_items, copy_items
from wm.evaluation.judge.requests import judgement_key
from wm.evaluation.judge.score_files import SCORES_SCHEMA
from wm.evaluation.judge.store import JudgementStore
from wm.evaluation.judge.template import load_template
from wm.evaluation.predictions import check_systems, list_predictions
from wm.evaluation.report.summary import suggest_comparison
from wm.runs import Run, digest_of, read_run
from wm.tables import write_table


def run(recipe: JudgeRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Ask what is not judged yet, write ``scores.parquet`` and print the table.

    Args:
        recipe: Whose predictions, which judge.
        dry_run: Report how much would be asked and what it costs.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: A prediction set or the bench is wrong, the key is missing, the endpoint refuses, ``max_cost`` is
            reached, or requests got no answer. What was judged is kept.
    """
    # 1. What is to be judged; everything that can be wrong is found before the first request.
    template = load_template(recipe.template)
    bench, items = _choose(recipe)
    inputs = {"template": template.digest, "triplets": digest_of(recipe.triplets)}
    inputs |= {f"predictions {number}": digest_of(folder) for number, folder in enumerate(recipe.predictions)}
    stage = Run(recipe.out, "judge", recipe, inputs)
    if stage.is_complete():
        print(f"judge: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    # 2. The questions. Equal images are one question.
    settings = recipe.settings()
    keyed = [
        (judgement_key(bench.question(item, repeat), template, settings), item, repeat)
        for item in items
        for repeat in range(recipe.repeats)
    ]
    questions = {key: item for key, item, _ in keyed}
    store = JudgementStore(recipe.store or recipe.out)
    pending = list_pending(questions, store, recipe.max_attempts)
    tokens, price = estimate_cost(pending, bench, template, recipe)
    spent = spent_so_far(store, recipe)
    report.print_plan(len(keyed), (len(questions), len(pending)), tokens, price=price, spent=spent)
    if dry_run:
        return {}
    with _endpoint(recipe) as base_url:
        client = ChatClient(recipe, base_url, is_structured=recipe.structured_output == "auto")
        # 3. Ask. The folder may hold judgements of a run that was stopped.
        stage.start()
        session = JudgeSession(bench, template, settings, client, store, recipe)
        ask = ask_in_batches if recipe.mode == "batch" else ask_all
        with stage.timed("ask_s"), store.writing():
            # The store was read again.
            pending = list_pending(questions, store, recipe.max_attempts)
            if recipe.mode == "online":
                check_none_underway(session, pending)
            with progress_bar(len(pending), "question", "judge") as bar:
                unanswered = ask(session, pending, bar.update)
    if unanswered:
        raise InputError(
            f"{len(unanswered):,} of {len(questions):,} questions got no answer; what is judged is kept, the same "
            "command asks the rest"
        )
    # 4. Figures.
    return _write_figures(recipe, stage, keyed, bench, store)


def _write_figures(
    recipe: JudgeRecipe, stage: Run, keyed: Sequence[tuple[str, JudgeItem, int]], bench: Bench, store: JudgementStore
) -> dict[str, Any]:
    """Write every judgement and the means of them, and print the table; returns the run's record."""
    scores = _list_scores(keyed, bench, store)
    # Every judgement by itself, so that others can pair and resample them.
    rows = [{**vars(score), "final": score.final, "key": key} for score, (key, _, _) in zip(scores, keyed, strict=True)]
    write_table(rows, Path(recipe.out) / "scores.parquet", SCORES_SCHEMA)
    table = compute_figures(scores, bench.subsets)
    # Counted: a mean says by itself only what was judged.
    unjudged = sum(score.failure is not None for score in scores)
    counts = {"judgements": len(scores), "questions": len({key for key, _, _ in keyed}), "unjudged": unjudged}
    record = stage.finish(
        counts | {"torn_lines": store.num_torn},
        figures=table,
        cost=round(spent_so_far(store, recipe), 6),
    )
    report.print_table(table)
    systems = [name for name in dict.fromkeys(row["system"] for row in table) if name != COPY]
    if hint := suggest_comparison(recipe.out, systems):
        print(hint)
    print(f"judge: {len(scores) - unjudged:,} of {len(scores):,} judged by {recipe.model}: {recipe.out}/scores.parquet")
    return record


def _choose(recipe: JudgeRecipe) -> tuple[Bench, list[JudgeItem]]:
    """Read the bench and choose the predictions that are judged, the source's own among them."""
    sets = [(folder, list_predictions(folder)) for folder in recipe.predictions]
    # Two systems of one name would share a row of the table.
    check_systems(sets)
    bench = Bench(recipe.triplets, recipe.subset, recipe.limit, recipe.source_view)
    facts = [row for _, rows in sets for row in rows]
    items = choose_items(facts, bench.ids, recipe.num_candidates, recipe.systems)
    if recipe.copy_baseline:
        items += copy_items(bench.ids)
    if not items:
        raise InputError(f"no system has a prediction at num_candidates = {recipe.num_candidates}")
    return bench, items


@contextmanager
def _endpoint(recipe: JudgeRecipe) -> Iterator[str]:
    """Yield the endpoint's base URL, empty for OpenAI's own; the nano world's judge is served meanwhile."""
    if recipe.model != NANO_JUDGE:
        yield recipe.base_url
        return
    from wm.nano.judge_endpoint import serve_judge

    with serve_judge() as url:
        yield url


def _list_scores(keyed: Sequence[tuple[str, JudgeItem, int]], bench: Bench, store: JudgementStore) -> list[ItemScore]:
    """List the judgement of every item and repeat, or why there is none."""
    scores = []
    for key, item, repeat in keyed:
        line = store.judged.get(key)
        # Given up after the last attempt: its reason is the one that counts.
        failure = None if line is not None else store.failures[key][-1]["failure"]
        scores.append(
            ItemScore(
                triplet_id=item.triplet_id,
                subset=bench.subsets[item.triplet_id],
                system=item.system,
                run=item.run,
                sampling_seed=item.sampling_seed,
                num_candidates=item.num_candidates,
                repeat=repeat,
                editing_success=line["editing_success"] if line is not None else None,
                minimal_editing=line["minimal_editing"] if line is not None else None,
                failure=failure,
            )
        )
    return scores


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(JudgeRecipe, run, name="judge", description=__doc__ or "")
