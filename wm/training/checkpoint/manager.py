"""Write checkpoints of a run while it trains, and load them.

A checkpoint is copied into host memory at once; a thread of each rank then writes its file, and rank 0 completes the
checkpoint. At most one is being written. It holds the trained weights and AdamW's moments as tensors, never pickles,
and does not depend on the number of ranks or the ZeRO stage that wrote it.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from wm.runs import write_text
from wm.training.checkpoint.identity import check_identity
from wm.training.checkpoint.retention import FAILED, names_to_keep
from wm.training.checkpoint.state_files import Contents, HostBuffers, StateReader, contents_of, write_tensors
from wm.training.checkpoint.store import Checkpoint, CheckpointStore, FileFacts, Manifest
from wm.training.recipe import TrainRecipe
from wm.training.step import Stepper

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class _Write:
    """A checkpoint that is being written."""

    thread: threading.Thread
    error: BaseException | None = None


@dataclass(frozen=True)
class _RankResult:
    """What a rank has written of a checkpoint, or why it could not."""

    files: dict[str, FileFacts] = field(default_factory=dict)
    error: str = ""


@dataclass
class CheckpointStats:
    """Counts and times of a run's checkpoints, on rank 0."""

    written: int = 0
    failed: int = 0
    last_failure: str = ""
    waited_s: float = 0.0
    """Time for which training stopped: copies into host memory, and waiting for the checkpoint before."""
    seconds: list[float] = field(default_factory=list)
    """Time of each from its copy until it was complete."""

    def as_dict(self) -> dict[str, float | str]:
        """Return plain values, for ``run.json``."""
        longest = round(max(self.seconds, default=0.0), 3)
        facts = {"written": self.written, "failed": self.failed, "waited_s": round(self.waited_s, 3)}
        return facts | {"longest_write_s": longest} | ({"last_failure": self.last_failure} if self.failed else {})


