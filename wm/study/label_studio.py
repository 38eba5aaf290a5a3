"""Write items and votes as tasks of Label Studio, the configuration of their page, and read annotated tasks back.

The form is Label Studio's own JSON (https://labelstud.io/guide/task_format): a task has ``data``, and an annotation has
``result``, a list of choices by the names of the configuration's tags. Not known here: files and stores.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias
from xml.sax.saxutils import quoteattr

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.study.imports import Answer, NoVoteError, Row
from wm.study.order import order_systems
from wm.study.study import Study, StudyItem

Task: TypeAlias = dict[str, Any]
"""A task, an annotation or a part of one, as JSON has it."""
Json: TypeAlias = Mapping[str, Any]
"""The same, which is only read."""

BEST, WORST = "best", "worst"
"""Names of the two groups of choices in the configuration, by which answers are known."""
LOCAL_FILES: Final = "/data/local-files/?d=images/"
"""Address below which Label Studio serves files of its document root
(https://labelstud.io/guide/storage#Local-storage), where that root is the study's folder."""
_PARTICIPANT: Final = "participant "
"""Before the code in the notes of a result, so that exported votes come back as those of the same people."""


def build_config(study: Study) -> str:
    """Build the configuration of the labelling page: the action, all images, two groups of choices.

    Args:
        study: Its largest item decides how many models are shown.

    Returns:
        XML in Label Studio's tags (https://labelstud.io/tags/choices).
    """
    size = max(len(item.candidates) for item in study.items)
    # Tasks of fewer systems, such as attention checks may be, would need a page of their own.
    if any(len(item.candidates) != size for item in study.items):
        raise InputError(f"study {study.study_id} has items of different numbers of systems, which no one page shows")
    images = "\n".join(
        f'    <View style="flex: 1 1 220px"><Header value="Model {number}" size="5"/>'
        f'<Image name="model_{number}_image" value="$model_{number}"/></View>'
        for number in range(1, size + 1)
    )
    texts = "\n".join(f'    <Header value={quoteattr(text)} size="5"/>' for text in study.instructions.split("\n\n"))
    return f"""<View>
  <Collapse><Panel value="How to choose">
{texts}
  </Panel></Collapse>
  <Header value="$action"/>
  <Image name="source_image" value="$source"/>
  <View style="display: flex; flex-wrap: wrap; gap: 8px">
{images}
  </View>
{_build_choices(BEST, "Best", size)}
{_build_choices(WORST, "Worst", size)}
</View>
"""


def _build_choices(name: str, title: str, size: int) -> str:
    choices = "".join(f'<Choice value="Model {number}"/>' for number in range(1, size + 1))
    return (
        f'  <Header value="{title}" size="5"/>\n  <Choices name="{name}" toName="source_image" choice="single-radio" '
        f'showInLine="true" required="true" requiredMessage="{title}: choose one">{choices}</Choices>'
    )


def build_tasks(study: Study, *, number: int = 0, images: str = LOCAL_FILES) -> list[Task]:
    """Build a task an item, blind: nothing in it says which model is whose.

    All who annotate one set of tasks see the systems in one order, which is balanced over the items; sets of other
    numbers balance it over people too.

    Args:
        study: The study.
        number: Participant whose orders are shown, as in :func:`wm.study.order.order_systems`.
        images: Address of the folder of images, to which their names are added.

    Returns:
        Tasks as Label Studio imports them.
    """
    return [
        {"data": _build_data(study, item, order_systems(study, item, number), images) | {"order": number}}
        for item in study.items
    ]


def _build_data(study: Study, item: StudyItem, systems: Sequence[str], images: str) -> Task:
    # Names of images say nothing, so that the order alone says whose they are.
    models = {f"model_{number}": images + item.candidates[system] for number, system in enumerate(systems, start=1)}
    facts = {"study_id": study.study_id, "item_id": item.item_id, "action": item.action}
    return {**facts, "source": images + item.source, **models}


def build_annotated_tasks(study: Study, votes: Sequence[Vote], *, images: str = LOCAL_FILES) -> list[Task]:
    """Build annotated tasks of votes: a task for each item and order of systems, an annotation a vote.

    Args:
        study: The study.
        votes: Those of people who saw no difference have no choice, and are an annotation without result.
        images: Address of the folder of images.

    Returns:
        Tasks as Label Studio exports them; ``data.systems`` says whose the models are.
    """
    # Who saw another order saw another task.
    groups: dict[tuple[str, tuple[str, ...]], list[Vote]] = defaultdict(list)
    for vote in votes:
        groups[vote.item_id, vote.systems].append(vote)
    # Label Studio knows annotators by whole numbers.
    people = {name: number for number, name in enumerate(dict.fromkeys(vote.participant for vote in votes), start=1)}
    tasks: list[Task] = []
    for (item_id, systems), cast_votes in groups.items():
        data = _build_data(study, study.item(item_id), systems, images) | {"systems": list(systems)}
        annotations = [_to_annotation(vote, people[vote.participant]) for vote in cast_votes]
        tasks.append({"id": len(tasks) + 1, "data": data, "annotations": annotations, "predictions": []})
    return tasks


def _to_annotation(vote: Vote, person: int) -> Task:
    note = {"text": [f"{_PARTICIPANT}{vote.participant}", vote.origin]}
    result = [
        {
            "id": f"{vote.item_id}-{person}-{name}", "from_name": name, "to_name": "source_image", "type": "choices",
            "value": {"choices": [f"Model {vote.systems.index(system) + 1}"]}, "meta": note,
        }
        for name, system in ((BEST, vote.best), (WORST, vote.worst))
        if system is not None
    ]  # fmt: skip
    return {
        "completed_by": person, "result": result, "was_cancelled": False, "ground_truth": False,
        "created_at": vote.stored_at, "lead_time": vote.seconds,
    }  # fmt: skip


def iterate_answers(study: Study, values: object, where: str) -> Iterator[Row]:
    """Read annotated tasks.

    Args:
        study: The study that the tasks are of.
        values: What Label Studio exported as JSON.
        where: Name of the file, for messages.

    Yields:
        A row an annotation: the answer, or why there is none.

    Raises:
        InputError: It is no such export.
    """
    if not isinstance(values, list):
        raise InputError(f"{where}: expected the JSON of Label Studio, a list of tasks")
    for task_number, task in enumerate(values, start=1):
        # JSON-MIN has one line an annotation, without who gave it and when.
        if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
            raise InputError(
                f"{where}: task {task_number} has no list of annotations; export it from Label Studio as JSON, not as "
                "JSON-MIN or CSV"
            )
        data = task.get("data")
        for number, annotation in enumerate(task["annotations"], start=1):
            where_inside = f"task {task_number}, annotation {number}"
            yield _read_annotation(study, data if isinstance(data, dict) else {}, annotation, where_inside)


def _read_annotation(study: Study, data: Json, annotation: object, row_name: str) -> Row:
    try:
        return Row(row_name, _to_answer(study, data, annotation))
    except NoVoteError as error:
        return Row(row_name, reason=error.reason, detail=error.detail)


def _to_answer(study: Study, data: Json, annotation: object) -> Answer:
    """Read an annotation; raise :class:`NoVoteError` where it is none of this study."""
    if not isinstance(annotation, dict):
        raise NoVoteError("no annotation", f"{annotation!r:.60}")
    if data.get("study_id") != study.study_id or not isinstance(data.get("item_id"), str):
        raise NoVoteError("foreign task", f"study_id {data.get('study_id')!r:.60}")
    # Someone opened the task and decided not to answer.
    if annotation.get("was_cancelled"):
        raise NoVoteError("skipped", "was_cancelled is true")
    entries = annotation.get("result")
    results = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    # The order says whose a choice is, so that it is found first.
    systems = _find_order(study, data)
    participant, origin = _find_person(study, annotation, results)
    return Answer(
        participant=participant,
        item_id=data["item_id"],
        systems=tuple(systems),
        best=_find_choice(results, BEST, systems),
        worst=_find_choice(results, WORST, systems),
        seconds=_to_seconds(annotation.get("lead_time")),
        stored_at=str(annotation.get("created_at") or ""),
        origin=origin,
    )


def _to_seconds(value: object) -> float | None:
    """Return a time; None where it is none, such as a whole number that no float holds."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def _find_choice(results: Sequence[Json], name: str, systems: Sequence[str]) -> str | None:
    """Find the system that was chosen in a group; None where none was."""
    texts: list[str] = []
    for entry in results:
        value = entry.get("value")
        if entry.get("from_name") == name and isinstance(value, dict) and isinstance(value.get("choices"), list):
            texts += [str(text) for text in value["choices"]]
    if len(texts) > 1:
        raise NoVoteError("several choices", f"{name}: {', '.join(texts):.100}")
    # The labels of the page, of which a task shows as many as it has systems.
    models = {f"Model {number}": system for number, system in enumerate(systems, start=1)}
    if texts and texts[0] not in models:
        raise NoVoteError("unknown choice", f"{name}: {texts[0]!r:.60}")
    return models[texts[0]] if texts else None


def _find_order(study: Study, data: Json) -> Sequence[str]:
    """Find whose Model 1, 2, … are."""
    item = next((item for item in study.items if item.item_id == data["item_id"]), None)
    if item is None:
        raise NoVoteError("unknown item", f"{data['item_id']!r:.60}")
    systems, number = data.get("systems"), data.get("order")
    # Votes that were exported name the systems, blind tasks the number of their order.
    if isinstance(systems, list):
        if sorted(map(str, systems)) != sorted(item.candidates):
            raise NoVoteError("other systems", f"{systems!r:.100}")
        return [str(system) for system in systems]
    if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
        return order_systems(study, item, number)
    raise NoVoteError("unknown order", f"order {number!r:.60}")


def _find_person(study: Study, annotation: Json, results: Sequence[Json]) -> tuple[str, str]:
    """Find who annotated: the participant of an exported vote, else a name that does not say who it is."""
    for entry in results:
        meta = entry.get("meta")
        texts = meta.get("text") if isinstance(meta, dict) else None
        if isinstance(texts, list) and len(texts) == 2 and str(texts[0]).startswith(_PARTICIPANT):
            return str(texts[0]).removeprefix(_PARTICIPANT), str(texts[1])
    # Newer exports have a mapping with id and address; an address is personal, its digest is not.
    person = annotation.get("completed_by")
    person = person.get("id", person.get("email", "")) if isinstance(person, dict) else person
    if person is None or person == "":
        return "", ""
    digest = hashlib.sha256(f"{study.study_id}\n{person}".encode()).hexdigest()[:12]
    return f"label-studio-{digest}", ""
