"""Shares of CPU time: arithmetic by hand, and what is read against the kernel's own sums."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmark.cpu_time import CpuSampler, Sample, compute_shares, read_sample

linux = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")


def test_shares_are_of_all_cores_between_the_moments():
    samples = [
        Sample(0.0, 0.0, {1: ("driver", 0.0)}),
        Sample(1.0, 100.0, {1: ("driver", 5.0), 2: ("decode", 10.0), 4: ("actors", 1.0)}),
        Sample(5.0, 107.0, {1: ("driver", 5.4), 2: ("decode", 13.0), 3: ("decode", 2.0)}),
        Sample(9.0, 999.0, {1: ("driver", 99.0)}),
    ]
    # 2 x 4 core-seconds: a driver of .4, decoders of 3 and 2, others of 7 - 5.4; what ended has no share.
    shares = compute_shares(samples, 0.5, 6.0, 2)
    assert shares == {"driver": 0.05, "decode": 0.625, "elsewhere": 0.2, "idle": 0.125}
    assert sum(shares.values()) == 1
    assert compute_shares(samples, 0.5, 4.0, 2) == {}


@linux
def test_reads_a_process_and_those_below_it():
    # A name of any bytes, which looks like the next fields.
    named = r"open('/proc/self/comm', 'wb').write(b'\xff) S 1 (')"
    line = f"import sys; name = 'wm.video.child'; {named}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        before = sum(os.times()[:2])
        sample = read_sample(os.getpid())
        after = sum(os.times()[:2])
        child.stdin.close()
    role, seconds = sample.processes[os.getpid()]
    assert role == "driver"
    # In ticks of 1/100 s, user and system rounded down by themselves.
    assert before - 0.03 <= seconds <= after + 0.03
    assert sample.processes[child.pid][0] == "decode"
    assert os.getppid() not in sample.processes
    assert sample.busy_s > seconds


@linux
def test_the_sampler_ends_with_its_block(monkeypatch):
    monkeypatch.setattr("jobs.benchmark.cpu_time._PERIOD_S", 0.001)
    with CpuSampler() as sampler:
        while len(sampler.samples) < 3:
            os.sched_yield()
    assert not sampler._thread.is_alive()
    times = [sample.time_s for sample in sampler.samples]
    assert times == sorted(times)
