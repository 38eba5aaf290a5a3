"""Define what ``judge`` is asked: whose predictions, which judge, how much of it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.evaluation.judge.requests import Detail, JudgeSettings
from wm.evaluation.subsets import SubsetColumn
from wm.paths import INPUT, InputPath, OptionalInputPath, OutputPath

NANO_JUDGE = "nano:oracle"
"""Name of the judge that reads images of the nano world back into states."""


class JudgeRecipe(Recipe):
    """Whose predictions, which judge. The API's key is read from the environment and written nowhere."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            *("base_url", "api_key_variable", "mode", "structured_output", "concurrency", "max_attempts"),
            *("store", "max_retries", "timeout_s", "max_cost", "input_price", "output_price", "poll_s"),
        }
    )

    predictions: Annotated[list[InputPath], INPUT] = Field(min_length=1)
    """Prediction sets: output folders of wm evaluate or wm collect."""
    triplets: InputPath
    """Folder of the bench's triplets, which have sources and actions."""
    out: OutputPath
    """Output folder: judgements/*.jsonl, scores.parquet, run.json."""
    store: OutputPath = ""
    """Folder of judgements that several runs share, one at a time, so that none asks what another one asked; empty:
    out."""
    systems: list[str] = []
    """Judge these systems only; empty: all."""
    copy_baseline: bool = True
    """Judge the source as its own prediction too, as system Copy: a judge must give it about 0."""
    num_candidates: list[int] = Field(default=[1], min_length=1)
    """Judge, for each K, the one of the first K candidates that the verifier likes best; of sets without a verifier
    their first candidate."""
    subset: SubsetColumn = "class_label"
    """Column whose values are the table's columns."""
    limit: int = Field(default=0, ge=0)
    """Judge so many triplets, spread evenly over the bench; 0: all."""
    repeats: int = Field(default=1, ge=1, le=100)
    """Ask so many times about every prediction."""
    source_view: Literal["as_seen", "full"] = "as_seen"
    """as_seen: where a prediction shows the centre-cropped square only, the source is cropped likewise, so that the
    crop is not judged as an edit. full: the source as it is."""
    model: str = Field(default="gpt-4o-2024-11-20", min_length=1)
    """Name of the judge at the endpoint; the default is the paper's. nano:oracle: the nano world's own judge, which is
    served on loopback while the command runs and costs nothing."""
    base_url: str = ""
    """Of an endpoint that speaks OpenAI's chat API; empty: OpenAI's own."""
    api_key_variable: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Environment variable with the API key; an endpoint of your own (base_url) may need none."""
    template: OptionalInputPath = None
    """Text file with {instruction} in it; left out: ours, with the parts of the paper's Figure 10."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Left out: the API's default, as in the paper."""
    max_tokens: int = Field(default=300, ge=16, le=16_384)
    """Of a reply."""
    detail: Detail = "auto"
    """How closely the endpoint looks at images."""
    structured_output: Literal["auto", "off"] = "auto"
    """auto: the endpoint is asked for JSON of a fixed form, and no longer once it refuses that. off: never asked."""
    mode: Literal["online", "batch"] = "online"
    """batch: through OpenAI's Batch API, for half the price, within 24 hours."""
    concurrency: int = Field(default=8, ge=1, le=512)
    """Requests at a time."""
    max_attempts: int = Field(default=3, ge=1, le=20)
    """Ask so often until a reply holds two scores; then the prediction is counted as unjudged, with the reason."""
    max_retries: int = Field(default=8, ge=0, le=50)
    """Repeat a request so often after 429, 5xx or a lost connection, with growing waits, Retry-After honoured."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Of a request."""
    poll_s: float = Field(default=30.0, gt=0)
    """Between two looks at a batch."""
    max_cost: float = Field(default=0.0, ge=0)
    """Stop before more than this is spent, in the prices' currency, all runs into this folder together; 0: no limit."""
    input_price: float = Field(default=2.5, ge=0)
    """Of a million input tokens; the default is OpenAI's for gpt-4o-2024-11-20, in dollars."""
    output_price: float = Field(default=10.0, ge=0)
    """Of a million output tokens."""

    @field_validator("num_candidates")
    @classmethod
    def _check_num_candidates(cls, values: list[int]) -> list[int]:
        if min(values) < 1 or len(set(values)) != len(values):
            raise ValueError(f"expected different numbers from 1 up, got {values}")
        return values

    @field_validator("predictions", "systems")
    @classmethod
    def _check_distinct(cls, values: list[str]) -> list[str]:
        if len(set(values)) != len(values):
            raise ValueError("expected different names")
        return values

    @model_validator(mode="after")
    def _check_nano_judge(self) -> "JudgeRecipe":
        if self.model == NANO_JUDGE and (self.base_url or self.mode == "batch"):
            raise ValueError(
                f"model = {NANO_JUDGE!r} is served by the command itself: leave out base_url and batch mode"
            )
        return self

    def settings(self) -> JudgeSettings:
        """Build what decides a reply besides template, images and action."""
        return JudgeSettings(
            self.model, self.detail, self.max_tokens, self.temperature, self.structured_output == "auto"
        )

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Compute a price in the currency of the prices.

        Args:
            input_tokens: Of text and images.
            output_tokens: Of replies.
        """
        if self.model == NANO_JUDGE:
            return 0.0
        share = 0.5 if self.mode == "batch" else 1.0
        return share * (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6
