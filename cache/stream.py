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
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Rows = npt.NDArray[np.int64]


class Source(Protocol):
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


class Workspace:
    """Memory that is used again for every batch: on a CPU, fresh pages cost more than the arithmetic.

    What a function returns from a workspace is overwritten by the next call with the same one.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype, torch.device, bool], torch.Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pinned: bool = False
    ) -> torch.Tensor:
        """Return a tensor with anything in it; the same memory for the same name.

        Args:
            name: Of the memory.
            shape: Of the tensor.
            dtype: Of the tensor.
            device: Where it is.
            pinned: Page-locked, for copies to a GPU that nobody waits for.
        """
        key, size = (name, dtype, device, pinned), math.prod(shape)
        if key not in self._memory or self._memory[key].numel() < size:
            self._memory[key] = _new_memory(size, dtype, device, pinned)
        return self._memory[key][:size].view(shape)


def _new_memory(size: int, dtype: torch.dtype, device: torch.device, pinned: bool) -> torch.Tensor:
    if device.type != "cpu" or pinned:
        return torch.empty(size, dtype=dtype, device=device, pin_memory=pinned)
    # Not by malloc, which keeps what it is given back, in pieces. Huge pages: they are touched much sooner.
    memory = mmap.mmap(-1, max(size * dtype.itemsize, 1))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)[:size]


def stream_batches(
    reader: Source,
    rows: Rows,
    batch_size: int,
    *,
    frames: npt.ArrayLike | None = None,
    device: str | torch.device = "cpu",
    num_threads: int = 2,
    prefetch: int = 1,
    verify: bool = False,
    workspace: Workspace | None = None,
) -> Iterator[Batch]:
    """Read clips in the given order, in batches of one size; the last is as short as it must be.

    Args:
        reader: The cache.
        rows: (n,) rows to read, repetitions allowed; every one comes exactly once.
        batch_size: Clips per batch (B). >= 1.
        frames: As for `stream_chunks`, which all others are too.
        device: Where the batches go.
        num_threads: Reader threads. >= 1.
        prefetch: Batches read ahead. >= 1.
        verify: Compare each clip with its hash.
        workspace: Holds the memory from one stream to the next.

    Raises:
        ValueError: A count is below 1, or a row has no clip.
        CacheError: The file has become shorter, or a clip is not what was written.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}, expected 1 or more")
    return stream_chunks(
        reader,
        [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)],
        frames=frames,
        device=device,
        num_threads=num_threads,
        prefetch=prefetch,
        verify=verify,
        workspace=workspace,
    )


def stream_chunks(
    reader: Source,
    chunks: Sequence[Rows],
    *,
    frames: npt.ArrayLike | None = None,
    labels: Rows | None = None,
    device: str | torch.device = "cpu",
    num_threads: int = 2,
    prefetch: int = 1,
    verify: bool = False,
    workspace: Workspace | None = None,
) -> Iterator[Batch]:
    """Read one batch for each chunk of rows, `prefetch` batches ahead of the consumer.

    The memory of `prefetch + 1` batches is allocated once (pinned, for CUDA) and reused; each batch
    is read by all threads together. Leaving the loop early stops the threads; what goes wrong in one
    of them is raised here.

    Args:
        reader: The cache.
        chunks: (B,) rows of each batch, repetitions allowed; a chunk may be empty, and so is its batch.
        frames: (T',) frames of each clip; None for all.
        labels: (N,) to hand out instead of the reader's.
        device: Where the batches go.
        num_threads: Reader threads. >= 1.
        prefetch: Batches read ahead. >= 1.
        verify: Compare each clip with its hash; reads all its frames.
        workspace: Holds the memory from one stream to the next, one at a time; None makes a new one.

    Raises:
        ValueError: A count is below 1, or a row has no clip.
        CacheError: The file has become shorter, or a clip is not what was written.
    """
    if min(num_threads, prefetch) < 1:
        raise ValueError(f"num_threads {num_threads}, prefetch {prefetch}, expected both to be 1 or more")
    device = torch.device(device)
    if not chunks:
        return
    given = reader.labels if labels is None else labels
    size = max(len(chunk) for chunk in chunks)
    ring = _Ring(reader, given, size, frames, device, prefetch + 1, verify, workspace or Workspace())
    coming = iter(chunks)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="vidcache-reader") as pool:

        def begin(chunk: Rows) -> _Filling:
            """Let all threads read a part of one batch, so that one batch ahead keeps them all busy."""
            buffer = ring.take()
            edges = np.linspace(0, len(chunk), num_threads + 1).astype(int).tolist()
            parts = [part for part in itertools.pairwise(edges) if part[0] < part[1]]
            return _Filling(buffer, chunk, [pool.submit(ring.fill, buffer, chunk, *part) for part in parts])

        waiting: collections.deque[_Filling] = collections.deque()

        def begin_until(count: int) -> None:
            """Have so many batches on their way; the ring has a buffer more than `prefetch`."""
            waiting.extend(begin(chunk) for chunk in itertools.islice(coming, count - len(waiting)))

        try:
            begin_until(prefetch)
            while waiting:
                filled = waiting.popleft()
                for part in filled.parts:
                    part.result()
                begin_until(prefetch)
                yield ring.hand_over(filled.buffer, filled.rows)
                ring.give_back(filled.buffer)
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


