"""What a user sees of Ray in an ordinary run: nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from wm.images import encode_png

ROOT = Path(__file__).resolve().parents[1]


def test_a_run_on_ray_prints_its_own_bar_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    rows = [{"instruction": f"move {number}", "input": "image.png", "output": "image.png"} for number in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    settings = [f"root={tmp_path}", "file=rows.json", f"out={tmp_path / 'out'}", "shard_rows=1"]
    command = [sys.executable, "-m", "jobs.ingest", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.startswith("ingest: 4 rows → 4 triplets") and done.stdout.count("\n") == 1
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert lines and all(line.startswith("ingest: ") and "/4 [" in line for line in lines), done.stderr