class CheckpointManager:
    """One rank's part in the checkpoints of a run. All ranks make one, and call its methods in step."""

    def __init__(
        self,
        recipe: TrainRecipe,
        rank: int,
        num_ranks: int,
        identity: Mapping[str, object],
        before_complete: Callable[[], None] = lambda: None,
    ) -> None:
        """Claim the folder and list its checkpoints.

        Args:
            recipe: The run.
            rank: Of this process.
            num_ranks: Processes that train.
            identity: Of the run (:func:`wm.training.checkpoint.identity.identity_of`).
            before_complete: Called on rank 0, in a thread, once the files of a checkpoint are written and before it is
                complete; what it raises fails the checkpoint.

        Raises:
            InputError: The newest checkpoint there is of another recipe.
        """
        self.stats = CheckpointStats()
        self._recipe, self._rank, self._num_ranks, self._identity = recipe, rank, num_ranks, dict(identity)
        self._store = CheckpointStore(recipe.checkpoint_root)
        # A group of its own, on the host, for the threads that write: they work while the others train.
        self._group: dist.ProcessGroup | None = dist.new_group(backend="gloo") if num_ranks > 1 else None
        self._buffers = HostBuffers()
        self._before_complete = before_complete
        self._write: _Write | None = None
        checkpoints, token = list[Checkpoint](), secrets.token_hex(4)
        if rank == 0:
            self._store.claim(token)
            self._store.remove_unfinished()
            checkpoints = self._store.checkpoints()
        # Object stores may list differently a moment later: what rank 0 sees holds for all.
        self._checkpoints, self._token = self._broadcast((checkpoints, token))
        for checkpoint in self._checkpoints[-1:]:
            check_identity(checkpoint, identity, self._store.root_uri)

    @property
    def newest(self) -> Checkpoint | None:
        """Return the complete checkpoint with the most steps, or None; the same on all ranks."""
        return self._checkpoints[-1] if self._checkpoints else None

    def is_due(self, num_steps: int, is_last: bool) -> bool:
        """Return whether a checkpoint follows a step.

        Args:
            num_steps: Steps done, from 1.
            is_last: Whether the run ends here.

        Returns:
            After the last step only if checkpoints stay.
        """
        settings = self._recipe.checkpoint
        if is_last:
            return bool(settings.keep_last or settings.keep_best)
        return num_steps % settings.every_steps == 0

    def load(self, checkpoint: Checkpoint, stepper: Stepper) -> int:
        """Load a checkpoint into the stepper.

        Args:
            checkpoint: Complete, of any number of ranks.
            stepper: Gets its weights and moments.

        Returns:
            The checkpoint's step.
        """
        contents = {name: facts["contents"] for name, facts in checkpoint.manifest["files"].items()}
        parts = stepper.parts_to_load()
        # Of an object store only the files that this rank needs are copied.
        file_names = sorted(StateReader(Path(checkpoint.name), contents).files_for(parts))
        with self._store.local_files(checkpoint, file_names) as folder:
            reader = StateReader(folder, contents)
            for part in parts:
                reader.fill(part)
        stepper.finish_loading(checkpoint.step)
        return checkpoint.step

    def save(self, step: int, stepper: Stepper, metrics: Mapping[str, float]) -> None:
        """Copy the state and begin to write it, once the checkpoint before is written.

        A failure never stops the training: it is reported in the log, in ``out/checkpoint.failed`` and in
        :attr:`stats`.

        Args:
            step: Steps done.
            stepper: What is saved.
            metrics: What the checkpoint may be chosen by.
        """
        begin = time.perf_counter()
        # At most one is written at a time: a second copy would double the host memory.
        self.wait()
        parts = stepper.parts()
        tensors = self._buffers.copy(parts)
        self.stats.waited_s += time.perf_counter() - begin
        contents = contents_of(parts)
        name = f"step-{step:08d}-{self._token}"
        # Complete but for the files, whose sizes are known when all ranks have written theirs.
        manifest: Manifest = {
            "step": step,
            "metrics": dict(metrics),
            "identity": self._identity,
            "num_ranks": self._num_ranks,
            "zero_stage": self._recipe.resources.zero_stage,
            "files": {},
        }
        # Training continues while the thread writes; it is a daemon, so that a killed run ends at once.
        write = _Write(
            threading.Thread(target=lambda: self._write_part(write, tensors, contents, name, manifest), daemon=True)
        )
        self._write = write
        write.thread.start()

    def last_complete_step(self) -> int | None:
        """Wait for the write in progress; return the step of the newest complete checkpoint. All ranks call it."""
        self.wait()
        checkpoints = self._broadcast(self._checkpoints)
        return checkpoints[-1].step if checkpoints else None

    def wait(self) -> None:
        """Block until nothing is being written."""
        if self._write is not None:
            self._write.thread.join()
            error, self._write = self._write.error, None
            # No failure of the storage, which is reported and tolerated, but one of the other ranks.
            if error is not None:
                raise error

    def close(self) -> None:
        """Wait, and leave the group."""
        self.wait()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _write_part(
        self, write: _Write, tensors: Mapping[str, Tensor], contents: Contents, name: str, manifest: Manifest
    ) -> None:
        """Write this rank's file in a thread; rank 0 completes the checkpoint when all ranks have."""
        begin = time.perf_counter()
        result = _RankResult()
        try:
            if tensors:
                file = f"rank-{self._rank:05d}-of-{self._num_ranks:05d}.safetensors"
                with self._store.writing(name, file) as sink:
                    size = write_tensors(sink, tensors)
                result = _RankResult({file: {"bytes": size, "contents": contents}})
        except Exception as error:
            # Sent to rank 0 instead of raised: the other ranks wait for this one in the exchange below.
            text = " ".join(str(error).split())[:300]
            result = _RankResult(error=f"rank {self._rank}: {type(error).__name__}: {text}")
        try:
            results = self._gather(result)
            if self._rank == 0:
                self._complete(name, results, manifest)
                self.stats.seconds.append(time.perf_counter() - begin)
        except Exception as error:
            write.error = error

    def _complete(self, name: str, results: Sequence[_RankResult], manifest: Manifest) -> None:
        """Complete on rank 0 a checkpoint whose files are written, or report why that is not possible."""
        try:
            if errors := [result.error for result in results if result.error]:
                raise OSError("; ".join(errors[:3]))
            # A worker that was left behind by a restart must not mix its files into those of the new attempt.
            if not self._store.is_claimed_by(self._token):
                raise OSError(f"another process has begun to train into {self._store.root_uri}")
            manifest["files"] = {file: facts for result in results for file, facts in result.files.items()}
            self._before_complete()
            self._checkpoints.append(self._store.finish(name, manifest))
            self.stats.written += 1
            # Older ones go only now that this one is complete: at any moment there is one to resume from.
            names = names_to_keep(self._checkpoints, self._recipe, is_running=True)
            for checkpoint in [checkpoint for checkpoint in self._checkpoints if checkpoint.name not in names]:
                self._store.remove(checkpoint.name)
                self._checkpoints.remove(checkpoint)
            (Path(self._recipe.out) / FAILED).unlink(missing_ok=True)
        except Exception as error:
            self._report_failure(name, error)

    def _report_failure(self, name: str, error: Exception) -> None:
        cause = " ".join(str(error).split())[:600]
        newest = f"step {self._checkpoints[-1].step}" if self._checkpoints else "none"
        message = (
            f"checkpoint of step {int(name.split('-')[1])} could not be written: {cause}; training continues, the last "
            f"complete checkpoint is {newest}"
        )
        self.stats.failed += 1
        self.stats.last_failure = message
        _log.warning(message)
        try:
            self._store.discard(name)
            write_text(Path(self._recipe.out) / FAILED, message + "\n")
        except OSError:  # the log has it
            return

    def _gather(self, value: T) -> list[T]:
        if self._group is None:
            return [value]
        values: list[T] = [value] * self._num_ranks
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _broadcast(self, value: T) -> T:
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]
