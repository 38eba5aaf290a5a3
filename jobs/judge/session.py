"""Say what a judge is asked about each prediction, what that costs, and what a reply says."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.judge.recipe import JudgeRecipe
from jobs.shared.chat.asking import Pending, build_reply_line
from jobs.shared.chat.client import ChatClient, Reply
from wm.evaluation.judge.items import Bench, JudgeItem
from wm.evaluation.judge.replies import ReplyError, parse_reply
from wm.evaluation.judge.requests import JudgeSettings, build_body, count_image_tokens, count_text_tokens
from wm.evaluation.judge.store import JudgementLine, JudgementStore
from wm.evaluation.judge.template import Template


@dataclass(frozen=True)
class JudgeSession:
    """What asking needs: the images, what is asked about them, whom, and where replies go."""

    bench: Bench
    template: Template
    settings: JudgeSettings
    client: ChatClient
    store: JudgementStore
    recipe: JudgeRecipe

    @property
    def limits(self) -> JudgeRecipe:
        """Return how much is asked."""
        return self.recipe

    def body(self, question: Pending[JudgeItem]) -> dict[str, object]:
        """Build the body of the request about an item; its images are read for it."""
        images = self.bench.images(question.item)
        return build_body(self.bench.actions[question.item.triplet_id], *images, self.template, self.settings)

    def max_price(self, item: JudgeItem) -> float:
        """Estimate the price of a request about an item, its reply as long as may be."""
        return self.recipe.cost(_count_tokens(item, self.bench, self.template, self.recipe), self.recipe.max_tokens)

    def build_line(self, question: Pending[JudgeItem], reply: Reply) -> JudgementLine:
        """Build the line of a reply.

        Args:
            question: The prediction, and how often it was asked about.
            reply: What the endpoint answered.

        Returns:
            The line, with scores or with the reason why there are none.
        """
        return self.build_keyed_line(question.key, reply)

    def build_keyed_line(self, key: str, reply: Reply) -> JudgementLine:
        """Build the line of a reply to a question of which only the key is known, as it may be another run's.

        Args:
            key: Of the question.
            reply: What the endpoint answered.

        Returns:
            The line, with scores or with the reason why there are none.
        """
        # A line without scores is as valuable as one with them, since it is not asked again for ever.
        line: JudgementLine = {
            **build_reply_line(key, reply),
            "editing_success": None,
            "minimal_editing": None,
            "reasoning": "",
        }
        if line["failure"] is not None:
            return line
        try:
            judgement = parse_reply(reply.text)
        except ReplyError as error:
            line["failure"] = error.reason
            return line
        line["editing_success"], line["minimal_editing"] = judgement.editing_success, judgement.minimal_editing
        line["reasoning"] = judgement.reasoning
        return line


def estimate_cost(
    pending: Sequence[Pending[JudgeItem]], bench: Bench, template: Template, recipe: JudgeRecipe
) -> tuple[int, float]:
    """Estimate what judging costs, every reply as long as may be.

    Args:
        pending: The questions.
        bench: Their images.
        template: Their text.
        recipe: Detail and prices.

    Returns:
        Input tokens, and the price in the currency of the recipe's prices.
    """
    # Replies are counted at their max length: an estimate that is too low would be found when the money is spent.
    tokens = sum(_count_tokens(question.item, bench, template, recipe) for question in pending)
    return tokens, recipe.cost(tokens, len(pending) * recipe.max_tokens)


def _count_tokens(item: JudgeItem, bench: Bench, template: Template, recipe: JudgeRecipe) -> int:
    images = sum(count_image_tokens(*size_px, recipe.detail) for size_px in bench.sizes_px(item))
    return count_text_tokens(bench.actions[item.triplet_id], template) + images
