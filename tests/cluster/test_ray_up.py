"""``ray up`` of the shipped file, on three machines made of namespaces on this one, each with an ssh server of its own.

The machines have no Docker: what the file says of the container is left out. It needs root, sshd, rsync and iproute2.
"""

import os
import pwd
import shutil
import subprocess
import sys
from contextlib import suppress
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
step nodes ray exec --no-config-cache cluster.yaml 'RAY_AUTH_MODE=token python /mnt/nodes.py'
export RAY_AUTH_MODE=token
submit() { ray job submit --address http://127.0.0.1:8265 --working-dir "$folder" -- python -m jobs.tabletop "$@"; }
folder=$1/empty
few="train=1 tune=0 test=0 videos=0"
step local submit $few out=/tmp/lost
step shared submit $few out=/mnt/kept
step health wget -q -T 20 -O - http://127.0.0.1:52365/api/local_raylet_healthz
step anonymous env RAY_AUTH_MODE=disabled ray job list --address http://127.0.0.1:8265
step down ray down -y cluster.yaml
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


@pytest.mark.soak
@pytest.mark.skipif(not has_machines(), reason="needs root, namespaces, sshd, rsync and iproute2")
def test_ray_up_starts_three_machines(tmp_path):
    for name in ("shared", "empty", "home/.ray"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    (tmp_path / "home/.ray/auth_token").write_text("0" * 64)
    (tmp_path / "machine.sh").write_text(MACHINE)
    (tmp_path / "shared/nodes.py").write_text(NODES)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config_for_machines(tmp_path)))
    programs = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path / "home"), "PATH": f"{programs}:{os.environ['PATH']}", "TERM": "dumb"}
    environment["RAY_TMPDIR"] = str(tmp_path / "home")
    # The end of the first process of a namespace ends all in it.
    command = ["unshare", "-n", "-m", "-p", "--fork", "--mount-proc", "--kill-child", "bash", "-c", STEPS, "steps"]
    subprocess.run(
        [*command, tmp_path, programs, ROOT, pwd.getpwuid(0).pw_dir], env=environment, timeout=900, check=True
    )

    def outcome(step: str) -> tuple[int, str]:
        return int((tmp_path / f"{step}.rc").read_text()), (tmp_path / f"{step}.log").read_text()

    # 1. All machines are nodes, each with its own name.
    status, text = outcome("up")
    assert status == 0, text
    status, text = outcome("nodes")
    assert status == 0 and "machines: wm1 wm2 wm3" in text, text
    # 2. A submitted command must write where all of them see it.
    status, text = outcome("local")
    assert status != 0 and "error: out = '/tmp/lost': what the submitted command writes" in text, text
    status, text = outcome("shared")
    assert status == 0 and (tmp_path / "shared/kept/supervised").is_dir(), text
    # 3. Without the token nobody is let in, but to ask whether a node lives, as the image's HEALTHCHECK does.
    assert outcome("health") == (0, "success")
    status, text = outcome("anonymous")
    assert status != 0 and "Missing authentication token" in text, text
    assert outcome("down")[0] == 0
