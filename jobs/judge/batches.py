"""Ask through OpenAI's Batch API: files of requests, answered within 24 hours for half the price.

Batches that were sent are listed in ``batches.json`` of the store's folder before anything waits for them, so that a
killed run finds them again instead of sending its requests twice. Several runs may share a store: a batch stays listed
until its replies are stored, whichever run asked for them.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Final, NotRequired, TypeAlias, TypedDict, overload

from jobs.judge.session import JudgeSession
from jobs.shared.chat.asking import Pending, spent_so_far
from jobs.shared.chat.budget import CostReachedError
from jobs.shared.chat.client import ChatClient, Reply, to_reply
from wm.errors import InputError
from wm.evaluation.judge.items import JudgeItem
from wm.evaluation.judge.store import JudgementStore
from wm.files.mirror import fetch, publish, remove
from wm.files.transfer import BucketError
from wm.runs import parse_json, write_json

# OpenAI's guide to the Batch API: at most 50,000 requests and 200 MB a file. A margin is left.
_MAX_REQUESTS = 50_000
_MAX_BYTES = 190_000_000
_ENDPOINT: Final = "/v1/chat/completions"
_FINISHED = {"completed", "failed", "expired", "cancelled"}
Question: TypeAlias = Pending[JudgeItem]


class _BatchFailedError(Exception):
    """A batch of which no request was answered."""


class SentBatch(TypedDict):
    """A batch on its way."""

    id: str
    keys: list[str]
    attempts: NotRequired[list[int]]
    """How often each key had failed when it was sent; files of earlier versions lack it."""


def ask_in_batches(
    session: JudgeSession, pending: Sequence[Question], on_settled: Callable[[], object]
) -> list[Question]:
    """Send all questions in batches, wait, and repeat those whose reply held no scores.

    Args:
        session: Its store is open for writing; the store's folder holds ``batches.json``.
        pending: The questions.
        on_settled: Called once a question is answered or given up.

    Returns:
        Questions that got no answer; asked again by the next run.

    Raises:
        CostReachedError: The questions may cost more than is left of ``max_cost``; none of them is sent.
        InputError: No request can succeed, or a batch failed.
    """
    path = batches_file(session.store)
    waiting, unanswered = {question.key: question for question in pending}, dict[str, Question]()
    while waiting:
        # 1. Batches of a run that was stopped are waited for, and not sent again.
        batches = load_sent(path)
        keys_underway = {key for batch in batches for key in batch["keys"]}
        rest = [question for key, question in waiting.items() if key not in keys_underway]
        _check_cost(session, list(waiting.values()))
        for file, keys in _write_files(session, rest):
            attempts = [waiting[key].attempts for key in keys]
            batches.append({"id": _send(session.client, file), "keys": keys, "attempts": attempts})
            _write_sent(path, batches)
        # 2. Each batch's replies are stored before its name is removed.
        for batch in [batch for batch in batches if any(key in waiting for key in batch["keys"])]:
            try:
                replies = _receive(session.client, batch, session.recipe.poll_s)
            except _BatchFailedError as error:
                # Forgotten, so that the next run sends its questions anew.
                batches.remove(batch)
                _write_sent(path, batches)
                raise InputError(f"{error}; the same command sends it again") from error
            for key in _store_replies(session, batch, replies):
                _settle(session, waiting, unanswered, key, is_answered=replies.get(key) is not None)
                if key not in waiting and key not in unanswered:
                    on_settled()
            # The replies first: a name that is removed is not asked for again.
            session.store.flush()
            batches.remove(batch)
            _write_sent(path, batches)
    # 3. What other runs into this store sent was paid for as well.
    _receive_of_others(session, path)
    return list(unanswered.values())


def batches_file(store: JudgementStore) -> Path:
    """Return the file that lists a store's batches."""
    return store.folder / "batches.json"


def load_sent(path: Path) -> list[SentBatch]:
    """List the batches on their way.

    Args:
        path: See :func:`batches_file`; need not exist.
    """
    try:
        fetch(path)
    except BucketError as error:
        if error.reason != "missing_file":
            raise
        # A copy of a list that another node has worked off.
        path.unlink(missing_ok=True)
    if not path.is_file():
        return []
    batches: list[SentBatch] = parse_json(path.read_bytes(), str(path))
    return batches


def check_none_underway(session: JudgeSession, pending: Sequence[Question]) -> None:
    """Refuse to ask one by one what is on its way in a batch.

    Args:
        session: Its store's folder may hold ``batches.json``.
        pending: The questions.

    Raises:
        InputError: Some of them would be paid for twice.
    """
    path = batches_file(session.store)
    keys_underway = {key for batch in load_sent(path) for key in batch["keys"]}
    count = sum(question.key in keys_underway for question in pending)
    if count:
        raise InputError(
            f"{count:,} of {len(pending):,} questions are on their way in batches ({path}); mode=batch waits for them, "
            "without that file they are asked and paid for again"
        )


def _write_sent(path: Path, batches: Sequence[SentBatch]) -> None:
    # A list with entries is never removed: each stands for replies that were paid for.
    if batches:
        write_json(path, list(batches))
        publish(path)
    else:
        remove(path)


def _receive_of_others(session: JudgeSession, path: Path) -> None:
    """Store replies of batches that this run need not wait for, where they are finished; others stay listed."""
    batches = load_sent(path)
    for batch in list(batches):
        try:
            replies = _receive(session.client, batch, None)
        except _BatchFailedError:
            # Whoever needs its questions sends them anew.
            replies = {}
        except InputError:
            # Perhaps another endpoint's: its own run will get it.
            continue
        if replies is not None:
            _store_replies(session, batch, replies)
            session.store.flush()
            batches.remove(batch)
            _write_sent(path, batches)


