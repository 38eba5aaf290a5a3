"""``python -m cluster.loop``: the loop as one submitted job, and Ray Serve, on nodes that share a bucket alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.loop import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *(
        "tabletop.train=48",
        "tabletop.test=6",
        "tabletop.videos=24",
        "idm.max_steps=12",
        "fdm.max_steps=12",
        "select.k=20",
    ),
    *("annotate.videos_per_shard=2", "annotate.max_new_tokens=6", "annotate.filters.action=score"),
    *("annotate.filters.unchanged=score", "evaluate.seeds=[0]", "evaluate.search.num_candidates=[1]"),
    *("variants.unweighted=false", "scoring.judge=false", "scoring.score=false", "scoring.paper=false"),
]


def test_a_dry_run_prints_both_commands(tmp_path, capsys):
    assert main(["--dry-run", f"out={tmp_path / 'out'}", 'overrides=["select.k=20"]']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"loop: 3 nodes, logs in {tmp_path / 'out'}"
    assert lines[1] == "  ray job submit -- python -m jobs.bootstrap nano/demo select.k=20 out=s3://chaos/loop"
    assert lines[2].startswith(f"  serve deploy {tmp_path / 'out' / 'serve.yaml'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_loop_with_serve_on_three_nodes(tmp_path):
    command = [sys.executable, "-m", "cluster.loop", f"out={tmp_path}", f"overrides={json.dumps(SMALL)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "loop.json").read_text())
    assert record["nodes"] == 3 and record["stages"]["videos"] == 24 and record["stages"]["triplets"] > 0
    assert record["status_without_key"] == 401
    assert record["verification"]["rank"] == 0 and record["verification"]["logprob"] < 0
    # Nodes that share nothing have fetched both models, each for itself.
    fetched = {path.relative_to(tmp_path / "cache").parts[0] for path in tmp_path.glob("cache/node-*/**/fdm/model/*")}
    assert fetched
