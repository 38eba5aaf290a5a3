"""Define what the chaos script is asked: for how long, on how many nodes, what is killed how often."""

from typing import Literal, Self, TypeAlias, get_args

from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.paths import OutputPath

Phase: TypeAlias = Literal["annotation", "training", "serving"]
Kind: TypeAlias = Literal["worker", "driver", "node", "job", "bucket"]

KINDS_OF_PHASE: dict[Phase, tuple[Kind, ...]] = {
    "annotation": ("worker", "driver", "node", "job", "bucket"),
    "training": ("worker", "driver", "node", "job", "bucket"),
    # A server's command is no submitted job, and writes nothing.
    "serving": ("worker", "driver", "node"),
}
"""What may be killed in each phase."""


class ChaosRecipe(Recipe):
    """A cluster on this machine, work for it, and what is killed meanwhile."""

    out: OutputPath
    """Folder of the run: out/chaos.json is the report, out/chaos.txt the same as a page of lines; every output of the
    work stays beside them."""
    minutes: float = Field(default=20.0, gt=0, le=24 * 60)
    """How long processes are killed, shared evenly by the phases. What runs then is left to end in peace, and the
    undisturbed runs come before: all of it takes longer."""
    nodes: int = Field(default=3, ge=2)
    """Ray nodes, the head among them. The head's own raylet is not killed: without a store for its state outside of it
    (Redis) its end is that of the cluster."""
    cpus_per_node: int = Field(default=2, ge=1)
    """Logical CPUs of each node."""
    seed: int = Field(default=0, ge=0)
    """Of the times, kinds and choices of the kills. The same seed plans the same kills; which process is the chosen one
    still depends on which there are at that moment."""
    min_gap_s: float = Field(default=8.0, gt=0)
    """Min seconds between two kills."""
    max_gap_s: float = Field(default=25.0, gt=0)
    """Max seconds between two kills; each gap is a random number between the two."""
    phases: list[Phase] = list(get_args(Phase))
    """What runs meanwhile, one after the other: annotation, training, serving."""
    kinds: list[Kind] = list(get_args(Kind))
    """What is killed, always by SIGKILL. worker: a Ray actor that decodes, annotates, trains, serves or speaks HTTP.
    driver: the process of the command. node: a raylet other than the head's with all that runs on it; another node
    takes its place. job: the head's process that watches over a submitted command. bucket: the server of the bucket,
    which is away for some seconds; only with bucket = true."""
    bucket: bool = False
    """Jobs write to s3:// of a server on this machine (moto), and are read back from there; else to folders."""
    videos: int = Field(default=240, ge=4)
    """Clips to annotate."""
    steps: int = Field(default=240, ge=2)
    """Steps to train."""
    clients: int = Field(default=3, ge=1)
    """Clients that ask the server at a time, each again as soon as it is answered; none repeats a request."""
    limit_minutes: float = Field(default=15.0, gt=0)
    """How long work that is not disturbed any more may take until it counts as stuck."""

    @field_validator("phases", "kinds")
    @classmethod
    def _check_items(cls, items: list[str]) -> list[str]:
        if not items or len(set(items)) < len(items):
            raise ValueError("expected different items, at least one")
        return items

    @model_validator(mode="after")
    def _check_gaps(self) -> Self:
        if self.min_gap_s > self.max_gap_s:
            raise ValueError(f"min_gap_s = {self.min_gap_s:g} is more than max_gap_s = {self.max_gap_s:g}")
        # Of each phase: a phase in which nothing is killed would prove nothing.
        for phase in self.phases:
            if not self.kinds_of(phase):
                names = ", ".join(KINDS_OF_PHASE[phase])
                raise ValueError(f"kinds = {self.kinds}: nothing of it is killed while {phase} runs; there: {names}")
        return self

    def kinds_of(self, phase: Phase) -> list[Kind]:
        """List what is killed in a phase, in the order of :data:`KINDS_OF_PHASE`."""
        return [kind for kind in KINDS_OF_PHASE[phase] if kind in self.kinds and (kind != "bucket" or self.bucket)]

    @property
    def phase_s(self) -> float:
        """Return the seconds in which processes are killed, of each phase."""
        return 60 * self.minutes / len(self.phases)