def _store_replies(session: JudgeSession, batch: SentBatch, replies: Mapping[str, Reply | None]) -> list[str]:
    """Store the replies of a batch, whichever run asked for them; returns all its keys."""
    store = session.store
    for key, attempts in zip(batch["keys"], batch.get("attempts") or repeat(None), strict=False):
        reply = replies.get(key)
        # A run that was killed while it stored this batch left some lines.
        is_stored = key in store.answered or (attempts is not None and len(store.failures.get(key, ())) > attempts)
        if reply is not None and not is_stored:
            store.append(session.build_keyed_line(key, reply))
    return batch["keys"]


def _settle(
    session: JudgeSession,
    waiting: dict[str, Question],
    unanswered: dict[str, Question],
    key: str,
    *,
    is_answered: bool,
) -> None:
    """Take a question from ``waiting`` unless it is to be asked again; another run's key is left alone."""
    question = waiting.pop(key, None)
    if question is None or key in session.store.answered:
        return
    # A batch that expired has no line for it.
    if not is_answered:
        unanswered[key] = question
        return
    attempts = len(session.store.failures.get(key, ()))
    if attempts < session.recipe.max_attempts:
        waiting[key] = Pending(key, question.item, attempts)


def _check_cost(session: JudgeSession, questions: Sequence[Question]) -> None:
    """Raise :class:`CostReachedError` if questions may cost too much: a batch cannot be stopped halfway."""
    price, spent = (
        sum(session.max_price(question.item) for question in questions),
        spent_so_far(session.store, session.recipe),
    )
    max_cost = session.recipe.max_cost
    if max_cost and spent + price > max_cost:
        raise CostReachedError(
            f"max_cost = {max_cost:g}: {len(questions):,} questions may cost {price:.4f}, {spent:.4f} are spent; "
            "nothing further was sent"
        )


def _write_files(session: JudgeSession, questions: Sequence[Question]) -> Iterator[tuple[Path, list[str]]]:
    """Write the requests into files within the limits; each is removed once the caller asks for the next one."""
    with tempfile.TemporaryDirectory(prefix="wm-judge-") as folder:
        path, keys, size = Path(folder) / "requests.jsonl", list[str](), 0
        for question in questions:
            # The key comes back with the reply, whatever the order.
            request = {"custom_id": question.key, "method": "POST", "url": _ENDPOINT}
            line = json.dumps(request | {"body": session.body(question)}) + "\n"
            if keys and (len(keys) == _MAX_REQUESTS or size + len(line) > _MAX_BYTES):
                yield path, keys
                path.unlink()
                keys, size = [], 0
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
            keys.append(question.key)
            size += len(line)
        if keys:
            yield path, keys


def _send(client: ChatClient, path: Path) -> str:
    import openai

    # OpenAI's client repeats both where that helps.
    try:
        file = client.client.files.create(file=path, purpose="batch")
        return client.client.batches.create(input_file_id=file.id, endpoint=_ENDPOINT, completion_window="24h").id
    except openai.APIError as error:
        cause = client.explain(error)
        # A file that was not sent costs nothing; the run ends with what it has.
        raise cause if isinstance(cause, InputError) else InputError(f"no batch could be sent: {cause}") from error


@overload
def _receive(client: ChatClient, entry: SentBatch, poll_s: float) -> dict[str, Reply | None]: ...


@overload
def _receive(client: ChatClient, entry: SentBatch, poll_s: None) -> dict[str, Reply | None] | None: ...


def _receive(client: ChatClient, entry: SentBatch, poll_s: float | None) -> dict[str, Reply | None] | None:
    """Wait for a batch and return the reply to each request, None for one that was not answered.

    Without ``poll_s`` nothing is waited for: None for a batch that is not finished.
    """
    import openai

    replies: dict[str, Reply | None] = {}
    try:
        batch = client.client.batches.retrieve(entry["id"])
        while batch.status not in _FINISHED:
            if poll_s is None:
                return None
            time.sleep(poll_s)
            batch = client.client.batches.retrieve(entry["id"])
        if batch.status == "failed":
            problems = "; ".join(str(item.message) for item in (batch.errors.data or [])) if batch.errors else ""
            raise _BatchFailedError(f"batch {entry['id']} failed: {problems:.300}")
        # Both files have a line a request: replies, and requests that were refused.
        for file_id in (batch.output_file_id, batch.error_file_id):
            data = client.client.files.content(file_id).content if file_id else b""
            for number, text in enumerate(data.splitlines(), 1):
                line = parse_json(text, f"line {number} of file {file_id} of batch {entry['id']}")
                replies[str(line.get("custom_id"))] = _to_reply(line)
    except openai.APIError as error:
        cause = client.explain(error)
        raise cause if isinstance(cause, InputError) else InputError(f"batch {entry['id']}: {cause}") from error
    return replies


def _to_reply(line: dict[str, Any]) -> Reply | None:
    response = line.get("response") or {}
    body = response.get("body") or {}
    # Each line has a status of its own, as a single request would.
    status = response.get("status_code")
    if status == 200:
        return to_reply(body)
    # A refused request would be refused again; anything else may succeed another time.
    if status is not None and 400 <= status < 500 and status != 429:
        message = (body.get("error") or {}).get("message") or "status " + str(status)
        return Reply(None, refusal=f"bad request: {message:.200}")
    return None
