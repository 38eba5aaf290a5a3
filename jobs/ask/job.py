"""Ask models questions about images (SpatialMQA, EmbSpatial-Bench, or your own) and score their greedy answers and
their likelihoods of the options: accuracy with intervals, by kind of question, published numbers beside."""

from collections import Counter

from jobs.ask import report
from jobs.ask.entries import build_models, digest_models, list_toy_models
from jobs.ask.recipe import AskRecipe
from jobs.ask.shards import answers_file, ask_shards, list_shards
from jobs.shared.cluster_size import fit_to_cluster
from jobs.shared.devices import check_device
from wm import cli
from wm.datasets.card import write_dataset_card
from wm.errors import InputError
from wm.evaluation.questions.asking import ANSWER_SCHEMA, to_answer_row
from wm.evaluation.questions.figures import compute_figures
from wm.evaluation.questions.formats import find_file, find_images
from wm.evaluation.questions.reading import QuestionSet, read_questions, write_questions
from wm.evaluation.questions.tables import AskTables, build_tables
from wm.records import REJECT_SCHEMA
from wm.runs import Run, RunRecord, digest_of, read_run, write_json
from wm.tables import read_table, write_table

QUESTIONS_FILE = "questions/part-00000.parquet"
REJECTS_FILE = "rejects/part-00000.parquet"


def run(recipe: AskRecipe, *, dry_run: bool = False) -> RunRecord:
    """Ask every model every question, and write answers, ``tables.json`` and a card below ``out``.

    A stopped run resumes with the shards whose files are missing.

    Args:
        recipe: The questions, the models and how they are asked.
        dry_run: Read everything and report what would be asked.

    Returns:
        The record that ``run.json`` holds; empty on a dry run.

    Raises:
        InputError: On questions or models that cannot be used.
    """
    # 1. Check everything that needs no model; bad input leaves nothing behind.
    recipe = fit_to_cluster(recipe)
    check_device(recipe.resources.device)
    models = build_models(recipe)
    path = find_file(recipe.benchmark, recipe.data, recipe.file)
    inputs = {
        "questions": digest_of(path),
        "images": digest_of(find_images(recipe.benchmark, recipe.data, recipe.images)),
    }
    job = Run(recipe.out, "ask", recipe, inputs | digest_models(models))
    if job.is_complete():
        report.print_complete(recipe)
        return read_run(recipe.out) or {}
    with job.timed("read"):
        questions = _read(recipe)
    shards = list_shards(models, len(questions.questions), recipe.shard_questions)
    if dry_run:
        report.print_plan(recipe, questions, len(models), len(shards))
        return {}
    # 2. Ask. Workers read the questions from here, and not the benchmark's file again.
    job.start()
    write_questions(questions.questions, job.out / QUESTIONS_FILE)
    write_table(questions.rejects, job.out / REJECTS_FILE, REJECT_SCHEMA)
    todo = [shard for shard in shards if not answers_file(recipe, shard).exists()]
    total = len(models) * len(questions.questions)
    done = total - sum(shard.stop - shard.start for shard in todo)
    with job.timed("models"), cli.progress_bar(total, "question", "ask", done) as bar:
        for shard in ask_shards(recipe, models, todo):
            bar.set_postfix_str(shard.model)
            bar.update(shard.stop - shard.start)
    # 3. Make the tables of the files alone: a resumed run gives what an uninterrupted one would.
    with job.timed("tables"):
        tables = _build_tables(recipe, questions)
        write_json(job.out / "tables.json", tables)
        notes = report.describe(tables)
        write_dataset_card(job.out, title=f"answers to {tables['title']}", split="test", notes=notes)
    counts = {
        "entries": questions.num_entries,
        "questions": len(questions.questions),
        "rejects": len(questions.rejects),
        "rejects_by_reason": dict(sorted(Counter(row["reason"] for row in questions.rejects).items())),
        "left_out_by_limit": questions.num_left_out,
        "models": len(models),
        "answers": total,
        "not_asked": sum(row["num_failed"] for row in tables["rows"]),
    }
    record = job.finish(counts)
    report.print_tables(recipe, tables)
    return record


def _read(recipe: AskRecipe) -> QuestionSet:
    """Read the questions, with a bar for the images, of which each is decoded once."""
    with cli.progress_bar(0, "image", "read") as bar:

        def show(number: int, total: int) -> None:
            # How many there are is known once all entries are listed.
            bar.total = total
            bar.update(number - bar.n)

        questions = read_questions(
            recipe.benchmark,
            recipe.data,
            file=recipe.file,
            images=recipe.images,
            limit=recipe.limit,
            on_image=show,
        )
    if not questions.questions:
        first = next(iter(questions.rejects), None)
        reason = f"; the first of {len(questions.rejects):,}: {first['uri']}: {first['detail']}" if first else ""
        raise InputError(f"no usable question in {recipe.data}{reason}")
    return questions


def _build_tables(recipe: AskRecipe, questions: QuestionSet) -> AskTables:
    rows = []
    for name, model in recipe.models.items():
        # Column by column from the files, in the order of the questions.
        stored = [
            row
            for shard in list_shards({name: None}, len(questions.questions), recipe.shard_questions)
            for row in read_table(answers_file(recipe, shard), ANSWER_SCHEMA).to_pylist()
        ]
        answers = [to_answer_row(row) for row in stored]
        rows.append(compute_figures(answers, name=name, label=model.label, run=model.seed, reading=recipe.reading))
    return build_tables(
        rows,
        benchmark=recipe.benchmark,
        reading=recipe.reading,
        style=recipe.style,
        prompt=recipe.prompt_text,
        num_questions=len(questions.questions),
        num_rejects=len(questions.rejects),
        has_limit=bool(questions.num_left_out),
        toy_models=list_toy_models(recipe),
    )


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(AskRecipe, run, name="ask", description=__doc__ or "")
