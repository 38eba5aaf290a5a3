"""Define the settings of an annotating actor, and the recipe's table ``sampling``: how an action is taken from the
inverse model's distribution. Brings no torch, so that the driver can read them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from jobs.annotate.endpoint import EndpointSettings
from wm.config import Recipe
from wm.datasets.filters import Filters
from wm.files.mirror import on_this_node

if TYPE_CHECKING:
    from wm.sampling.noise import Sampling  # brings torch, which the driver need not load


class ActionSampling(Recipe):
    """One action a pair: the model's greedy one, or one sampled from it (the paper's equation 1)."""

    temperature: float = Field(default=0.0, ge=0)
    """0: greedy, the likeliest token in every position. 1: an action sampled from the inverse model as it is, which is
    what equation 1 of the paper says; other values divide the logits. The stored action_logprob is that of the action
    under the model as it is, whatever the temperature."""
    top_k: int = Field(default=0, ge=0)
    """Only the k likeliest tokens; 0: all. Needs a temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the fewest likeliest tokens whose probabilities sum to this or more; 1: all. Needs a temperature."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the sampling. Each pair has noise of its own, made of seed and triplet_id: neither its batch, nor workers, nor
    a resumed run change its action."""

    @model_validator(mode="after")
    def _check_temperature(self) -> Self:
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p do nothing without a temperature; give temperature=1")
        return self

    def to_sampling(self) -> "Sampling":
        """Convert to the settings of a text's sampling."""
        from wm.sampling.noise import Sampling

        # 0 cannot divide logits: it stands for the limit, the likeliest token.
        if not self.temperature:
            return Sampling(greedy=True)
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class AnnotatorSettings:
    """Settings of an annotator; paths are absolute, because a worker's folder is not the driver's. ``idm`` is empty
    where an endpoint proposes."""

    out: str
    idm: str
    base: str | None
    codec: str | None
    prompt: str
    endpoint: EndpointSettings
    dataset: str
    split: str
    license: str
    min_motion_px: float
    filters: Filters
    sampling: ActionSampling
    max_new_tokens: int
    codec_batch_size: int
    idm_batch_size: int
    threads: int
    device: str
    dtype: str

    def on_this_node(self) -> "AnnotatorSettings":
        """Return the settings with this node's paths; who loads a model of a bucket fetches what it needs."""
        base, codec = (None if path is None else str(on_this_node(path)) for path in (self.base, self.codec))
        # Empty where an endpoint proposes.
        idm = str(on_this_node(self.idm)) if self.idm else ""
        return replace(self, out=str(on_this_node(self.out)), idm=idm, base=base, codec=codec)
