"""The stream: every row once, in order, in bounded memory, with errors that surface."""

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import make_cache
from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import epoch_order, stream_batches
from vidcache.spec import Spec


@pytest.fixture
def reader(cache_file: Path) -> object:
    with CacheReader(cache_file) as opened:
        yield opened


@settings(max_examples=40, deadline=None)
@given(
    picks=st.lists(st.integers(0, 22), max_size=40),
    batch_size=st.integers(1, 50),
    threads=st.integers(1, 4),
    prefetch=st.integers(1, 4),
    frames=st.sampled_from([None, [0, 3], [2]]),
)
def test_every_row_comes_once_in_order(
    cache_file: Path, picks: list[int], batch_size: int, threads: int, prefetch: int, frames: list[int] | None
) -> None:
    with CacheReader(cache_file) as reader:
        rows = reader.rows()[np.array(picks, np.int64)]
        found, sizes = [], []
        stream = stream_batches(reader, rows, batch_size, frames=frames, num_threads=threads, prefetch=prefetch)
        for batch in stream:
            assert (reader.read(batch.rows, frames) == batch.clips.numpy()).all()
            assert (reader.labels[batch.rows] == batch.labels.numpy()).all()
            found += batch.rows.tolist()
            sizes.append(len(batch.rows))
        assert rows.tolist() == found
        assert all(size == batch_size for size in sizes[:-1])


def test_the_order_is_a_function_of_seed_and_epoch_only() -> None:
    rows = np.arange(50)
    orders = {(seed, epoch): tuple(epoch_order(rows, seed, epoch).tolist()) for seed in (0, 1) for epoch in (1, 2, 10)}

    assert len(set(orders.values())) == 6
    assert all(sorted(order) == rows.tolist() for order in orders.values())
    assert orders[0, 2] == tuple(epoch_order(rows, 0, 2).tolist())


def test_memory_is_allocated_once(reader: CacheReader) -> None:
    rows = np.tile(reader.rows(), 4)

    places = {batch.clips.data_ptr() for batch in stream_batches(reader, rows, 4, prefetch=2)}

    assert len(places) <= 3


def test_at_most_prefetch_batches_are_read_ahead(reader: CacheReader, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    real = reader.read

    def counted(*arguments: object, **more: object) -> object:
        nonlocal reads
        reads += 1
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(reader, "read", counted)
    stream = stream_batches(reader, reader.rows()[:20], 2, prefetch=3, num_threads=1)
    next(stream)
    time.sleep(0.2)
    assert 1 + 3 == reads
    stream.close()


MEMORY = """
import re, sys
from pathlib import Path
import torch
from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import stream_batches
def peak_mib(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
with CacheReader(sys.argv[1]) as reader:
    rows, bare, peaks = reader.rows(), peak_mib(), []
    for epoch in range(50):
        for batch in stream_batches(reader, rows, 16):
            pass
        peaks.append(peak_mib() - bare)
print(2 * 16 * reader.spec.clip_bytes / 2**20, peaks[9], peaks[-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_two_batches_and_does_not_grow(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c.h5", {"a": 20, "b": 20}, spec=Spec(16, 64, 64))

    ended = subprocess.run([sys.executable, "-c", MEMORY, cache], capture_output=True, text=True, check=True)

    two_batches, first, last = map(float, ended.stdout.split())
    assert first < two_batches + 20
    assert last < first + two_batches / 2 + 1  # in 40 more epochs; the last batch of one may outlive its ring


def test_an_error_in_a_thread_surfaces(reader: CacheReader) -> None:
    rows = np.array([0, 1, 3, 2, 4])  # row 2 has no clip

    stream = stream_batches(reader, rows, 1)

    assert [0, 1, 3] == [int(next(stream).rows[0]) for _ in range(3)]
    with pytest.raises(ValueError, match="row 2 has no clip"):
        next(stream)


def test_leaving_early_stops_the_threads(reader: CacheReader) -> None:
    for _ in stream_batches(reader, np.tile(reader.rows(), 20), 2, num_threads=3):
        break
    gc.collect()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vidcache-reader")]


@pytest.mark.parametrize("name", ["batch_size", "num_threads", "prefetch"])
def test_counts_below_one_are_refused(reader: CacheReader, name: str) -> None:
    settings = {"batch_size": 2, "num_threads": 2, "prefetch": 2, name: 0}

    with pytest.raises(ValueError, match=f"{name} 0.*expected .*1 or more"):
        next(stream_batches(reader, reader.rows(), **settings))  # type: ignore[arg-type]


@pytest.mark.gpu
def test_cuda_batches_hold_the_same_bytes(reader: CacheReader) -> None:
    rows = np.tile(reader.rows(), 8)
    for batch in stream_batches(reader, rows, 3, device="cuda"):
        torch.cuda._sleep(10**6)  # a slow consumer: the ring must not overwrite what it has not read
        assert (reader.read(batch.rows) == batch.clips.cpu().numpy()).all()
        assert (reader.labels[batch.rows] == batch.labels.cpu().numpy()).all()
