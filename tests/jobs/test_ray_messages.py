"""Of what Ray's nodes report, a job's log has what a user can act on."""

import ray
from ray._private import worker

from jobs.shared import ray_messages
from jobs.shared.ray_messages import filter_messages, find_notice

RETRIED = "Task map failed. There are infinite retries remaining, so the task will be retried. Error: Actor is dead."
LOW = "1 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed due to other reasons"


def test_attempts_are_dropped_and_shortages_are_one_line_once(capsys, monkeypatch):
    assert callable(ray.init) and callable(worker.print_to_stdstream)  # what is replaced is there
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    monkeypatch.setattr(ray_messages, "_printed", set())
    filter_messages()
    for message in (RETRIED, LOW, RETRIED, LOW):
        # As Ray's thread calls it.
        worker.print_to_stdstream({"lines": [message], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith("note: a node is running out of memory; ")


def test_notices_are_of_what_a_user_can_mend():
    assert find_notice(RETRIED) is None
    # Ray's guesses at why a process has ended are no shortage.
    died = "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2)"
    assert find_notice(died) is None
    assert "ray status" in (find_notice("The actor or task with ID f cannot be scheduled right now") or "")
    assert "disk is nearly full" in (find_notice("file_system_monitor: /tmp is over 95% full, available space") or "")