@dataclasses.dataclass
class _Filling:
    """A batch that is being read."""

    buffer: _Buffer
    rows: Rows
    parts: list[Future[None]]


class _Ring:
    """The buffers of one stream, and the copies from them to the device."""

    def __init__(
        self,
        reader: Source,
        labels: Rows,
        batch_size: int,
        frames: npt.ArrayLike | None,
        device: torch.device,
        size: int,
        verify: bool,
        workspace: Workspace,
    ) -> None:
        self._reader, self._verify = reader, verify
        self._labels = labels
        self._frames = frames
        self._device = device
        self._is_cuda = device.type == "cuda"
        shape = (batch_size, *reader.shape_of(frames))
        host = torch.device("cpu")
        self._buffers = [
            _Buffer(
                workspace.take(f"clips {index}", shape, torch.uint8, host, pinned=self._is_cuda),
                workspace.take(f"labels {index}", (batch_size,), torch.int64, host, pinned=self._is_cuda),
            )
            for index in range(size)
        ]
        self._free = collections.deque(self._buffers)
        self._copier = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]

    def take(self) -> _Buffer:
        """Return a free buffer; there is always one for who keeps to the number of batches ahead."""
        return self._free.popleft()

    def fill(self, buffer: _Buffer, rows: Rows, start: int, stop: int) -> None:
        """Read a part of one batch; runs in a reader thread."""
        if buffer.copied is not None:
            buffer.copied.synchronize()  # the last copy out of this buffer: blocks this thread only
        self._reader.read(rows[start:stop], self._frames, out=buffer.clips[start:stop].numpy(), verify=self._verify)
        buffer.labels[start:stop] = torch.from_numpy(self._labels[rows[start:stop]])

    def hand_over(self, buffer: _Buffer, rows: Rows) -> Batch:
        """Bring a filled buffer to the device."""
        clips, labels = buffer.clips[: len(rows)], buffer.labels[: len(rows)]
        if self._copier is None:
            if self._device.type != "cpu":
                clips, labels = clips.to(self._device), labels.to(self._device)
            return Batch(clips, labels, rows)
        consumer = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copier):
            clips = clips.to(self._device, non_blocking=True)
            labels = labels.to(self._device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(self._copier)
        consumer.wait_stream(self._copier)
        # Their memory belongs to the copy stream's pool: it must not be reused there before the
        # consumer's kernels, which are only queued now, have read it.
        clips.record_stream(consumer)
        labels.record_stream(consumer)
        return Batch(clips, labels, rows)

    def give_back(self, buffer: _Buffer) -> None:
        self._free.append(buffer)

    def wait(self) -> None:
        """Return when no copy to the device reads the buffers any more: another stream may use their memory."""
        for buffer in self._buffers:
            if buffer.copied is not None:
                buffer.copied.synchronize()


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """Shuffle rows: a function of `(seed, epoch)` only.

    Args:
        rows: (n,) rows, in ascending order.
        seed: Of the run.
        epoch: From 1.
    """
    return np.random.default_rng([seed, epoch]).permutation(rows)


def rank_slice(order: Rows, rank: int, num_ranks: int) -> Rows:
    """Return what one of several processes takes of an order: together they take every clip once.

    Args:
        order: (n,) the order of all.
        rank: Of this process, from 0.
        num_ranks: Processes.

    Raises:
        ValueError: There is no such rank.
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} of {num_ranks}, expected 0 to {num_ranks - 1}")
    return order[rank::num_ranks]
