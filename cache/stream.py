"""From a cache to the device: an order, reader threads, a ring of reused buffers, one copy.

Bytes go in, bytes come out: decoding, augmentation and normalisation are not done here.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch

Rows = npt.NDArray[np.int64]


class ClipSource(Protocol):
    """What can be streamed: arrays of bytes, all of one shape, each with a label; a `Reader` of a cache is one."""

    @property
    def labels(self) -> Rows:
        """(N,) one for each."""

    def shape_of(self, frames: npt.ArrayLike | None) -> tuple[int, ...]:
        """Return the shape of one, with only these frames where it has frames."""

    def read(
        self, rows: npt.ArrayLike, frames: npt.ArrayLike | None, out: npt.NDArray[np.uint8], *, verify: bool
    ) -> npt.NDArray[np.uint8]:
        """Read some into `out`, (B, *shape) uint8; may be called from several threads."""


class StreamOptions(TypedDict, total=False):
    """How to read.

    Attributes:
        frames: (T',) frames of each clip; None, the default, for all.
        labels: (N,) to hand out instead of the reader's.
        device: Where the batches go; "cpu".
        num_threads: Reader threads; >= 1, by default 2.
        prefetch: Batches read ahead; >= 1, by default 1.
        verify: Compare each clip with its hash; reads all its frames.
    """

    frames: npt.ArrayLike | None
    labels: Rows | None
    device: str | torch.device
    num_threads: int
    prefetch: int
    verify: bool


@dataclasses.dataclass(frozen=True)
class Batch:
    """Clips on the device.

    Attributes:
        clips: (B, T', H, W, 3) uint8, or of whatever shape the source gives. On the CPU it is overwritten once the
            next batch is asked for.
        labels: (B,) int64, on the same device.
        rows: (B,) rows of the cache, on the host.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    rows: Rows


def stream_batches(
    reader: ClipSource, rows: Rows, batch_size: int, **options: Unpack[StreamOptions]
) -> Iterator[Batch]:
    """Read rows in the given order, repetitions allowed, in batches of one size; the last is as short as it must be.

    See `StreamOptions` and `stream_chunks`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}, expected 1 or more")
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return stream_chunks(reader, chunks, **options)


def stream_chunks(reader: ClipSource, chunks: Sequence[Rows], **options: Unpack[StreamOptions]) -> Iterator[Batch]:
    """Read one batch for each chunk of rows, which may be empty, `prefetch` batches ahead of the consumer.

    The memory of `prefetch + 1` batches is allocated once (pinned, for CUDA) and reused; each batch is read by all
    threads together. Leaving the loop early stops the threads; what goes wrong in one of them is raised here.

    Raises:
        ValueError: A count is below 1, or a row has no clip.
        CacheError: The file has become shorter, or a clip is not what was written.
    """
    num_threads, prefetch = options.get("num_threads", 2), options.get("prefetch", 1)
    if min(num_threads, prefetch) < 1:
        raise ValueError(f"num_threads {num_threads}, prefetch {prefetch}, expected both to be 1 or more")
    if not chunks:
        return
    ring = _Ring(reader, max(len(chunk) for chunk in chunks), prefetch + 1, options)
    coming = iter(chunks)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="vidcache-reader") as pool:
        pending: collections.deque[tuple[_Buffer, Rows, list[Future[None]]]] = collections.deque()

        def begin_until(count: int) -> None:
            """Read ahead until `count` batches are pending; all threads read a part of each, so one keeps them busy."""
            for rows in itertools.islice(coming, count - len(pending)):
                buffer = ring.free.popleft()
                edges = np.linspace(0, len(rows), num_threads + 1).astype(int).tolist()
                parts = [part for part in itertools.pairwise(edges) if part[0] < part[1]]
                pending.append((buffer, rows, [pool.submit(ring.fill, buffer, rows, *part) for part in parts]))

        try:
            begin_until(prefetch)
            while pending:
                buffer, rows, reads = pending.popleft()
                for read in reads:
                    read.result()
                begin_until(prefetch)
                yield ring.to_device(buffer, rows)
                ring.free.append(buffer)
                begin_until(prefetch + 1)  # not after the next wait: threads go from one batch to the next without one
        finally:
            pool.shutdown(cancel_futures=True)
            ring.wait()


@dataclasses.dataclass
class _Buffer:
    """Host memory of one batch, and the event after which it may be written again (CUDA)."""

    clips: torch.Tensor
    labels: torch.Tensor
    copied: "torch.cuda.Event | None" = None


class _Ring:
    """The buffers of one stream, and the copies from them to the device."""

    def __init__(self, reader: ClipSource, batch_size: int, num_buffers: int, options: StreamOptions) -> None:
        labels, self._frames = options.get("labels"), options.get("frames")
        self._reader, self._labels = reader, reader.labels if labels is None else labels
        self._verify, self._device = options.get("verify", False), torch.device(options.get("device", "cpu"))
        is_cuda = self._device.type == "cuda"
        shape = (batch_size, *reader.shape_of(self._frames))
        self._buffers = [
            _Buffer(_new_memory(shape, is_cuda), torch.empty(batch_size, dtype=torch.int64, pin_memory=is_cuda))
            for _ in range(num_buffers)
        ]
        self.free = collections.deque(self._buffers)
        self._copier = torch.cuda.Stream(self._device) if is_cuda else None  # type: ignore[no-untyped-call]

    def fill(self, buffer: _Buffer, rows: Rows, start: int, stop: int) -> None:
        """Read a part of one batch; runs in a reader thread."""
        if buffer.copied is not None:
            buffer.copied.synchronize()  # the last copy out of this buffer: blocks this thread only
        self._reader.read(rows[start:stop], self._frames, out=buffer.clips[start:stop].numpy(), verify=self._verify)
        buffer.labels[start:stop] = torch.from_numpy(self._labels[rows[start:stop]])

    def to_device(self, buffer: _Buffer, rows: Rows) -> Batch:
        """Bring a filled buffer to the device."""
        clips, labels = buffer.clips[: len(rows)], buffer.labels[: len(rows)]
        if self._copier is None:  # on the CPU, `to` copies nothing
            return Batch(clips.to(self._device), labels.to(self._device), rows)
        consumer = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copier):
            clips = clips.to(self._device, non_blocking=True)
            labels = labels.to(self._device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(self._copier)
        consumer.wait_stream(self._copier)
        # Their memory belongs to the copy stream's pool: it must not be reused there before the consumer's kernels,
        # which are only queued now, have read it.
        clips.record_stream(consumer)
        labels.record_stream(consumer)
        return Batch(clips, labels, rows)

    def wait(self) -> None:
        """Return when no copy to the device reads the buffers any more."""
        for buffer in self._buffers:
            if buffer.copied is not None:
                buffer.copied.synchronize()


def _new_memory(shape: tuple[int, ...], pinned: bool) -> torch.Tensor:
    """Not by malloc, which keeps what it is given back, in pieces. Huge pages: they are touched much sooner."""
    if pinned:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    memory = mmap.mmap(-1, max(math.prod(shape), 1))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[: math.prod(shape)].view(shape)


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """Shuffle (n,) ascending rows, a function of `(seed, epoch)` only."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def rank_slice(order: Rows, rank: int, num_ranks: int) -> Rows:
    """Return what one of several processes takes of an order: together they take every clip once."""
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} of {num_ranks}, expected 0 to {num_ranks - 1}")
    return order[rank::num_ranks]
