"""Run the loop on a cluster of several nodes of this machine that share nothing but a bucket: the bootstrap as
one submitted job (ingest, train, annotate, select, train, evaluate), then ``serve deploy`` of both models from the
bucket, and a verified prediction through HTTP with a key.

Checked: every stage has its record in the bucket, the server asks for the key, and its prediction was verified. Exit
status 0 where all of that holds, 2 where not.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import requests
import yaml
from pydantic import Field

from cluster.chaos.bucket import CACHES, cache_of, served_bucket
from cluster.chaos.bucket import NAME as BUCKET
from cluster.local_nodes import local_nodes
from wm.cli import main as command_line
from wm.config import Recipe
from wm.errors import InputError
from wm.packaged import SHIPPED
from wm.paths import OutputPath
from wm.ports import find_free_port
from wm.runs import RunRecord, read_run, write_json

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STAGES = ("world", "triplets", "idm", "annotated", "selected", "fdm", "evaluate")
"""Folders of the bootstrap's stages without which it is no loop; a recipe may have more."""

_ROOT = Path(__file__).resolve().parents[1]
_PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_MIDDLEWARES = "serve_apps.middleware.proxy:build_middlewares"
_ACTION = "move the red square left"
_POLL_S = 1.0
_REPLICA = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.5}}


class LoopRecipe(Recipe):
    """A cluster on this machine, and how large the loop is."""

    out: OutputPath
    """Folder for logs, the nodes' copies, the deployed file and loop.json; what the stages write is in the bucket,
    which ends with the command."""
    nodes: int = Field(default=3, ge=1)
    """Ray nodes, the head among them."""
    cpus_per_node: int = Field(default=2, ge=1)
    """Logical CPUs of each node."""
    bootstrap: str = "nano/demo"
    """Recipe of wm bootstrap: a file, or the name of an installed one."""
    overrides: list[str] = []
    """Keys of that recipe as key=value, such as overrides='["idm.max_steps=50"]'."""
    limit_minutes: float = Field(default=60.0, gt=0)
    """Give up where the job, or the deployment, takes longer."""


def run(recipe: LoopRecipe, *, dry_run: bool = False) -> dict[str, object]:
    """Run the loop and write ``out/loop.json``.

    Args:
        recipe: The cluster and the loop.
        dry_run: Print the commands alone.

    Returns:
        What was done, with the seconds of each part; empty on a dry run.

    Raises:
        InputError: A part failed, or takes too long.
    """
    out = Path(recipe.out).absolute()
    root = f"s3://{BUCKET}/loop"
    job = [sys.executable, "-m", "jobs.bootstrap", recipe.bootstrap, *recipe.overrides, f"out={root}"]
    if dry_run:
        print(f"loop: {recipe.nodes} nodes, logs in {out}")
        print(f"  ray job submit -- {shlex.join(['python', *job[1:]])}")
        print(f"  serve deploy {out / 'serve.yaml'}  # fdm={root}/fdm/model idm={root}/idm/model")
        return {}
    out.mkdir(parents=True, exist_ok=True)
    # Copies of objects of an earlier run's bucket.
    shutil.rmtree(out / CACHES, ignore_errors=True)
    # Before the cluster starts, whose processes inherit them.
    os.environ.setdefault(_PROXY_VARIABLE, _MIDDLEWARES)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    # Python's clients of a local cluster know that it has a token; `serve` does not.
    os.environ["RAY_AUTH_MODE"] = "token"
    # The bucket first: the nodes' processes inherit its address and keys.
    record: dict[str, object] = {"nodes": recipe.nodes, "overrides": recipe.overrides}
    with (
        served_bucket(out, is_wanted=True) as bucket,
        local_nodes(
            recipe.nodes, cpus_per_node=recipe.cpus_per_node, dashboard=True,
            variables_of=lambda number: {"WM_CACHE": cache_of(out, f"node-{number}")},
        ) as cluster,
    ):  # fmt: skip
        from ray.job_submission import JobSubmissionClient

        assert bucket is not None
        dashboard = f"http://{cluster.webui_url}"
        limit_s = 60 * recipe.limit_minutes
        _say(f"loop: {recipe.nodes} nodes that share {root} alone")
        record["job_s"] = _run_job(JobSubmissionClient(dashboard), job, out / "bootstrap.log", limit_s)
        record["stages"] = _check_stages(root)
        record |= _serve(root, dashboard, out, limit_s)
    write_json(out / "loop.json", record)
    _say(f"loop: done; {out / 'loop.json'}")
    return record


def _run_job(client: "JobSubmissionClient", command: Sequence[str], log: Path, limit_s: float) -> float:
    """Submit a command and wait for its end; returns the seconds that it took."""
    begin_s = time.monotonic()
    job = client.submit_job(entrypoint=shlex.join(command))
    # Asked for again and again: a connection for its log would break with every busy moment of the head.
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() - begin_s > limit_s:
            client.stop_job(job)
            raise InputError(f"the job has not ended after {limit_s / 60:g} minutes")
        time.sleep(_POLL_S)
    # Kept whatever it says: the cluster, which has it too, ends with this command.
    text = client.get_job_logs(job)
    log.write_text(text)
    if status.value != "SUCCEEDED":
        raise InputError(f"the job ended as {status.value}; {log} has its output, which ends with: {text[-1000:]!r}")
    seconds = round(time.monotonic() - begin_s, 1)
    _say(f"loop: the bootstrap took {seconds:g} s as a job")
    return seconds


