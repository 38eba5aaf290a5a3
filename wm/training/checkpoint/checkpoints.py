"""Checkpoints of a run: written while training goes on, chosen which to keep, found again.

A checkpoint is taken into host memory at once; a thread of each rank then writes its file, and rank 0 makes the whole
one of them. At most one is being written. It holds the trained weights and AdamW's moments as tensors, never pickles,
and does not depend on the number of ranks or the ZeRO stage that wrote it.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from wm.errors import InputError
from wm.models import base_id_of
from wm.runs import write_text
from wm.training.checkpoint.state_files import HostCopy, StateReader, contents_of, write_tensors
from wm.training.checkpoint.store import Checkpoint, CheckpointStore
from wm.training.data.tokenized import SourceFacts
from wm.training.recipe import TrainRecipe
from wm.training.step import Stepper

FAILED = "checkpoint.failed"
"""Below ``out``: why the last checkpoint could not be written, while that is so."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class _Write:
    """A checkpoint that is being written."""

    thread: threading.Thread
    error: BaseException | None = None


@dataclass
class Report:
    """What became of a run's checkpoints, on rank 0."""

    written: int = 0
    failed: int = 0
    last_failure: str = ""
    waited_s: float = 0.0
    """Time for which training stood still: copies into host memory, and waiting for a former checkpoint."""
    seconds: list[float] = field(default_factory=list)
    """How long each took from its copy until it was whole."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``run.json``."""
        longest = round(max(self.seconds, default=0.0), 3)
        facts = {"written": self.written, "failed": self.failed, "waited_s": round(self.waited_s, 3)}
        return facts | {"longest_write_s": longest} | ({"last_failure": self.last_failure} if self.failed else {})


def place_of(recipe: TrainRecipe) -> str:
    """Return the folder or URI in which a recipe's checkpoints are stored."""
    return recipe.checkpoints or str(Path(recipe.out) / "checkpoints")


def identity_of(recipe: TrainRecipe, base_id: str, facts: Sequence[SourceFacts]) -> dict[str, Any]:
    """Return what a checkpoint belongs to: the recipe's identity settings, its folders known by what is in them."""
    settings = {
        key: value
        for key, value in recipe.identity_settings(recipe.model_dump(mode="json")).items()
        if key not in ("out", "base", "triplets", "held_out")
    }
    sources = [
        {"path": Path(part.source.path).name, "weight": part.source.weight, "rows": part.num_rows} for part in facts
    ]
    return settings | {"base": base_id, "triplets": sources}


def need_same(checkpoint: Checkpoint, identity: Mapping[str, Any], place: str) -> None:
    """Raise :class:`InputError` that names the first key in which a checkpoint differs from this run."""
    # A key that is null, in a table too, is the same as one that an older version did not have.
    theirs, ours = (TrainRecipe.identity_settings(side) for side in (checkpoint.manifest["identity"], identity))
    for key in sorted(set(theirs) | set(ours)):
        if theirs.get(key) != ours.get(key):
            there, here = (f"{side[key]!r:.80}" if key in side else "not set" for side in (theirs, ours))
            raise InputError(
                f"checkpoint {checkpoint.name} of {place} is of another recipe: {key} = {there} there, {here} here; "
                "choose another folder (out or checkpoints), or remove it"
            )


def need_place(recipe: TrainRecipe) -> None:
    """Raise :class:`InputError` if the recipe names a place for checkpoints that cannot be written to."""
    if recipe.checkpoints:
        CheckpointStore(recipe.checkpoints).check()


def need_own(recipe: TrainRecipe, facts: Sequence[SourceFacts]) -> None:
    """Raise :class:`InputError` if the newest checkpoint, which a run would go on from, is of another recipe."""
    store = CheckpointStore(place_of(recipe))
    for checkpoint in store.checkpoints()[-1:]:
        need_same(checkpoint, identity_of(recipe, base_id_of(recipe.base), facts), store.place)


