"""The token cache: written once, found again, never half, written again when anything it depends on changes."""

import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.training_data import random_rows, write_triplets
from wm.errors import InputError
from wm.models import load_model
from wm.nano.preset import TINY_WORDS, write_random_base
from wm.training import RecognitionWeights, Source, TokenSet, open_tokens
from wm.training.data import cache_folders, token_cache


def opened(base: Path, root: Path, *sources: Source, task: str = "fdm", seed: int = 0) -> TokenSet:
    return open_tokens(sources, load_model(base), task, RecognitionWeights(), root=root, seed=seed)


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


@pytest.fixture
def triplets(tiny_base: Path, tmp_path: Path) -> Path:
    return write_triplets(random_rows(tiny_base, 20), tmp_path / "triplets")


def test_cache_is_written_once_and_serves_both_tasks(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, source = tmp_path / "deep" / "tokens", Source(path=str(triplets))
    opened(tiny_base, root, source)
    (name,) = folders(root)
    monkeypatch.setattr(cache_folders, "_write", lambda *_: pytest.fail("made again"))
    opened(tiny_base, root, source, task="idm", seed=1)
    assert folders(root) == [name]
    # what a run writes into a row: 4 + 4 codes of 2 bytes, 4 changes of 4
    assert (root / name / "rows.bin").stat().st_size == 20 * (8 * 2 + 4 * 4)


def test_cache_is_written_again_for_any_changed_input(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    root = tmp_path / "tokens"
    opened(tiny_base, root, Source(path=str(triplets)))
    opened(tiny_base, root, Source(path=str(triplets), mix_weight=0.5))
    assert len(folders(root)) == 1
    opened(tiny_base, root, Source(path=str(triplets), limit=5))
    opened(tiny_base, root, Source(path=str(triplets), limit=5), seed=1)
    assert len(folders(root)) == 3
    opened(tiny_base, root, Source(path=str(triplets), limit=5), seed=1)
    assert len(folders(root)) == 3
    write_triplets(random_rows(tiny_base, 21), triplets)
    assert opened(tiny_base, root, Source(path=str(triplets))).num_rows == 21
    assert len(folders(root)) == 4
    # another tokenizer, the same codec
    other = tmp_path / "other"
    write_random_base(other, seed=0, words=(*TINY_WORDS, "aside"))
    assert load_model(other).codec_id == load_model(tiny_base).codec_id
    opened(other, root, Source(path=str(triplets)))
    assert len(folders(root)) == 5


def test_a_failed_cache_write_leaves_nothing(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out" / "tokens"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache.np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        opened(tiny_base, root, Source(path=str(triplets)))
    assert not (tmp_path / "out").exists()


def test_a_disk_too_small_is_reported_before_work(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(token_cache.shutil, "disk_usage", lambda _: usage._replace(free=600))
    with pytest.raises(InputError, match=r"tokens of 20 triplets need 0.0 GB .* data\.token_cache"):
        opened(tiny_base, tmp_path / "tokens", Source(path=str(triplets)))


def test_a_file_of_another_size_is_refused(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    root, source = tmp_path / "tokens", Source(path=str(triplets))
    opened(tiny_base, root, source)
    (name,) = folders(root)
    os.truncate(root / name / "rows.bin", 100)
    with pytest.raises(
        InputError, match=r"rows.bin has 100 bytes, expected 640; remove .*, which is then written again"
    ):
        opened(tiny_base, root, source)


def test_leftovers_of_a_killed_writer_go(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    root, source = tmp_path / "tokens", Source(path=str(triplets))
    opened(tiny_base, root, source)
    (name,) = folders(root)
    node = cache_folders.platform.node()
    dead = multiprocessing.get_context("fork").Process(target=int)
    dead.start()
    dead.join()
    names = {"dead": f".{name}.{node}.{dead.pid}.x.tmp", "alive": f".{name}.{node}.{os.getpid()}.y.tmp"}
    for leftover in names.values():
        (root / leftover).mkdir()
    shutil.rmtree(root / name)
    opened(tiny_base, root, source)
    assert not (root / names["dead"]).exists() and (root / names["alive"]).exists()


def test_of_several_workers_one_writes_the_cache(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes: each opens the lock for itself."""
    writes = []
    write = cache_folders._write

    def slow(*args: object) -> None:
        writes.append(1)
        time.sleep(0.3)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_folders, "_write", slow)
    vlm, source = load_model(tiny_base), Source(path=str(triplets))

    def batch(_: int) -> tuple[torch.Tensor, ...]:
        tokens = open_tokens([source], vlm, "fdm", RecognitionWeights(), root=tmp_path / "tokens", seed=0)
        return tokens.batch(np.arange(20))

    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(batch, range(4)))
    assert len(writes) == 1
    assert all(torch.equal(one, other) for batch in batches for one, other in zip(batch, batches[0], strict=True))


def test_the_second_of_two_cache_writers_removes_its_own(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on two nodes that share a folder, where locks do not reach."""
    root, source = tmp_path / "tokens", Source(path=str(triplets))
    first = opened(tiny_base, root, source).batch(np.arange(20))
    (name,) = folders(root)
    write_files = token_cache._write_files

    def late(aside: Path, *args: object) -> None:
        write_files(aside, *args)  # type: ignore[arg-type]
        (tmp_path / "quicker").rename(root / name)

    shutil.move(root / name, tmp_path / "quicker")
    monkeypatch.setattr(token_cache, "_write_files", late)
    second = opened(tiny_base, root, source).batch(np.arange(20))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert [path.name for path in root.iterdir() if path.name.endswith(".tmp")] == []
