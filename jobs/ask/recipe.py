"""Define what ``ask`` is asked: which questions, which models, and how answers are read."""

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.shared.model_resources import ModelResources
from wm.config import Recipe
from wm.evaluation.questions.items import Benchmark
from wm.evaluation.questions.parsing import Reading
from wm.evaluation.questions.wording import PROMPTS, STYLES, OptionStyle, check_prompt
from wm.evaluation.rows import check_label
from wm.paths import InputPath, ModelPath, OutputPath


class AskedModelEntry(Recipe):
    """A model that is asked: a base, an inverse or forward model, or a vision-language model of transformers."""

    path: ModelPath
    """Model folder: full weights or a PEFT adapter."""
    reads: Literal["codes", "pixels"] = "codes"
    """codes: a family with image codes (Chameleon, Liquid, Emu3, Janus), asked by codes of the image. pixels: any
    vision-language model of transformers with a chat template (Qwen2-VL, LLaVA, Janus, …)."""
    label: str
    """Name in the tables, such as C-FDM. Entries with the same label are runs of other training seeds."""
    seed: int = 0
    """Training seed of this run."""
    base: ModelPath = ""
    """Of an adapter: its base folder; empty: what its manifest says."""

    _check_label = field_validator("label")(check_label)


class AskResources(ModelResources):
    """Where the models run, and how many rows and shards at a time."""

    batch_size: int = Field(default=16, ge=1)
    """Rows in a forward pass: an option is one where images are codes, a question where they are pixels."""


class AskRecipe(Recipe):
    """Which questions, which models, and how answers are read."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources.num_workers"})

    benchmark: Benchmark
    """Format of the questions. spatialmqa: SpatialMQA's JSON lines. embspatial: EmbSpatial-Bench's
    embspatial_bench.json. folder: questions.jsonl of your own, with "image" (a path below data), "question", "options",
    "answer" (an option's text, or its number from 0), and where you like "id", "group" and "source"."""
    data: InputPath
    """Folder of the benchmark."""
    file: str = ""
    """Name of the questions' file below data; empty: test.jsonl, embspatial_bench.json or questions.jsonl."""
    images: InputPath = ""
    """Folder of the images; empty: data, of spatialmqa its folder COCO2017/test2017, COCO2017, test2017 or images where
    there is one."""
    out: OutputPath
    """Folder for answers/, rejects/, questions/, tables.json, README.md and run.json."""
    models: dict[str, AskedModelEntry] = Field(min_length=1)
    """The models, one table each: [models.NAME]."""
    limit: int = Field(default=0, ge=0)
    """Ask so many questions, spread evenly over the file; 0: all."""
    prompt: str = ""
    """Text of the prompt, with {question} and {options}; empty: by option_style, in words of ours with the parts of the
    benchmarks' public scripts. The paper prints none."""
    option_style: Literal["auto", "words", "letters"] = "auto"
    """words: options are listed, and one of them is the answer. letters: a line for each, and its letter is the answer.
    auto: letters for embspatial, words else, as the public scripts ask."""
    reading: Reading = "published"
    """Which reading of an answer is the accuracy; both are in the tables. published: that of the benchmarks' public
    scripts (words: the answer holds the reference or is held by it; letters: the letter that it begins with).
    one_option: it must name exactly one option."""
    max_new_tokens: int = Field(default=16, ge=1, le=512)
    """Longest answer, tokens."""
    shard_questions: int = Field(default=64, ge=1)
    """Questions of one file of answers; a killed run resumes at the next file."""
    resources: AskResources = AskResources()
    """Where the models run, and how many rows and shards at a time."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        return check_prompt(value) if value else value

    @field_validator("file")
    @classmethod
    def _check_file(cls, value: str) -> str:
        # Whatever else is below data stays unread.
        if "/" in value or value in ("..", "."):
            raise ValueError(f"{value!r:.200}: expected the name of a file in data")
        return value

    @model_validator(mode="after")
    def _check_labels(self) -> "AskRecipe":
        names: dict[tuple[str, int], str] = {}
        for name, model in self.models.items():
            other = names.setdefault((model.label, model.seed), name)
            # One of them would be taken for another training run of the other.
            if other != name:
                raise ValueError(f"models.{name} and models.{other} share label {model.label!r} and seed {model.seed}")
        return self

    @property
    def style(self) -> OptionStyle:
        """Return how answers name an option."""
        return STYLES[self.benchmark] if self.option_style == "auto" else self.option_style

    @property
    def prompt_text(self) -> str:
        """Return the prompt that is used."""
        return self.prompt or PROMPTS[self.style]

    @property
    def is_sized(self) -> bool:
        """Return whether the number of tasks is given, or the device of this process is to be used."""
        return "num_workers" in self.resources.model_fields_set or self.resources.device != "cpu"

    def sized_for(self, cpus: float, gpus: float) -> Self:
        """Return the recipe with a task for each CPU of a cluster, where it does not say how many.

        Args:
            cpus: Of the cluster.
            gpus: Not used: a task has no GPU.
        """
        if self.is_sized:
            return self
        resources = self.resources.model_copy(update={"num_workers": max(1, int(cpus))})
        return self.model_copy(update={"resources": resources})
