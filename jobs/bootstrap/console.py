"""Print what several stages write at a time: each line with its stage's name, progress in one line below.

Not known here: what the stages are and when they begin.
"""

import shutil
import sys
import threading

_CLEAR = "\r\x1b[K"


class Console:
    """The terminal, or the log, that stages of a run share."""

    def __init__(self, names: list[str]) -> None:
        """Prepare the console.

        Args:
            names: Of all stages, whose lines begin in the same column.
        """
        # A log may be a file: no escape sequences go there.
        self._width = max(map(len, names), default=0)
        self._is_terminal = sys.stdout.isatty()
        self._progress: dict[str, str] = {}
        self._pending: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def is_terminal(self) -> bool:
        """Return whether a person sees it: progress is redrawn in place then."""
        return self._is_terminal

    def write(self, name: str, text: str) -> None:
        """Take what a stage has written; what is no complete line yet waits for the rest of it.

        Args:
            name: Of the stage.
            text: Any part of its output; a carriage return begins a line anew, as progress bars do.
        """
        with self._lock:
            *ended, rest = (self._pending.get(name, "") + text).split("\n")
            # Of a line that was written over, the last state is what a terminal would show in the end.
            lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in ended]
            last = rest.rpartition("\r")[2]
            self._pending[name] = f"\r{last}" if "\r" in rest else rest
            # A bar's last state is in a log already.
            visible = [line for line in lines if line and (self._is_terminal or line != self._progress.get(name))]
            if lines:
                self._progress.pop(name, None)
            if "\r" in rest and last.strip():
                visible += self._keep_progress(name, last.strip())
            self._print([self._prefixed(name, line) for line in visible])

    def _keep_progress(self, name: str, text: str) -> list[str]:
        """Keep a stage's progress for the line below; returns what a log gets as a line of its own."""
        is_new = text != self._progress.get(name)
        self._progress[name] = text
        return [text] if is_new and not self._is_terminal else []

    def line(self, text: str) -> None:
        """Print a line of the run itself, an empty one before it where a stage begins."""
        with self._lock:
            self._print(text.split("\n"))

    def end(self, name: str) -> None:
        """Print what a stage has left without an end of line, and forget its progress."""
        with self._lock:
            self._progress.pop(name, None)
            rest = self._pending.pop(name, "")
            last = rest.rpartition("\r")[2].strip()
            # A bar's last state was visible as progress before.
            self._print([self._prefixed(name, last)] if last and "\r" not in rest else [])

    def _prefixed(self, name: str, line: str) -> str:
        return f"{name:<{self._width}} | {line}"

    def _print(self, lines: list[str]) -> None:
        # One write, so that lines of other programs do not come between.
        text = "".join(f"{line}\n" for line in lines)
        if self._is_terminal:
            text = f"{_CLEAR}{text}{self._progress_line()}"
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()

    def _progress_line(self) -> str:
        """Build the line of all running stages, each with an equal share of the terminal's width."""
        if not self._progress:
            return ""
        width = max(10, (shutil.get_terminal_size().columns - 1) // len(self._progress) - 3)
        # The last column stays free, or the terminal would go to the next line.
        return " | ".join(f"{text[:width]:<{width}}" for text in self._progress.values()).rstrip()
