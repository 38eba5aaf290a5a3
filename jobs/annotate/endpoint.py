"""Propose actions by a vision-language model that somebody else serves over OpenAI's chat API (vLLM, SGLang, …).

A request a pair: both images as PNG, then the question. Waits and repeats are those of OpenAI's client.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, model_validator

from jobs.shared.chat.client import ChatClient, Reply, UnansweredError
from wm.config import Recipe
from wm.errors import InputError
from wm.images import Pixels, encode_png

if TYPE_CHECKING:
    from wm.dynamics import Observation, Sampling, ScoredAction

_GREY = np.full((64, 64, 3), 128, np.uint8)
"""What a server is tried with, before any work."""


class EndpointSettings(Recipe):
    """A model behind an endpoint that speaks OpenAI's chat API and returns log-probabilities; instead of ``idm``. Its
    key is read from the environment and written nowhere."""

    base_url: str = ""
    """Of the endpoint, such as http://HOST:8000/v1; empty: the model is idm, and is loaded by the annotators."""
    model: str = ""
    """Name of the model at the endpoint; the name in the column annotator too."""
    api_key_variable: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Environment variable with the API key; an endpoint of your own may need none."""
    concurrency: int = Field(default=16, ge=1, le=512)
    """Requests at a time, of each annotator."""
    max_retries: int = Field(default=8, ge=0, le=50)
    """Repeat a request so often after 429, 5xx or a lost connection, with growing waits, Retry-After honoured."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Of a request."""

    @model_validator(mode="after")
    def _check_both(self) -> Self:
        if bool(self.base_url) != bool(self.model):
            raise ValueError("base_url and model belong together")
        # Recipes are recorded, and the address is in messages.
        address = urlsplit(self.base_url)
        if address.username or address.password:
            raise ValueError(
                "base_url holds a name or a password, which run.json would show; put the key into the environment "
                f"variable {self.api_key_variable}"
            )
        return self


class EndpointProposer:
    """The part of :class:`wm.dynamics.protocols.InverseModel` that annotation needs, over an endpoint."""

    def __init__(self, settings: EndpointSettings, prompt: str) -> None:
        """Build the client; nothing is asked yet.

        Args:
            settings: The endpoint.
            prompt: The question, after the two images; empty: the one of this package.

        Raises:
            InputError: ``base_url`` is no address.
        """
        from wm.models.pixels.chats import PROMPT

        # The same question as a model that is loaded here gets.
        self._settings, self._prompt = settings, prompt or PROMPT
        self._client = ChatClient(settings, settings.base_url)

    @property
    def model_id(self) -> str:
        """Name for records: the model's at the endpoint, whose weights nobody here has seen."""
        return self._settings.model

    def propose(
        self,
        sources: "Sequence[Observation]",
        targets: "Sequence[Observation]",
        *,
        sampling: "Sampling",
        seeds: Sequence[int],
        max_new_tokens: int = 32,
        batch_size: int | None = None,
    ) -> "list[ScoredAction]":
        """Propose one action a pair, some requests at a time.

        Args:
            sources: Images before.
            targets: Images after, as many.
            sampling: How a token is sampled.
            seeds: One a pair.
            max_new_tokens: Longest action; a longer answer is cut behind the next token, which says that it was cut.
            batch_size: Bound on the requests at a time, besides the endpoint's.

        Returns:
            Actions with the sum of the log-probabilities that the endpoint reports, and their number. Whether the end
            is among them is the endpoint's choice.

        Raises:
            InputError: No request can succeed, or one got no answer after all its repeats.
        """
        from wm.dynamics.observation import pixels_of

        # Each image once: a key-frame is usually in two pairs.
        # In the order in which they come, so that bodies are the same in every run.
        images = list(dict.fromkeys([*sources, *targets]))
        uris = {image: to_data_uri(pixels) for image, pixels in zip(images, pixels_of(images), strict=True)}
        bodies = [
            self.build_body([uris[source], uris[target]], sampling, seed, max_new_tokens)
            for source, target, seed in zip(sources, targets, seeds, strict=True)
        ]
        # No queue of its own at the server: what waits there longer than timeout_s would be asked again.
        limit = min(self._settings.concurrency, batch_size or self._settings.concurrency)
        with ThreadPoolExecutor(limit, thread_name_prefix="endpoint") as pool:
            try:
                return list(pool.map(self._ask, bodies))
            except BaseException:
                # What waits would ask in vain.
                pool.shutdown(cancel_futures=True)
                raise

    def check(self) -> None:
        """Ask once about two grey images, for one token.

        Raises:
            InputError: The endpoint cannot be asked, or returns no log-probabilities.
        """
        from wm.sampling.texts import GREEDY

        self._ask(self.build_body(list(repeat(to_data_uri(_GREY), 2)), GREEDY, 0, 1))

    def build_body(
        self, uris: Sequence[str], sampling: "Sampling", seed: int, max_new_tokens: int
    ) -> Mapping[str, object]:
        """Build the body of a request.

        Args:
            uris: Both images, as data URIs.
            sampling: How a token is sampled.
            seed: Of the sampling.
            max_new_tokens: Longest action.
        """
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        body: dict[str, object] = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": self._prompt}]}],
            # One more, by which an answer that was cut is longer than an action may be.
            "max_tokens": max_new_tokens + 1,
            "logprobs": True,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
        }
        if not sampling.greedy:
            body |= {"seed": seed, "top_p": sampling.top_p}
            # No part of OpenAI's own API, but of the servers that people run themselves.
            body |= {"extra_body": {"top_k": sampling.top_k}} if sampling.top_k else {}
        return body

    def _ask(self, body: Mapping[str, object]) -> "ScoredAction":
        where = self._settings.base_url
        try:
            reply = self._client.ask(body)
        except UnansweredError as error:
            raise InputError(
                f"{where} gave no answer after {self._settings.max_retries} repeats: {error}; what is written is kept, "
                "the same command resumes"
            ) from error
        # The next pairs would be refused alike.
        if reply.refusal:
            raise InputError(f"{where} refuses a request about two images: {reply.refusal}")
        return _to_action(reply, where)


def check_endpoint(settings: EndpointSettings, prompt: str) -> None:
    """Ask an endpoint once, before any work; see :meth:`EndpointProposer.check`.

    Args:
        settings: The endpoint.
        prompt: The question.
    """
    EndpointProposer(settings, prompt).check()


def to_data_uri(pixels_HWC: Pixels) -> str:
    """Encode an image as a data URI of PNG.

    Args:
        pixels_HWC: uint8 RGB.
    """
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels_HWC)).decode()}"


def _to_action(reply: Reply, where: str) -> "ScoredAction":
    from wm.dynamics import ScoredAction

    text, logprobs = (reply.text or "").strip(), reply.logprobs
    # Without them a triplet would have no likelihood to choose by, and none may be made up.
    if logprobs is None or (text and not logprobs):
        raise InputError(
            f"{where} returns no log-probabilities (choices[0].logprobs.content), which a triplet's likelihood is made "
            "of; give an endpoint that does, such as vLLM's or SGLang's"
        )
    # Of an answer without words only the end is there, which an endpoint may leave out: it is a reject anyway.
    return ScoredAction(text, sum(logprobs) if logprobs else math.nan, max(1, len(logprobs)))
