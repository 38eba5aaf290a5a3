"""``ray up`` of the shipped file, on three machines made of namespaces on this one, each with an ssh server of its own;
and the same with machines that come and go with the work.

The machines have no Docker: what the file says of the container is left out. It needs root, sshd, rsync and iproute2.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]

MACHINE = """
set -e
hostname wm$1
mount --make-rprivate /
mount -t tmpfs tmpfs /run
# What all machines share, and what each has of its own.
mount --bind "$2/shared" /mnt
# Above the home: Python may be installed below it.
mkdir /run/above
mount -t tmpfs tmpfs /run/above
mkdir -m 700 /run/above/files /run/above/work
mount -t overlay overlay -o "lowerdir=$HOME,upperdir=/run/above/files,workdir=/run/above/work" "$HOME"
cp "$2/key" "$HOME/host_key"
cp "$2/key.pub" "$HOME/keys"
echo "export PATH=$3:\\$PATH PYTHONPATH=$4 " > "$HOME/.bashrc"
mount -t tmpfs tmpfs /tmp
mount -t tmpfs -o size=400m tmpfs /dev/shm
mkdir -p /run/sshd
exec $(command -v sshd) -D -e -f /dev/null -o ListenAddress=127.0.0.1$1:22 -o PidFile=none \\
    -o "HostKey=$HOME/host_key" -o "AuthorizedKeysFile=$HOME/keys"
"""
"""Number, folder, folder of programs, folder of the source."""

STEPS = """
ip link set lo up
cd "$1"
for number in 1 2 3; do
    # A process namespace each: `ray stop` ends every Ray of its own.
    HOME=$4 unshare -m -p -u --fork --mount-proc --kill-child \\
        bash machine.sh $number "$1" "$2" "$3" > sshd$number.log 2>&1 &
done
step() { name=$1; shift; "$@" < /dev/null > $name.log 2>&1; echo $? > $name.rc; }
step up ray up -y --no-config-cache cluster.yaml
. ./steps.sh
step down ray down -y cluster.yaml
"""

OF_JOBS = """
step nodes ray exec --no-config-cache cluster.yaml 'RAY_AUTH_MODE=token python /mnt/script.py'
export RAY_AUTH_MODE=token
submit() { ray job submit --address http://127.0.0.1:8265 --working-dir "$folder" -- python -m jobs.tabletop "$@"; }
folder=$1/empty
few="train=1 tune=0 test=0 videos=0"
step local submit $few out=/tmp/lost
step shared submit $few out=/mnt/kept
step health wget -q -T 20 -O - http://127.0.0.1:52365/api/local_raylet_healthz
step anonymous env RAY_AUTH_MODE=disabled ray job list --address http://127.0.0.1:8265
"""

OF_SCALING = """
step scaled ray exec --no-config-cache cluster.yaml 'RAY_AUTH_MODE=token python /mnt/script.py'
"""

NODES = """
import socket, sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init("auto", logging_level="ERROR")
end = time.monotonic() + 120
while len(nodes := [node["NodeID"] for node in ray.nodes() if node["Alive"]]) < 3 and time.monotonic() < end:
    time.sleep(0.5)
name = ray.remote(num_cpus=0)(lambda: socket.gethostname())
names = [name.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes]
print("machines:", *sorted(ray.get(names)))
"""


SCALED = """
import json, socket, time
import ray

def count():
    return sum(node["Alive"] for node in ray.nodes())

def wait_for(wanted):
    begin = time.monotonic()
    while count() != wanted and time.monotonic() < begin + 300:
        time.sleep(0.5)
    return round(time.monotonic() - begin)

@ray.remote(num_cpus=1)
class Worker:
    def name(self):
        return socket.gethostname()

ray.init("auto", logging_level="ERROR")
seconds = {"before": count()}
workers = [Worker.remote() for _ in range(3)]
seconds["up_s"] = wait_for(3)
seconds["names"] = sorted(ray.get([worker.name.remote() for worker in workers], timeout=120))
del workers
seconds["down_s"] = wait_for(1)
print("scaled:", json.dumps(seconds | {"after": count()}))
"""


def has_machines() -> bool:
    """Whether this user may make namespaces, and the programs of an ssh server are at hand."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    if not all(shutil.which(program) for program in ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare")):
        return False
    with suppress(KeyError):
        pwd.getpwnam("sshd")
        probe = ["unshare", "-n", "-m", "-p", "-u", "--fork", "--mount-proc", "true"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return False


def config_for_machines(folder: Path) -> dict[str, object]:
    """The shipped file with the machines' addresses, without its container."""
    config = yaml.safe_load((ROOT / "cluster" / "cluster.yaml").read_text())
    config["provider"] |= {"head_ip": ADDRESSES[0], "worker_ips": ADDRESSES[1:]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    del config["docker"], config["setup_commands"]
    config["file_mounts"] = {"~/.ray/auth_token": str(folder / "home/.ray/auth_token")}
    # All are of one network: Ray would take the same address for each.
    own = " --node-ip-address=127.0.0.1${HOSTNAME#wm} --num-cpus=1 --object-store-memory=100000000"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[key][-1] += own
    return config


@dataclass(frozen=True)
class Machines:
    """What the machines' commands have written."""

    folder: Path

    def outcome(self, step: str) -> tuple[int, str]:
        """Return the status and the output of a step."""
        return int((self.folder / f"{step}.rc").read_text()), (self.folder / f"{step}.log").read_text()


def run_on_machines(folder: Path, steps: str, script: str, **changes: object) -> Machines:
    """Start three machines and the cluster, run steps, and end all.

    Args:
        folder: For all files.
        steps: Shell commands between `ray up` and `ray down`.
        script: Python that all machines see.
        changes: Of the cluster's file.
    """
    for name in ("shared", "empty", "home/.ray"):
        (folder / name).mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    (folder / "home/.ray/auth_token").write_text("0" * 64)
    (folder / "machine.sh").write_text(MACHINE)
    (folder / "steps.sh").write_text(steps)
    (folder / "shared/script.py").write_text(script)
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config_for_machines(folder) | changes))
    programs = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(folder / "home"), "PATH": f"{programs}:{os.environ['PATH']}", "TERM": "dumb"}
    environment["RAY_TMPDIR"] = str(folder / "home")
    # The end of the first process of a namespace ends all in it.
    command = ["unshare", "-n", "-m", "-p", "--fork", "--mount-proc", "--kill-child", "bash", "-c", STEPS, "steps"]
    subprocess.run([*command, folder, programs, ROOT, pwd.getpwuid(0).pw_dir], env=environment, timeout=900, check=True)
    return Machines(folder)


