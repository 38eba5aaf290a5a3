"""Videos to annotate, recipes over them, and what came out."""

from jobs.annotate.annotator import Annotator
from jobs.annotate.decoder import Decoder
from jobs.annotate.job import AnnotateRecipe
from jobs.annotate.shards import cut_shards, shard_table
from tests.helpers.video_files import marked_frame, write_video
from wm.datasets.videos.videos import list_videos
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA
from wm.tables import read_table


def write_videos(root):
    """Six files in two classes: two good ones, a corrupt one, an empty one, one of one frame, a still."""
    good = write_video(root / "wave" / "good.mp4", [marked_frame(i) for i in range(60)])
    write_video(root / "wave" / "other.avi", [marked_frame(i, 48, 80) for i in range(45)], codec="mpeg4")
    (root / "odd").mkdir()
    (root / "odd" / "corrupt.mp4").write_bytes(good.read_bytes()[:300] + bytes(5000))
    (root / "odd" / "empty.mp4").touch()
    write_video(root / "odd" / "one.mp4", [marked_frame(0)])
    write_video(root / "odd" / "still.mp4", [marked_frame(5)] * 30)
    return root


def recipe(videos, idm, out, **changes):
    """A small recipe; of ``keyframes``, ``limits`` and ``resources`` the keys that are given are changed."""
    values = {
        "videos": str(videos),
        "idm": str(idm),
        "out": str(out),
        "videos_per_shard": 2,
        "max_new_tokens": 6,
        # A random IDM rarely ends its text, and a random codec gives most images the same codes.
        "filters": {"action": "score", "unchanged": "score"},
    }
    keyframes = {"min_interval_frames": 8} | changes.pop("keyframes", {})
    resources = {"num_decoders": 1} | changes.pop("resources", {})
    return AnnotateRecipe.parse(values | {"keyframes": keyframes, "resources": resources} | changes, "test")


def decode(one):
    """What the decoding actor makes of a recipe's videos, all as one shard."""
    listing = list_videos(one.videos)
    decoder = Decoder(one.clip_settings(), one.download_settings(), one.dataset)
    table = decoder(shard_table(listing, 0, 0, listing.num_rows))
    decoder.reader.close()
    assert table.column("key").to_pylist() == listing.column("key").to_pylist()
    return table


def annotate_here(one):
    """Write the shards of a recipe with both actors in this process, one after the other: what any run on Ray gives."""
    listing = list_videos(one.videos)
    decoder = Decoder(one.clip_settings(), one.download_settings(), one.dataset)
    annotator = Annotator(one.annotator_settings())
    for number, block in cut_shards(listing, one.videos_per_shard).items():
        annotator(decoder(shard_table(listing, number, *block)))
    decoder.reader.close()


def rows(out):
    """(triplets, rejects) on disk, in the order of their ids."""
    triplets = read_table(out / "triplets", TRIPLET_SCHEMA).to_pylist()
    rejects = read_table(out / "rejects", REJECT_SCHEMA).to_pylist() if (out / "rejects").exists() else []
    return (
        sorted(triplets, key=lambda row: row["triplet_id"]),
        sorted(rejects, key=lambda row: row["reject_id"]),
    )
