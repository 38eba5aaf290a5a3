"""Answers of the inverse dynamics model: OpenAI's chat completions, complete or in chunks, and scores.

A *step* is a list of tokens, one of each action that still grows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from serve_apps.openai.chat import ChatRequest
from serve_apps.openai.errors import JsonObject
from serve_apps.openai.score import ScoreRequest
from serve_apps.results import BeliefEntry, Score, TokenEntry

# What OpenAI gives for a token of no probability; JSON has no infinity.
MIN_LOGPROB = -9999.0


@dataclass(frozen=True)
class Head:
    """What every part of an answer begins with. ``created_s``: Unix time. ``prompt_tokens``: those of both images."""

    id: str
    created_s: int
    model: str
    prompt_tokens: int

    def of(self, kind: str) -> JsonObject:
        """Return the fields of an object of OpenAI's."""
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}


def chat_reply(chat: ChatRequest, head: Head, steps: Iterable[Sequence[TokenEntry]]) -> JsonObject:
    """Build OpenAI's ``ChatCompletion``.

    Every choice has the ``logprob`` of its action (nats, the end included), the ``mean_logprob`` and ``tokens``; those
    of the first one are beside ``choices`` too, with the ``seed``.

    Args:
        chat: The request.
        head: What the answer begins with.
        steps: All tokens, step by step.
    """
    tokens = _by_choice(steps)
    choices = [_choice(chat, index, row) for index, row in sorted(tokens.items())]
    # Where clients of one action look for it.
    belief = {name: choices[0][name] for name in ("logprob", "mean_logprob", "tokens")}
    usage = _usage(head, sum(map(len, tokens.values())))
    reply = {"choices": choices, "usage": usage, "system_fingerprint": None, "seed": chat.seed}
    return head.of("chat.completion") | reply | belief


class ChatChunks:
    """The same answer as OpenAI's ``chat.completion.chunk`` objects. The last chunk of a choice has its ``logprob``,
    ``mean_logprob`` and ``tokens``."""

    def __init__(self, chat: ChatRequest, head: Head) -> None:
        self._chat, self._head = chat, head
        self._logprobs: dict[int, list[float]] = {index: [] for index in range(chat.n)}

    def opening(self) -> list[JsonObject]:
        """Who speaks; one for each choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(index, delta, None, None) for index in range(self._chat.n)]

    def step(self, tokens: Sequence[TokenEntry]) -> list[JsonObject]:
        """Return what a step adds; nothing for a token that releases no text where nobody asked for its probability."""
        chunks = []
        for token in tokens:
            index, finish = token["sample"], token["finish"]
            self._logprobs[index].append(token["chosen"]["logprob"])
            logprobs = _logprobs(self._chat, [token])
            # A part of a character has no text yet; with logprobs it is reported all the same.
            if token["released"] or (logprobs and finish is None):
                chunks.append(
                    self._chunk(index, {"content": token["released"]}, logprobs if not finish else None, None)
                )
            # The end has no text of its own: it is a chunk with the reason and the sums.
            if finish is not None:
                last = self._chunk(index, {}, logprobs, finish)
                last["choices"][0] |= _belief(self._logprobs[index])
                chunks.append(last)
        return chunks

    def closing(self) -> list[JsonObject]:
        """Return the count of tokens, for who asked for it."""
        if not self._chat.stream_options.include_usage:
            return []
        usage = _usage(self._head, sum(map(len, self._logprobs.values())))
        return [self._plain() | {"choices": [], "usage": usage}]

    def _plain(self) -> JsonObject:
        return self._head.of("chat.completion.chunk") | {"system_fingerprint": None, "seed": self._chat.seed}

    def _chunk(self, index: int, delta: JsonObject, logprobs: Any, finish: str | None) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return (
            self._plain() | {"choices": [choice]} | ({"usage": None} if self._chat.stream_options.include_usage else {})
        )


def score_reply(request: ScoreRequest, scores: Sequence[Sequence[Score]]) -> JsonObject:
    """Build the answer to a request for scores; its ``best`` is the likeliest of all, of equal ones the first.

    Args:
        request: Its actions.
        scores: A list for each target, with a score for each action.
    """
    # Target by target, as the request has them.
    data: list[JsonObject] = [
        {"target": target, "action": action, "text": request.actions[action]} | _sums(logprob, count)
        for target, row in enumerate(scores)
        for action, (logprob, count) in enumerate(row)
    ]
    return {
        "object": "list",
        "model": request.model,
        "data": data,
        "best": max(data, key=lambda entry: entry["logprob"]),
    }


def _by_choice(steps: Iterable[Sequence[TokenEntry]]) -> dict[int, list[TokenEntry]]:
    tokens: dict[int, list[TokenEntry]] = {}
    for step in steps:
        for token in step:
            tokens.setdefault(token["sample"], []).append(token)
    return tokens


def _choice(chat: ChatRequest, index: int, tokens: Sequence[TokenEntry]) -> JsonObject:
    text = "".join(token["released"] for token in tokens)
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": _logprobs(chat, tokens),
        "finish_reason": tokens[-1]["finish"],
    } | _belief([token["chosen"]["logprob"] for token in tokens])


def _belief(logprobs: Sequence[float]) -> JsonObject:
    return _sums(sum(logprobs), len(logprobs))


def _sums(logprob: float, count: int) -> JsonObject:
    return {"logprob": logprob, "mean_logprob": logprob / count, "tokens": count}


def _usage(head: Head, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": head.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": head.prompt_tokens + completion_tokens,
    }


def _logprobs(chat: ChatRequest, tokens: Sequence[TokenEntry]) -> JsonObject | None:
    if not chat.logprobs:
        return None
    content = [
        _entry(token["chosen"]) | {"top_logprobs": [_entry(belief) for belief in token["top"]]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(belief: BeliefEntry) -> JsonObject:
    """Name what is no text of its own: it has its name in the vocabulary and no bytes: the end, a part of a character,
    white space that comes with the next token. The bytes of the others join to the text."""
    text = belief["text"]
    return {
        "token": text or belief["name"],
        "logprob": max(belief["logprob"], MIN_LOGPROB),
        "bytes": list(text.encode()) if text else None,
    }
