"""Decoders are kept to the nodes that annotate: key-frames stay there, and the rows are the same."""

from pathlib import Path

import pytest

from cluster.chaos.outcomes import digest_rows
from cluster.local_nodes import OBJECT_STORE_BYTES, local_nodes
from jobs import annotate
from jobs.annotate.job import AnnotateRecipe
from jobs.shared import ray_session
from tests.helpers.annotate_data import annotate_here
from tests.helpers.video_files import marked_frame, write_video
from wm.runs import read_run

NODES = "gpu_node"
"""Given to the nodes that annotate, as ``ray start --resources`` does."""
PLACES = {"free": [], "beside": [f"resources.custom_per_decoder.{NODES}=0.01"]}


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_annotating", [1, 2])
def test_decoders_beside_annotators_move_less_and_change_no_row(
    num_annotating: int, tiny_base: Path, tmp_path: Path
) -> None:
    for number in range(24):
        write_video(tmp_path / "clips" / f"{number:02d}.mp4", [marked_frame(number % 5 + 3 * i) for i in range(50)])
    keys = ["keyframes.min_interval_frames=8", "filters.action=score", "filters.unchanged=score", "videos_per_shard=2"]
    keys += ["resources.num_decoders=3", "resources.num_annotators=2", f"resources.custom_per_annotator.{NODES}=0.5"]
    common = [f"videos={tmp_path / 'clips'}", f"idm={tiny_base}", *keys]
    annotate_here(AnnotateRecipe.load(None, [*common, f"out={tmp_path / 'here'}"]))
    shares = {}
    with local_nodes(3 - num_annotating, cpus_per_node=2) as cluster:
        for _ in range(num_annotating):
            cluster.add_node(num_cpus=2, resources={NODES: 1}, object_store_memory=OBJECT_STORE_BYTES)
        cluster.wait_for_nodes()
        try:
            for place, more in PLACES.items():
                annotate.run(AnnotateRecipe.load(None, [*common, *more, f"out={tmp_path / place}"]))
                assert digest_rows(tmp_path / place) == digest_rows(tmp_path / "here")
                record = read_run(tmp_path / place)
                assert record is not None
                traffic = record["traffic"]
                shares[place] = traffic["moved_bytes"] / traffic["block_bytes"]
        finally:
            ray_session.shutdown()
    print(f"{num_annotating} of 3 nodes annotate; key-frames that left their node: {shares}")
    assert shares["free"] > 0
    # Between two such nodes some may still go from one to the other.
    if num_annotating == 1:
        assert shares["beside"] == 0
