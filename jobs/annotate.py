"""Annotate videos without labels: key-frame pairs, their image codes, and the action an IDM reads from
them."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from jobs._annotate_actors import Annotator, AnnotatorSettings, Decoder
from jobs._annotate_shards import summarise, tidy
from jobs._ray import connect, need, quiet_data
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.datasets.videos import Video, list_videos, listing_digest
from wm.errors import InputError
from wm.runs import Run, digest_of
from wm.video import ClipSettings, KeyframeRule, MotionKind, Reader


class AnnotateRecipe(Recipe):
    """Which videos, which IDM, how key-frames are chosen."""

    videos: str
    """Folder (searched in depth), glob, .txt list of paths, or one file."""
    idm: str
    """Model folder of the inverse dynamics model: full, or a PEFT adapter."""
    out: str
    """Folder for out/triplets, out/rejects, out/shards and out/run.json."""
    base: str | None = None
    """Base folder of an adapter; without it the one that the adapter's manifest names."""
    dataset: str = "videos"
    """Name for the dataset column."""
    split: str = "train"
    """Name for the split column."""
    license: str = ""
    """Licence of the videos, kept in every row."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first videos only."""
    max_keyframes: int = Field(default=6, ge=2)
    """K_f: key-frames of a video at most."""
    min_interval: int = Field(default=20, ge=1)
    """I_f: frames between two key-frames at least."""
    keyframe_rule: KeyframeRule = "top_then_spacing"
    """top_then_spacing: the max_keyframes frames of most motion, then those too close to a kept one dropped.
    greedy_spacing: down the order of motion until max_keyframes are kept."""
    motion: MotionKind = "dis"
    """Optical flow: dis (fast) or farneback."""
    motion_side_px: int = Field(default=160, ge=16)
    """Long side at which motion is measured; smaller videos keep their size."""
    min_motion: float = Field(default=0.0, ge=0)
    """Pairs whose target frame moves less (px/frame at full size) are filtered; 0 keeps all."""
    reader: Reader = "auto"
    """Who reads the chosen frames: auto = decord, and PyAV where decord fails or is wrong; decord; pyav."""
    image_side_px: int = Field(default=512, ge=0)
    """Short side of stored images at most; 0 = as large as the video."""
    time_limit_s: float = Field(default=120.0, gt=0)
    """A video that takes longer is given up."""
    memory_limit_mb: int = Field(default=0, ge=0)
    """Address space of a decoding process in MiB (at least 2000 is needed to start); 0 = no limit."""
    num_workers: int = Field(default=2, ge=1)
    """Decoding actors."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """Logical CPUs that Ray sets aside for an actor."""
    num_annotators: int = Field(default=1, ge=1)
    """Actors that hold codec and IDM."""
    gpus_per_annotator: float = Field(default=0.0, ge=0)
    """GPUs of an annotator, 0 = it runs on the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the IDM's weights; the codec stays in float32."""
    annotator_threads: int = Field(default=1, ge=1)
    """Threads of an annotator on the CPU."""
    videos_per_shard: int = Field(default=32, ge=1)
    """Videos annotated together and written as one file; a killed run loses at most those under way."""
    codec_batch: int = Field(default=64, ge=1)
    """Images that the codec gets at once."""
    idm_batch: int = Field(default=64, ge=1)
    """Pairs that the IDM gets at once."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest action, in tokens."""

    def clip_settings(self) -> ClipSettings:
        """What a decoding actor needs."""
        return ClipSettings(
            motion=self.motion,
            motion_side_px=self.motion_side_px,
            max_keyframes=self.max_keyframes,
            min_interval=self.min_interval,
            rule=self.keyframe_rule,
            reader=self.reader,
            image_side_px=self.image_side_px,
            time_limit_s=self.time_limit_s,
            memory_limit_mb=self.memory_limit_mb,
        )

    def actors(self, num_videos: int) -> tuple[int, int]:
        """How many decoders and annotators so many videos keep busy."""
        shards = -(-num_videos // self.videos_per_shard)
        return min(self.num_workers, num_videos), min(self.num_annotators, shards)

    def annotator_settings(self) -> AnnotatorSettings:
        """What an annotating actor needs."""
        return AnnotatorSettings(
            out=str(Path(self.out).absolute()),
            idm=str(Path(self.idm).absolute()),
            base=str(Path(self.base).absolute()) if self.base else None,
            dataset=self.dataset,
            split=self.split,
            license=self.license,
            min_motion=self.min_motion,
            max_new_tokens=self.max_new_tokens,
            codec_batch=self.codec_batch,
            idm_batch=self.idm_batch,
            threads=self.annotator_threads,
            device="cuda" if self.gpus_per_annotator > 0 else "cpu",
            dtype=self.dtype,
        )


def run(recipe: AnnotateRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Annotate into ``recipe.out``; returns the run's record (on a dry run: what would be done)."""
    videos = list_videos(recipe.videos)[: recipe.limit]
    _require_model("idm", recipe.idm)
    inputs = {"videos": listing_digest(videos), "idm": digest_of(recipe.idm)}
    if recipe.base:
        _require_model("base", recipe.base)
        _require_fit(recipe.idm, recipe.base)
        inputs["base"] = digest_of(recipe.base)
    stage = Run(recipe.out, "annotate", recipe, inputs)
    whole = stage.is_whole()
    if not whole:
        _require_machine(recipe, len(videos))
        _require_codec(recipe)
    if dry_run or whole:
        return _tell_plan(recipe, videos, whole)
    stage.start()
    done = tidy(Path(recipe.out))
    pending = [video for video in videos if video.key not in done]
    if done:
        print(f"annotate: going on, {len(videos) - len(pending):,} of {len(videos):,} videos are finished")
    with stage.timed("annotate_s"):
        _annotate(recipe, pending, len(videos))
    tidy(Path(recipe.out))
    counts = {"listed": len(videos)} | summarise(Path(recipe.out))
    if counts["videos"] != len(videos):
        raise InputError(f"{recipe.out} accounts for {counts['videos']} of {len(videos)} videos; run the command again")
    record = stage.finish(counts, annotated_now=len(pending))
    _tell_result(recipe, record)
    return record


def _annotate(recipe: AnnotateRecipe, pending: Sequence[Video], total: int) -> None:
    """Run the two actor pools over the pending videos; the driver sees counts only."""
    if not pending:
        return
    connect()
    import ray
    from ray.data import ActorPoolStrategy

    quiet_data()
    workers, annotators = recipe.actors(len(pending))
    counts = (
        ray.data.from_arrow(_blocks(pending, workers))
        .map_batches(
            Decoder,
            fn_constructor_args=(recipe.clip_settings(),),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=workers),
            num_cpus=recipe.cpus_per_worker,
        )
        .map_batches(
            Annotator,
            fn_constructor_args=(recipe.annotator_settings(),),
            batch_size=recipe.videos_per_shard,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=annotators),
            num_cpus=recipe.cpus_per_worker,
            num_gpus=recipe.gpus_per_annotator,
        )
    )
    started, pairs, rejects = time.perf_counter(), 0, 0
    with progress_bar(total, "video", "annotate", done=total - len(pending)) as bar:
        for shard in counts.iter_rows():
            if shard["problem"]:
                raise InputError(shard["problem"])
            pairs, rejects = pairs + shard["triplets"], rejects + shard["rejects"]
            rate = pairs / (time.perf_counter() - started)
            bar.set_postfix_str(f"{rate:.1f} pairs/s, {rejects} rejects", refresh=False)
            bar.update(shard["videos"])


