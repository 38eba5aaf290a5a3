"""The log in JSON: what each line holds, in this process, in a worker, and of a command."""

import io
import json
import logging
import sys

import pytest
from ray._common.formatters import JSONFormatter

from wm import cli, logs
from wm.config import Recipe
from wm.errors import InputError


@pytest.fixture
def json_log(monkeypatch):
    """Set up the log anew, in JSON, and put it back; the function returns the lines since its last call."""
    monkeypatch.setenv(logs.FORMAT, "json")
    monkeypatch.setattr(logs, "_fields", {})
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    root, names = logging.getLogger(), ("", *logs.OWN_LOGGERS, "wm.sampling")
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in names}
    root.handlers.clear()
    # A replica in this process may have led them into Ray Serve's log.
    for name in logs.OWN_LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure()

    def lines():
        text = stream.getvalue()
        stream.seek(0), stream.truncate()
        return [json.loads(line) for line in text.splitlines()]

    yield lines
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_line_has_rays_keys_and_the_bound_fields(json_log):
    logs.bind(stage="annotate", run="0123", shard="00001")
    logs.bind(shard="00002")
    logging.getLogger("jobs.annotate").info("shard %s", "written", extra={"videos": 3, "path": json})
    (line,) = json_log()
    record = logging.makeLogRecord({"msg": "a", "levelname": "INFO"})
    assert set(json.loads(JSONFormatter().format(record))) - {"timestamp_ns"} <= set(line)
    named = {
        key: line[key] for key in ("levelname", "message", "filename", "logger", "stage", "run", "shard", "videos")
    }
    assert named == {
        "levelname": "INFO",
        "message": "shard written",
        "filename": "test_logs.py",
        "logger": "jobs.annotate",
        "stage": "annotate",
        "run": "0123",
        "shard": "00002",
        "videos": 3,
    }


def test_other_libraries_say_warnings_alone(json_log):
    logging.getLogger("urllib3").info("connected")
    logging.getLogger("urllib3").warning("slow\nhost")
    assert [line["message"] for line in json_log()] == ["slow\nhost"]


def test_an_uncaught_error_is_one_line(json_log):
    try:
        raise KeyError("a")
    except KeyError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    (line,) = json_log()
    assert line["levelname"] == "CRITICAL" and line["message"] == "KeyError: 'a'"
    assert line["exc_text"].startswith("Traceback") and line["exc_text"].endswith("KeyError: 'a'")


def test_a_worker_takes_over_the_fields(json_log, monkeypatch):
    logs.bind(run="0123")
    variables = logs.worker_variables()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    logs._fields.clear()
    logs.configure_worker()
    logging.getLogger("wm").info("here")
    assert [line["run"] for line in json_log()] == ["0123"]


def test_a_bar_says_its_states_in_lines(json_log, monkeypatch):
    monkeypatch.setenv(cli.PROGRESS_INTERVAL, "0.000001")
    with cli.progress_bar(4, "video", "annotate", done=1) as bar:
        for _ in range(3):
            bar.update(1)
    lines = json_log()
    assert {(line["message"].rstrip(": "), line["unit"], line["total"]) for line in lines} == {("annotate", "video", 4)}
    assert lines[0]["done"] == 1 and lines[-1]["done"] == 4
    assert all(isinstance(line["rate"], float) for line in lines)


class Nothing(Recipe):
    number: int = 1


def test_a_command_reports_its_error_as_a_line(json_log):
    def run(recipe, *, dry_run):
        raise InputError("number = 1: expected 2")

    assert cli.main(Nothing, run, name="nothing", description="", argv=[]) == 2
    (line,) = json_log()
    assert (line["levelname"], line["message"], line["command"]) == (
        "ERROR",
        "error: number = 1: expected 2",
        "nothing",
    )


def test_text_is_the_default_and_another_format_is_refused(monkeypatch, capsys):
    monkeypatch.delenv(logs.FORMAT, raising=False)
    assert logs.log_format() == "text" and logs.worker_variables() == {}
    monkeypatch.setenv(logs.FORMAT, "xml")
    assert cli.main(Nothing, lambda recipe, *, dry_run: None, name="nothing", description="", argv=[]) == 2
    assert capsys.readouterr().err == "error: WM_LOG_FORMAT = 'xml': expected text or json\n"
