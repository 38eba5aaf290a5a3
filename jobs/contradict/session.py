"""Say what a model is asked about each action, and what a reply says; answer by a local model."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import cast

from jobs.contradict.recipe import ContradictRecipe
from jobs.shared.chat.asking import Endpoint, Pending, build_reply_line
from jobs.shared.chat.client import Reply
from wm.evaluation.contradictions import (
    ContradictionError,
    ContradictSettings,
    build_body,
    count_tokens,
    parse_contradiction,
)
from wm.evaluation.judge.template import Template
from wm.evaluation.reply_store import ReplyLine, ReplyStore
from wm.models.chat_model import ChatModel
from wm.records import derive_seed


class ContradictionLine(ReplyLine):
    """One reply. Without a contradicting action ``action`` is null and ``failure`` says why."""

    action: str | None


class ContradictionStore(ReplyStore[ContradictionLine]):
    """The replies of a folder."""

    def __init__(self, folder: str) -> None:
        """Read all replies that are there; the folder need not exist."""
        super().__init__(folder, noun="reply", fields=("action",))


@dataclass(frozen=True)
class ContradictSession:
    """What asking needs: what is asked, whom, and where replies go."""

    template: Template
    settings: ContradictSettings
    client: Endpoint
    store: ContradictionStore
    recipe: ContradictRecipe

    @property
    def limits(self) -> ContradictRecipe:
        """Return how much is asked; a local model has one request at a time, whatever the recipe says."""
        return self.recipe.model_copy(update={"concurrency": 1}) if self.recipe.model_folder else self.recipe

    def body(self, question: Pending[str]) -> dict[str, object]:
        """Build the body of the request about an action."""
        body = build_body(question.item, self.template, self.settings)
        # Of its own a local model would give the same reply at every attempt.
        return body | {"seed": derive_seed(question.attempts, question.key)} if self.recipe.model_folder else body

    def max_price(self, item: str) -> float:
        """Estimate the price of a request about an action, its reply as long as may be."""
        return self.recipe.cost(count_tokens(item, self.template), self.recipe.max_tokens)

    def build_line(self, question: Pending[str], reply: Reply) -> ContradictionLine:
        """Build the line of a reply.

        Args:
            question: The action, and how often it was asked about.
            reply: What the model answered.

        Returns:
            The line, with a contradicting action or with the reason why there is none.
        """
        line: ContradictionLine = {**build_reply_line(question.key, reply), "action": None}
        if line["failure"] is not None:
            return line
        try:
            line["action"] = parse_contradiction(reply.text, question.item, is_cut_off=reply.finish_reason == "length")
        except ContradictionError as error:
            line["failure"] = error.reason
        return line


class LocalEndpoint:
    """A model of this process as what answers requests, one at a time."""

    def __init__(self, model: ChatModel, name: str) -> None:
        self._model, self._name = model, name
        self._lock = Lock()

    def ask(self, body: Mapping[str, object]) -> Reply:
        """Answer a request that :meth:`ContradictSession.body` built."""
        # The body is our own, so that its types are known.
        messages = cast("list[dict[str, str]]", body["messages"])
        # One model, one answer at a time.
        with self._lock:
            answer = self._model.answer(
                messages,
                max_tokens=cast(int, body["max_tokens"]),
                temperature=cast("float | None", body.get("temperature")),
                seed=cast(int, body["seed"]),
            )
        return Reply(
            text=answer.text,
            finish_reason="length" if answer.is_cut_off else "stop",
            model=self._name,
            input_tokens=answer.prompt_tokens,
            output_tokens=answer.answer_tokens,
        )