def _blocks(videos: Sequence[Video], workers: int) -> list[pa.Table]:
    """Small blocks, so that every worker gets many: a slow video then holds up few others."""
    size = max(1, min(32, len(videos) // (workers * 4)))
    rows = [
        {"uri": video.uri, "key": video.key, "class_label": video.class_label, "path": video.path} for video in videos
    ]
    schema = pa.schema([(name, pa.string()) for name in ("uri", "key", "class_label", "path")])
    return [pa.Table.from_pylist(rows[start : start + size], schema=schema) for start in range(0, len(rows), size)]


def _require_machine(recipe: AnnotateRecipe, num_videos: int) -> None:
    workers, annotators = recipe.actors(num_videos)
    key = f"num_workers = {recipe.num_workers}, num_annotators = {recipe.num_annotators}"
    need((workers + annotators) * recipe.cpus_per_worker, annotators * recipe.gpus_per_annotator, key)


def _require_model(key: str, folder: str) -> None:
    from wm.models import model_folder

    path = model_folder(folder)
    if not path.is_dir():
        raise InputError(f"{key} = {folder!r}: no such model folder")
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{key} = {folder!r} is no model folder: it has neither config.json nor adapter_config.json")


def _require_codec(recipe: AnnotateRecipe) -> None:
    """Read the codec here too: a damaged folder, or an adapter without its base, is told before anything starts."""
    from wm.models import load_codec

    load_codec(recipe.base or recipe.idm)


def _require_fit(idm: str, base: str) -> None:
    """Refuse a base that the adapter's manifest does not name, before anything is decoded."""
    from wm.models import read_manifest

    adapter, found = read_manifest(idm), read_manifest(base)
    if adapter is not None and adapter.kind != "adapter":
        raise InputError(f"idm = {idm!r} is a whole model and no adapter; leave base out")
    if adapter is not None and found is not None and adapter.base_id != found.base_id:
        raise InputError(f"adapter {idm} was trained on base {adapter.base_id}, but {base} is {found.base_id}")


def _tell_plan(recipe: AnnotateRecipe, videos: Sequence[Video], whole: bool) -> dict[str, Any]:
    classes = len({video.class_label for video in videos})
    print(
        f"annotate: {'already whole in' if whole else 'would write'} {recipe.out}: {len(videos):,} videos of "
        f"{classes:,} classes from {recipe.videos}, IDM {recipe.idm}"
    )
    if not whole:
        settings = recipe.model_dump(exclude={"videos", "idm", "out"}, exclude_none=True)
        print("  " + ", ".join(f"{key} = {value}" for key, value in settings.items()))
    return {"videos": len(videos), "whole": whole}


def _tell_result(recipe: AnnotateRecipe, record: dict[str, Any]) -> None:
    counts, seconds = record["counts"], max(record["wall_s"], 1e-9)
    print(
        f"annotate: {counts['videos']:,} videos ({counts['video_s']:,.0f} s, {counts['frames']:,} frames) → "
        f"{counts['triplets']:,} triplets of {counts['videos_with_triplets']:,} in {recipe.out}/triplets, "
        f"{counts['filtered']:,} filtered and {counts['failed']:,} failed in {recipe.out}/rejects; "
        f"{record['annotated_now'] / seconds:.1f} videos/s"
    )
    for reason, count in counts["rejects_by_reason"].items():
        print(f"  {reason}: {count}")
    readers = ", ".join(f"{reader} {count}" for reader, count in counts["readers"].items())
    print(
        f"  frames read by: {readers or 'none'}; decord gave up on {counts['decord_fallbacks']}; "
        f"{counts['keyframes_per_used_video']} key-frames a used video"
    )


def main() -> int:
    """Command line."""
    return cli_main(AnnotateRecipe, run, name="annotate", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
