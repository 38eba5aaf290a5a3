"""Define what ``contradict`` is asked: whose actions, which model."""

from typing import ClassVar

from pydantic import Field, model_validator

from jobs.shared.devices import DType
from wm.config import Recipe
from wm.paths import InputPath, OptionalInputPath, OutputPath

PAPERS_MODEL = "Qwen/Qwen2-7B-Instruct"


class LocalModelSettings(Recipe):
    """Where a local model runs."""

    device: str = "cpu"
    """Device of torch, such as cpu or cuda:1."""
    dtype: DType = "float32"
    """Type of the weights; bfloat16 halves the memory."""


class ContradictRecipe(Recipe):
    """Whose actions, which model. The API's key is read from the environment and written nowhere."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            *("base_url", "api_key_variable", "concurrency", "max_attempts", "store", "resources"),
            *("max_retries", "timeout_s", "max_cost", "input_price", "output_price"),
        }
    )

    triplets: InputPath
    """Folder of the bench's triplets, which have actions."""
    out: OutputPath
    """Output folder: counterfactuals.jsonl, rejects/*.parquet, replies/*.jsonl, README.md, run.json."""
    store: OutputPath = ""
    """Folder of replies that several runs share, one at a time, so that none asks what another one asked; empty:
    out."""
    limit: int = Field(default=0, ge=0)
    """Use so many triplets, spread evenly over the bench; 0: all."""
    model: str = Field(default=PAPERS_MODEL, min_length=1)
    """Name of an instruction model at the endpoint; the default is the paper's."""
    base_url: str = ""
    """Of an endpoint that speaks OpenAI's chat API; empty: OpenAI's own."""
    model_folder: OptionalInputPath = None
    """Folder of an instruction model with a chat template, which runs in this process instead of an endpoint."""
    api_key_variable: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Environment variable with the API key; an endpoint of your own (base_url) may need none."""
    template: OptionalInputPath = None
    """Text file with {instruction} in it; left out: ours, which the card shows."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Left out: the default of the endpoint, or of the folder's generation_config.json. 0 repeats a bad reply."""
    max_tokens: int = Field(default=64, ge=8, le=4096)
    """Of a reply; one that is cut off is not used."""
    concurrency: int = Field(default=8, ge=1, le=512)
    """Requests at a time; a local model answers one after the other."""
    max_attempts: int = Field(default=3, ge=1, le=20)
    """Ask so often until a reply is another action than the given one; then the triplet is a reject, with the
    reason."""
    max_retries: int = Field(default=8, ge=0, le=50)
    """Repeat a request so often after 429, 5xx or a lost connection, with growing waits, Retry-After honoured."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Of a request."""
    max_cost: float = Field(default=0.0, ge=0)
    """Stop before more than this is spent, in the prices' currency, all runs into this folder together; 0: no limit."""
    input_price: float = Field(default=0.0, ge=0)
    """Of a million input tokens."""
    output_price: float = Field(default=0.0, ge=0)
    """Of a million output tokens."""
    resources: LocalModelSettings = LocalModelSettings()
    """Where model_folder runs."""

    @model_validator(mode="after")
    def _check_model(self) -> "ContradictRecipe":
        if self.model_folder and self.base_url:
            raise ValueError("model_folder runs in this process, base_url is an endpoint: give one of them")
        if self.model_folder and self.model != PAPERS_MODEL:
            raise ValueError(f"model = {self.model!r:.100} is a name at an endpoint: leave it out beside model_folder")
        if not self.model_folder and not self.base_url and self.model == PAPERS_MODEL:
            raise ValueError(
                f"model = {PAPERS_MODEL!r} is not served by OpenAI: give base_url of an endpoint that serves it, "
                "model_folder, or the name of a model of OpenAI's"
            )
        # A limit in a currency that has no prices would limit nothing.
        if self.max_cost and not (self.input_price or self.output_price):
            raise ValueError("max_cost needs input_price and output_price, which are 0")
        if self.temperature == 0 and self.max_attempts > 1 and self.model_folder:
            raise ValueError("temperature = 0 gives the same reply at every attempt: give max_attempts = 1")
        return self

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Compute a price in the currency of the prices.

        Args:
            input_tokens: Of requests.
            output_tokens: Of replies.
        """
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6
