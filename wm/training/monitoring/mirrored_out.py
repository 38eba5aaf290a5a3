"""Keep what the first worker writes beside checkpoints in the bucket of a run, so that another node can resume it.

Figures, notes, samples and the best model so far are published with every checkpoint, and the figures between two of
them, for whoever watches the run from another node. For a run into a local folder nothing is done. Not known here: what
is in the files.
"""

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wm.errors import InputError
from wm.files.mirror import UNFINISHED, fetch, list_below, publish, remove, uri_of
from wm.files.transfer import ObjectFacts, write_object
from wm.training.checkpoint.retention import FAILED
from wm.training.monitoring.evaluation import BEST, BEST_FOLDER, EVALUATIONS, LAST, MODEL, SAMPLES
from wm.training.monitoring.metrics import METRICS
from wm.training.monitoring.trackers import NOTES, TENSORBOARD
from wm.training.recipe import TrainRecipe

_log = logging.getLogger(__name__)
_FIGURES: Final = (METRICS, EVALUATIONS)
_PERIOD_S: Final = 10.0
_BYTES_PER_PERIOD: Final = 1 << 20
"""A file of figures is uploaded as a whole: the longer it is, the less often."""


class MirroredOut:
    """The output folder of a run in a bucket, as its first worker sees it; nothing if the folder is a local one."""

    def __init__(self, out: str | Path) -> None:
        """Set the folder; nothing is read or written.

        Args:
            out: Folder of the run, a mirrored path or a local one.
        """
        self._out = Path(out)
        self._uri = uri_of(self._out)
        # What the bucket has of the files that are replaced or removed while the run lasts.
        self._notes: dict[str, bytes] = {}
        self._best_folders: set[str] = set()
        # The thread that writes a checkpoint publishes too.
        self._lock = threading.Lock()

    def settle(self) -> None:
        """Make this node's folder, at the end, what the first worker has published, wherever that was.

        What else is here (of an attempt whose first worker was on this node) would be uploaded with the rest.

        Raises:
            InputError: The bucket cannot be read.
        """
        if self._uri is None:
            return
        for path in self._out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != UNFINISHED:
                path.unlink()
        self.bring()

    def bring(self) -> None:
        """Copy what a resumed run reads to this node; what an earlier attempt left here alone is removed.

        Raises:
            InputError: The bucket cannot be read.
        """
        if self._uri is None:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        names = {facts.name for facts in self._list()}
        # The bucket's figures reach as far as its newest checkpoint, from which the run resumes.
        for name in (*_FIGURES, FAILED, BEST, *NOTES):
            (self._out / name).unlink(missing_ok=True)
            if name in names:
                fetch(self._out / name)
                self._notes[name] = b"" if name in _FIGURES else (self._out / name).read_bytes()
        self._best_folders = {name.split("/")[0] for name in names if name.startswith(BEST_FOLDER)}
        best = self._best_folder()
        if best in self._best_folders:
            fetch(self._out / best)
        # The tracker hides steps that are repeated where it finds its folder.
        if any(name.startswith(f"{TENSORBOARD}/") for name in names):
            (self._out / TENSORBOARD).mkdir(exist_ok=True)

    def publish(self) -> None:
        """Upload what has changed, without the trained model.

        Raises:
            InputError: The bucket cannot be written to.
        """
        if self._uri is None:
            return
        with self._lock:
            self._publish_all()

    def publish_models(self) -> None:
        """Upload the trained model, and the last one where the trained one is another, then all else.

        Raises:
            InputError: The bucket cannot be written to.
        """
        if self._uri is None:
            return
        with self._lock:
            for name in (LAST, MODEL):
                self._publish_model(self._out / name)
            self._publish_all()

    @contextmanager
    def following(self, is_first: bool) -> Iterator[None]:
        """Publish the figures from time to time, in a thread, while the block runs.

        Args:
            is_first: Whether this is the first worker; others publish nothing.
        """
        if self._uri is None or not is_first:
            yield
            return
        stopped = threading.Event()
        # A daemon, so that a killed run ends at once.
        thread = threading.Thread(target=self._follow, args=(stopped,), name="wm-figures", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def remove_tokens(self, recipe: TrainRecipe) -> None:
        """Remove the tokens of a run that is over from this node: the driver removes those of its own node alone.

        Args:
            recipe: The run.
        """
        if self._uri is not None and not recipe.data.token_cache:
            shutil.rmtree(recipe.token_root, ignore_errors=True)

    def remove_best(self) -> None:
        """Remove the note and the folders of best models, of which the best is the trained one by now."""
        if self._uri is None:
            return
        names = {facts.name.split("/")[0] for facts in self._list()}
        # The note first: it would name a folder that is gone.
        for name in sorted(name for name in names if name == BEST or name.startswith(BEST_FOLDER)):
            remove(self._out / name)

    def _follow(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._period_s()):
            try:
                with self._lock:
                    self._publish_figures()
            except (InputError, OSError) as error:
                # The next checkpoint publishes them again, and reports what is wrong.
                _log.info("figures are not published: %s", error)

    def _period_s(self) -> float:
        sizes = [path.stat().st_size for name in _FIGURES if (path := self._out / name).is_file()]
        return _PERIOD_S * (1 + sum(sizes) / _BYTES_PER_PERIOD)

    def _publish_all(self) -> None:
        # 1. The best model before the note that names it.
        best = self._best_folder()
        if best is not None and best not in self._best_folders:
            self._publish_model(self._out / best)
            self._best_folders.add(best)
        # 2. All else.
        self._publish_figures()
        for name in (BEST, *NOTES):
            self._publish_note(name)
        for name in (SAMPLES, TENSORBOARD):
            if (self._out / name).is_dir():
                publish(self._out / name)
        # 3. Best models before this one, which the note has let go.
        for name in sorted(self._best_folders - {best}):
            remove(self._out / name)
            self._best_folders.remove(name)

    def _publish_figures(self) -> None:
        for name in _FIGURES:
            if (self._out / name).is_file():
                publish(self._out / name)
        self._publish_note(FAILED)

    def _publish_note(self, name: str) -> None:
        """Upload a small file by its content: one of the same size within the same second is another all the same."""
        file = self._out / name
        content = file.read_bytes() if file.is_file() else None
        if content is None and name in self._notes:
            remove(file)
            del self._notes[name]
        elif content is not None and self._notes.get(name) != content:
            write_object(str(uri_of(file)), content)
            self._notes[name] = content

    def _publish_model(self, folder: Path) -> None:
        # By its configuration a folder is known as a model: files of that kind come last.
        files = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
        for file in sorted(files, key=lambda file: (file.suffix == ".json", file)):
            publish(file)

    def _best_folder(self) -> str | None:
        note = self._out / BEST
        return str(json.loads(note.read_text())["folder"]) if note.is_file() else None

    def _list(self) -> list[ObjectFacts]:
        return list_below(self._out, missing_ok=True)