def best_of(checkpoints: Sequence[Checkpoint], recipe: TrainRecipe, count: int) -> list[Checkpoint]:
    """Rank checkpoints by the recipe's ``keep_best_by`` and return the ``count`` best, best first; of equal ones the
    later. Those without a finite value of that metric are left out."""
    by = recipe.keep_best_by
    sign = -1.0 if by == "preference" else 1.0
    measured = [checkpoint for checkpoint in checkpoints if math.isfinite(checkpoint.metrics.get(by, math.nan))]
    return sorted(measured, key=lambda checkpoint: (sign * checkpoint.metrics[by], -checkpoint.step))[:count]


def kept_of(checkpoints: Sequence[Checkpoint], recipe: TrainRecipe, *, going_on: bool) -> list[str]:
    """Return the names of the checkpoints to keep, of ``checkpoints`` in the order of their steps; while a run is
    ``going_on`` the newest is always one of them."""
    num_last = max(recipe.keep_last, 1 if going_on else 0)
    newest = list(checkpoints)[-num_last:] if num_last else []
    names = {checkpoint.name for checkpoint in (*newest, *best_of(checkpoints, recipe, recipe.keep_best))}
    return [checkpoint.name for checkpoint in checkpoints if checkpoint.name in names]


def tidy(recipe: TrainRecipe) -> None:
    """Remove, after a complete run, all but the checkpoints that the recipe wants to stay."""
    store = CheckpointStore(place_of(recipe))
    store.remove_all_but(kept_of(store.checkpoints(), recipe, going_on=False))
    (Path(recipe.out) / FAILED).unlink(missing_ok=True)