def _check_stages(root: str) -> dict[str, object]:
    """Read the records of the stages from the bucket; returns counts of the annotation and seconds by stage."""
    records: dict[str, RunRecord] = {}
    # From the bucket, not from a node's copies: what was not published does not count.
    for name in STAGES:
        record = read_run(_path_of(f"{root}/{name}"))
        if record is None:
            raise InputError(f"{root}/{name} has no record: the loop is not complete")
        records[name] = record
    counts = records["annotated"]["counts"]
    # A loop without annotated videos would be supervised training.
    if not counts["triplets"]:
        raise InputError(f"{root}/annotated has no triplet: nothing was learned from videos")
    traffic = records["annotated"].get("traffic") or {}
    return {
        "seconds": {name: record["wall_s"] for name, record in records.items()},
        "videos": counts["videos"],
        "triplets": counts["triplets"],
        "traffic": traffic,
    }


def _path_of(uri: str) -> Path:
    from wm.files.mirror import mirrored_path

    return mirrored_path(uri)


def _serve(root: str, dashboard: str, out: Path, limit_s: float) -> dict[str, object]:
    """Deploy both models from the bucket, and ask for a prediction with a key and without one.

    Raises:
        InputError: The deployment fails, answers without the key, or its prediction is not verified.
    """
    begin_s = time.monotonic()
    port = find_free_port()
    # 1. The key file and the application, as a user would write them.
    keys = out / "keys.toml"
    token = _make_key(keys)
    # Two replicas of half a core, so that ingress and both models fit on two nodes.
    arguments = {
        "fdm": f"{root}/fdm/model", "idm": f"{root}/idm/model", "device": "cpu", "keys": str(keys),
        "fdm_server": _REPLICA, "idm_server": _REPLICA, "num_candidates": 4,
    }  # fmt: skip
    application = {
        "name": "world_model", "route_prefix": "/", "import_path": "serve_apps.world_model:build", "args": arguments,
    }  # fmt: skip
    http_options = {"host": "127.0.0.1", "port": port, "request_timeout_s": 130}
    document = {"proxy_location": "HeadOnly", "http_options": http_options, "applications": [application]}
    (out / "serve.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    # 2. Deploy, and wait until it runs.
    _run_serve(dashboard, "deploy", str(out / "serve.yaml"))
    # A replica downloads its model first, which counts as starting.
    while (state := _state_of(dashboard)).get("status") != "RUNNING":
        if state.get("status") == "DEPLOY_FAILED" or time.monotonic() - begin_s > limit_s:
            raise InputError(f"the deployment is {state.get('status')}: {state.get('message', '')!r:.1000}")
        time.sleep(_POLL_S)
    deploy_s = round(time.monotonic() - begin_s, 1)
    _say(f"loop: both models were deployed from the bucket within {deploy_s:g} s")
    # 3. Nobody gets in without the key.
    url = f"http://127.0.0.1:{port}/v1/images/edits"
    refusal = _ask(url, "")
    if refusal.status_code != requests.codes.unauthorized:
        raise InputError(f"without a key the server answered with status {refusal.status_code}, not 401")
    reply = _ask(url, token)
    if reply.status_code != requests.codes.ok:
        raise InputError(f"the server answered with status {reply.status_code}: {reply.text:.300}")
    # A model that samples alone would answer too: the verifier's word is what was asked for.
    verification = reply.json()["data"][0]["verification"]
    if not isinstance(verification["logprob"], float) or verification["rank"] != 0:
        raise InputError(f"the prediction is not verified: {verification}")
    _say(f"loop: a prediction, verified with {verification['logprob']:.3f} nats")
    return {"deploy_s": deploy_s, "status_without_key": refusal.status_code, "verification": verification}


def _make_key(file: Path) -> str:
    """Write a key file by the command that makes keys; returns the key, which that shows once."""
    result = subprocess.run(
        [sys.executable, "-m", "serve_apps.keys", "name=loop"], capture_output=True, text=True, cwd=_ROOT, check=True
    )
    file.write_text(result.stdout)
    file.chmod(0o600)
    # The entry is on standard output, the key itself ends what is on the other one.
    return result.stderr.split()[-1]


def _ask(url: str, token: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    image = min((SHIPPED / "images").glob("*.png")).read_bytes()
    files, data = {"image": ("a.png", image, "image/png")}, {"prompt": _ACTION, "seed": "0", "n": "1"}
    return requests.post(url, headers=headers, files=files, data=data, timeout=130)


def _run_serve(dashboard: str, command: str, *words: str) -> str:
    """Run one of Ray's ``serve`` commands against the cluster; returns its output."""
    program = str(Path(sys.executable).parent / "serve")
    result = subprocess.run(
        [program, command, "-a", dashboard, *words], capture_output=True, text=True, cwd=_ROOT, check=False
    )
    # Ray's own notices come first: the reason is in the last lines.
    if result.returncode:
        raise InputError(f"serve {command} ended with status {result.returncode}: {result.stderr[-500:]!r}")
    return result.stdout


def _state_of(dashboard: str) -> dict[str, str]:
    status = yaml.safe_load(_run_serve(dashboard, "status")) or {}
    state: dict[str, str] = (status.get("applications") or {}).get("world_model") or {}
    return state


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return command_line(
        LoopRecipe, run, name="loop", prog="python -m cluster.loop", description=__doc__ or "", argv=argv
    )


if __name__ == "__main__":
    sys.exit(main())