NEEDS_MACHINES = pytest.mark.skipif(not has_machines(), reason="needs root, namespaces, sshd, rsync and iproute2")


@pytest.mark.soak
@NEEDS_MACHINES
def test_ray_up_starts_three_machines(tmp_path):
    machines = run_on_machines(tmp_path, OF_JOBS, NODES)
    # 1. All machines are nodes, each with its own name.
    status, text = machines.outcome("up")
    assert status == 0, text
    status, text = machines.outcome("nodes")
    assert status == 0 and "machines: wm1 wm2 wm3" in text, text
    # 2. A submitted command must write where all of them see it.
    status, text = machines.outcome("local")
    assert status != 0 and "error: out = '/tmp/lost': what the submitted command writes" in text, text
    status, text = machines.outcome("shared")
    assert status == 0 and (tmp_path / "shared/kept/supervised").is_dir(), text
    # 3. Without the token nobody is let in, but to ask whether a node lives, as the image's HEALTHCHECK does.
    assert machines.outcome("health") == (0, "success")
    status, text = machines.outcome("anonymous")
    assert status != 0 and "Missing authentication token" in text, text
    assert machines.outcome("down")[0] == 0


@pytest.mark.soak
@NEEDS_MACHINES
def test_ray_up_adds_machines_and_gives_them_back(tmp_path):
    """Three actors want a machine each; once they are gone, so are two machines."""
    machines = run_on_machines(tmp_path, OF_SCALING, SCALED, min_workers=0, idle_timeout_minutes=0.1)
    status, text = machines.outcome("up")
    assert status == 0, text
    status, text = machines.outcome("scaled")
    line = next((line for line in text.splitlines() if line.startswith("scaled: ")), None)
    assert status == 0 and line is not None, text
    print(line)
    scaled = json.loads(line.removeprefix("scaled: "))
    assert scaled["names"] == ["wm1", "wm2", "wm3"] and (scaled["before"], scaled["after"]) == (1, 1)
    assert machines.outcome("down")[0] == 0
