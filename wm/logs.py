"""Write the log as text, or as one JSON object a line where ``WM_LOG_FORMAT=json`` says so.

JSON lines have the keys of Ray's own (``asctime``, ``levelname``, ``message``, ``filename``, ``lineno``, ``process``),
so that one reader does for jobs and for the server, and the fields that :func:`bind` has set: ``stage``, ``run``,
``shard``. The log is on standard error; standard output is a command's answer and stays text. Not known here: Ray.
"""

import json
import logging
import os
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

from wm.errors import InputError

FORMAT = "WM_LOG_FORMAT"
"""Variable with the format, ``text`` or ``json``; a worker process inherits it."""
FIELDS = "WM_LOG_FIELDS"
"""Variable with the fields, as JSON, that a worker process takes over from the one that started it."""
FORMATS = ("text", "json")
OWN_LOGGERS = ("wm", "jobs", "serve_apps")

_TEXT = "%(levelname)s %(name)s: %(message)s"
# Attributes of every record; whatever else it has was given by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Of the process, not of a context: threads that a job starts work for the same run.
_fields: dict[str, str] = {}


class JsonFormatter(logging.Formatter):
    """Format a record as one line of JSON: what Ray's formatter has, the bound fields, and what ``extra`` gave."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            "logger": record.name,
            **bound_fields(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        # Whatever a value is, the line must be written.
        return json.dumps(line, default=str)


def log_format() -> str:
    """Return ``text`` or ``json``.

    Raises:
        InputError: The variable says neither.
    """
    value = os.environ.get(FORMAT) or "text"
    if value not in FORMATS:
        raise InputError(f"{FORMAT} = {value!r:.80}: expected text or json")
    return value


def configure() -> None:
    """Set up the log of this process: warnings as text, or in JSON also what the stages say of their progress.

    Raises:
        InputError: As :func:`log_format`.
    """
    if log_format() == "text":
        logging.basicConfig(level=logging.WARNING, format=_TEXT)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        for name in OWN_LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
    logging.getLogger("wm.sampling").setLevel(logging.INFO)  # it reports which batch size it chose


def configure_worker() -> None:
    """Set up the log of a process that works for another one, under the fields of that one."""
    configure()
    bind(**json.loads(os.environ.get(FIELDS) or "{}"))


def worker_variables() -> dict[str, str]:
    """Return the environment of processes that work for this one; empty where the log is text."""
    if log_format() == "text":
        return {}
    return {FORMAT: "json", FIELDS: json.dumps(bound_fields())}


def bind(**fields: str) -> None:
    """Add fields to every later JSON line of this process; one of the same name is replaced.

    Args:
        fields: Such as ``stage`` and ``shard``.
    """
    _fields.update(fields)


def bound_fields() -> dict[str, str]:
    """Return the fields that :func:`bind` has set."""
    return dict(_fields)


def report_error(text: str) -> None:
    """Say on standard error what ended a command.

    Args:
        text: One line, or two.
    """
    if os.environ.get(FORMAT) == "json":
        logging.getLogger("wm").error("%s", text)
    else:
        print(text, file=sys.stderr)


class LoggedBar(tqdm):  # type: ignore[misc] # tqdm has no types
    """A progress bar whose states are lines of the JSON log: ``done``, ``total``, ``unit`` and ``rate`` a second."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "file": _Nowhere()})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log the state in place of drawing it.

        Args:
            msg: As for tqdm; not used.
            pos: As for tqdm; not used.
        """
        state = self.format_dict
        extra = {
            "done": state["n"],
            "total": state["total"],
            "unit": state["unit"],
            "rate": state["rate"] or (state["n"] - state["initial"]) / max(state["elapsed"], 1e-9),
            "detail": state["postfix"] or "",
        }
        logging.getLogger("wm.progress").info("%s", state["prefix"] or "progress", extra=extra)


class _Nowhere:
    """A stream for what a bar writes besides its states: line ends and blanks."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("wm").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