class Checkpoints:
    """One rank's hand in the checkpoints of a run. All ranks make one, and call its methods in step."""

    def __init__(self, recipe: TrainRecipe, rank: int, num_ranks: int, identity: Mapping[str, Any]) -> None:
        """Claim the place and look what is there. Raises :class:`InputError` if that is of another recipe."""
        self.report = Report()
        self._recipe, self._rank, self._num_ranks, self._identity = recipe, rank, num_ranks, dict(identity)
        self._store = CheckpointStore(place_of(recipe))
        self._group: Any = None
        if num_ranks > 1:
            # A group of its own, on the host, for the threads that write: they work while the others train.
            self._group = dist.new_group(backend="gloo")
        self._host = HostCopy()
        self._write: _Write | None = None
        self._found: list[Checkpoint] = []
        found, token = [], secrets.token_hex(4)
        if rank == 0:
            self._store.claim(token)
            self._store.remove_unfinished()
            found = self._store.checkpoints()
        self._found, self._token = self._from_first((found, token))
        for checkpoint in self._found[-1:]:
            need_same(checkpoint, identity, self._store.place)

    @property
    def newest(self) -> Checkpoint | None:
        """The whole checkpoint with the most steps, or None; the same on all ranks."""
        return self._found[-1] if self._found else None

    def is_due(self, num_steps: int, is_last: bool) -> bool:
        """Return whether a checkpoint follows step ``num_steps`` (from 1). After the last one only if checkpoints shall
        stay."""
        if is_last:
            return bool(self._recipe.keep_last or self._recipe.keep_best)
        return num_steps % self._recipe.checkpoint_every == 0

    def load(self, checkpoint: Checkpoint, stepper: Stepper) -> int:
        """Put a checkpoint into the stepper, whatever number of ranks wrote it; returns its step."""
        files = checkpoint.manifest["files"]
        contents = {name: facts["contents"] for name, facts in files.items()}
        parts = stepper.parts_to_read()
        file_names = sorted(StateReader(Path(checkpoint.name), contents).files_for(parts))
        with self._store.at_hand(checkpoint, file_names) as folder:
            reader = StateReader(folder, contents)
            for part in parts:
                reader.fill(part)
        stepper.was_read(checkpoint.step)
        return checkpoint.step

    def save(self, step: int, stepper: Stepper, metrics: Mapping[str, float]) -> None:
        """Take a checkpoint after ``step`` steps and begin to write it. Waits for the former one if that is still being
        written; what could not be written is told in the log, in ``out/checkpoint.failed`` and in :attr:`report`."""
        begin = time.perf_counter()
        self.wait()
        parts = stepper.parts()
        tensors = self._host.take(parts)
        self.report.waited_s += time.perf_counter() - begin
        files = contents_of(parts)
        name = f"step-{step:08d}-{self._token}"
        manifest = {
            "step": step,
            "metrics": dict(metrics),
            "identity": self._identity,
            "num_ranks": self._num_ranks,
            "zero_stage": self._recipe.zero_stage,
        }
        write = _Write(threading.Thread(target=lambda: self._work(write, name, tensors, files, manifest), daemon=True))
        self._write = write
        write.thread.start()

    def last_whole(self) -> int | None:
        """Wait for the write in progress; return the step of the newest complete checkpoint. All ranks call it."""
        self.wait()
        checkpoints = self._from_first(self._found)
        return checkpoints[-1].step if checkpoints else None

    def wait(self) -> None:
        """Block until nothing is being written."""
        if self._write is not None:
            self._write.thread.join()
            error, self._write = self._write.error, None
            if error is not None:  # no trouble with the storage, which is told and borne, but with the other ranks
                raise error

    def close(self) -> None:
        """Wait, and leave the group."""
        self.wait()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _work(
        self, write: _Write, name: str, tensors: Mapping[str, Tensor], contents: Any, manifest: dict[str, Any]
    ) -> None:
        begin = time.perf_counter()
        outcome: dict[str, Any] = {"error": "", "files": {}}
        try:
            if tensors:
                file = f"rank-{self._rank:05d}-of-{self._num_ranks:05d}.safetensors"
                with self._store.writing(name, file) as sink:
                    size = write_tensors(sink, tensors)
                outcome["files"][file] = {"bytes": size, "contents": contents}
        except Exception as error:
            outcome["error"] = f"rank {self._rank}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        try:
            outcomes = self._from_all(outcome)
            if self._rank == 0:
                self._make_whole(name, outcomes, manifest)
                self.report.seconds.append(time.perf_counter() - begin)
        except Exception as error:
            write.error = error

    def _make_whole(self, name: str, outcomes: Sequence[Mapping[str, Any]], manifest: dict[str, Any]) -> None:
        """Complete on rank 0 a checkpoint whose files are written, or report why it is not."""
        try:
            failures = [outcome["error"] for outcome in outcomes if outcome["error"]]
            if failures:
                raise OSError("; ".join(failures[:3]))
            if not self._store.is_claimed_by(self._token):
                raise OSError(f"another process has begun to train into {self._store.place}")
            manifest["files"] = {file: facts for outcome in outcomes for file, facts in outcome["files"].items()}
            self._found.append(self._store.finish(name, manifest))
            self.report.written += 1
            kept = kept_of(self._found, self._recipe, going_on=True)
            for checkpoint in [one for one in self._found if one.name not in kept]:
                self._store.remove(checkpoint.name)
                self._found.remove(checkpoint)
            (Path(self._recipe.out) / FAILED).unlink(missing_ok=True)
        except Exception as error:
            self._tell(name, error)

    def _tell(self, name: str, error: Exception) -> None:
        message = (
            f"checkpoint of step {int(name.split('-')[1])} could not be written: {' '.join(str(error).split())[:600]}"
        )
        newest = f"step {self._found[-1].step}" if self._found else "none"
        message += f"; training goes on, the last whole checkpoint is {newest}"
        self.report.failed += 1
        self.report.last_failure = message
        _log.warning(message)
        try:
            self._store.discard(name)
            write_text(Path(self._recipe.out) / FAILED, message + "\n")
        except OSError:  # the log has it
            return

    def _from_all(self, mine: T) -> list[T]:
        if self._group is None:
            return [mine]
        values: list[Any] = [None] * self._num_ranks
        dist.all_gather_object(values, mine, group=self._group)
        return values

    def _from_first(self, mine: T) -> T:
        if self._group is None:
            return mine
        values = [mine]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]
