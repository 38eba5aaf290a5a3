"""One writer an output in a bucket: the second is refused by the first one's name, a killed one's right expires."""

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.storage_servers import s3_server
from wm.errors import InputError
from wm.files import lease as leases
from wm.files.lease import Lease
from wm.files.mirror import WRITERS

URI = "s3://bucket/run"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    monkeypatch.setattr(leases, "POLL_S", 0.02)
    monkeypatch.setattr(leases, "EXPIRY_S", 0.6)
    with s3_server(monkeypatch) as s3:
        s3.create_bucket(Bucket="bucket")
        yield s3


def claims(s3: Any) -> dict[str, Any]:
    """Content of every claim by its name."""
    objects = s3.list_objects_v2(Bucket="bucket", Prefix=f"run/{WRITERS}/").get("Contents", [])
    names = [each["Key"] for each in objects if each["Key"].endswith(".json")]
    return {name.rpartition("/")[2]: json.load(s3.get_object(Bucket="bucket", Key=name)["Body"]) for name in names}


def put_claim(s3: Any, name: str, **changes: Any) -> None:
    """Write the claim of a writer on another machine."""
    claim = {
        "stage": "annotate", "host": "far", "pid": 7, "since": "2026-01-02T03:04:05Z", "machine": "other",
        "started": "1", "is_writing": True, "beats": 3, "took_over": [], **changes,
    }  # fmt: skip
    s3.put_object(Bucket="bucket", Key=f"run/{WRITERS}/{name}", Body=json.dumps(claim).encode())


def test_the_first_writer_has_it_until_it_lets_go(bucket: Any) -> None:
    first = Lease(URI, "annotate")
    first.acquire()
    ((_, claim),) = claims(bucket).items()
    assert (claim["stage"], claim["pid"], claim["is_writing"]) == ("annotate", os.getpid(), True)
    first.check()
    first.release()
    assert claims(bucket) == {}


def test_a_live_writer_of_another_machine_is_named(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ended = threading.Event()

    def beat() -> None:
        beats = 3
        while not ended.wait(0.02):
            beats += 1
            put_claim(bucket, "f.json", beats=beats)

    put_claim(bucket, "f.json")
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        words = "annotate on host far, process 7, since 2026-01-02T03:04:05Z"
        with pytest.raises(InputError, match=rf"^{URI} is being written by {words}; wait for it"):
            Lease(URI, "train").acquire()
    finally:
        ended.set()
        thread.join()
    assert list(claims(bucket)) == ["f.json"]
    assert f"train: {URI} was being written by annotate on host far" in capsys.readouterr().err


def test_a_live_process_of_this_machine_is_refused_at_once(bucket: Any) -> None:
    pid = os.getppid()
    put_claim(bucket, "f.json", machine=leases._machine(), pid=pid, started=leases._start_of(pid))
    with pytest.raises(InputError, match=f"process {pid}"):
        Lease(URI, "train").acquire()


@pytest.mark.parametrize("machine", ["here", "other"])
def test_a_killed_writer_loses_it(machine: str, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of this machine at once: the process number is another process's by now.
    if machine == "here":
        monkeypatch.setattr(leases, "EXPIRY_S", 1e9)
    put_claim(bucket, "dead.json", machine=leases._machine() if machine == "here" else "other", pid=os.getppid())
    second = Lease(URI, "annotate")
    second.acquire()
    ((name, claim),) = claims(bucket).items()
    assert name != "dead.json" and claim["took_over"] == ["dead.json"]
    second.release()


def test_a_writer_that_slept_too_long_stops(bucket: Any) -> None:
    first = Lease(URI, "annotate")
    first.acquire()
    name = first._name
    put_claim(bucket, "thief.json", took_over=[name], stage="train")
    bucket.delete_object(Bucket="bucket", Key=f"run/{WRITERS}/{name}")
    assert first._thread is not None
    first._thread.join(timeout=60)
    with pytest.raises(InputError, match=f"^{URI}: .*taken over"):
        first.check()


def test_of_many_at_once_one_has_it(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if each were on a machine of its own, in one process.
    monkeypatch.setattr(leases, "_machine", lambda: os.urandom(8).hex())
    monkeypatch.setattr(leases, "EXPIRY_S", 1e9)
    start, results, lock = threading.Barrier(4), [], threading.Lock()

    def write(number: int) -> None:
        lease = Lease(f"{URI}", f"stage{number}")
        start.wait()
        try:
            leases._held.pop(URI, None)
            lease.acquire()
        except InputError as error:
            lease = None  # type: ignore[assignment]
            message = str(error)
        else:
            message = ""
        with lock:
            results.append((message, lease))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    winners = [lease for message, lease in results if not message]
    assert len(results) == 4 and len(winners) <= 1
    assert all("is being written by stage" in message for message, _ in results if message)
    for lease in winners:
        lease.release()


def test_a_claim_that_is_none_is_named(bucket: Any) -> None:
    bucket.put_object(Bucket="bucket", Key=f"run/{WRITERS}/x.json", Body=b"{")
    with pytest.raises(InputError, match=rf"{URI}/{WRITERS}/x.json is no claim of a writer"):
        Lease(URI, "train").acquire()
