"""The feature cache: the output of the frozen stages for every clip, computed once into a file beside the cache.

Frozen stages compute the same for the same input, and a clip has only as many inputs as views. View v is the
augmentation of epoch v + 1, so that the first epochs of a run with and without this file see the same.

The file is HDF5 for other tools: /features (M, T', H', W', C) as the two bytes of bfloat16 numbers, /rows and /views
(-1 is without augmentation) of each entry. Its user block has all that is needed here, so that nobody's HDF5 is parsed.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt
import torch
import xxhash

from vidcache.cache.format import create_dataset
from vidcache.cache.stream import Batch, Rows
from vidcache.errors import CacheError, InterruptedRunError, LockedError, VidcacheError
from vidcache.files import free_bytes, open_regular, pread_all, sync_folder
from vidcache.outputs import FEATURES, claim
from vidcache.text import plural, printable
from vidcache.train.data import ClipLoader
from vidcache.train.run_dir import feature_path

if TYPE_CHECKING:
    from vidcache.train.loop import Trainer

_MAGIC, _VERSION = b"vidfeats", 2  # version 1 had a journal: such a file is computed again
_BLOCK_BYTES, _HASH_BYTES = 4096, 16


class FeatureLoader(ClipLoader):
    """Reads features in the place of clips, as a `ClipSource`: in epoch e, view (e - 1) % K of each clip.

    Args:
        trainer: The run; the main process computes the features first if they are not there.

    Raises:
        InputError: Another kind of file is there.
        InterruptedRunError: The run was stopped while it computed them.
        LockedError: Another process computes them.
        VidcacheError: The disk has no room for them.
    """

    def __init__(self, trainer: "Trainer") -> None:
        super().__init__(trainer.data, trainer.run_frozen)
        data, config, self._trainer = trainer.data, trainer.config, trainer
        caches = [reader.path for reader in getattr(data.reader, "readers", [data.reader])]
        self.path = claim(feature_path(caches[0], config.feature_file), FEATURES, caches)
        views = config.feature_views or 0
        others = np.concatenate([data.reader.rows("val"), data.reader.rows("test")])
        # Entries view by view: an epoch reads one part of the file, and a batch that is computed is of one view.
        self.rows = np.concatenate([np.tile(data.rows, views), others])
        self.views = np.concatenate([np.repeat(np.arange(views), len(data.rows)), np.full(len(others), -1)])
        self._entries = np.full((len(data.reader), views + 1), -1)  # of each row and view; the last is without
        self._entries[self.rows, self.views] = np.arange(len(self.rows))
        self.shape, self._key = self._describe()
        self._entry_bytes = 2 * math.prod(self.shape)
        trainer.processes.run_on_main(self._find_or_compute)
        self._open()

    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Generator[Batch, None, None]:
        """Read the view of this epoch ahead."""
        view = -1 if epoch is None else (epoch - 1) % (self._entries.shape[1] - 1)
        entries = [self._entries[chunk, view] for chunk in chunks]
        with contextlib.closing(self._data.stream(self, entries, self.labels, None)) as batches:
            for batch in batches:
                yield dataclasses.replace(batch, rows=self.rows[batch.rows])

    def inputs(self, batch: Batch, epoch: int | None) -> torch.Tensor:  # noqa: ARG002 -- known when it was read
        """Return the bytes as the bfloat16 numbers that they are, in the dtype of the part that trains."""
        return self._trainer.to_head(batch.clips.view(torch.bfloat16).permute(0, 4, 1, 2, 3))

    @property
    def labels(self) -> Rows:
        """Labels of the entries."""
        return np.asarray(self._data.labels[self.rows])

    def shape_of(self, frames: npt.ArrayLike | None = None) -> tuple[int, ...]:  # noqa: ARG002
        """(T', H', W', 2 C): the bytes of an entry."""
        return (*self.shape[:3], 2 * self.shape[3])

    def read(
        self, rows: npt.ArrayLike, frames: npt.ArrayLike | None, out: npt.NDArray[np.uint8], *, verify: bool
    ) -> npt.NDArray[np.uint8]:
        """Read entries into `out`, (B, T', H', W', 2 C); `verify` compares each with its hash."""
        del frames
        for target, entry in zip(out, np.asarray(rows).tolist(), strict=True):
            try:
                pread_all(self._file.fileno(), target.data.cast("B"), self._offset + entry * self._entry_bytes)
            except EOFError as error:
                raise CacheError(f"{printable(self.path)}: {error}. Delete it: it is computed again") from None
            if verify and xxhash.xxh3_128_digest(target.data) != self._hashes[entry * _HASH_BYTES :][:_HASH_BYTES]:
                raise CacheError(
                    f"{printable(self.path)}: entry {entry} does not match its hash. Delete it: it is computed again"
                )
        return out

    def _describe(self) -> tuple[tuple[int, ...], bytes]:
        """Return the (T', H', W', C) of an entry, and a hash of everything that the file depends on."""
        data, config, trainer = self._data, self._trainer.config, self._trainer
        with contextlib.closing(trainer.clips.stream([data.rows[:1]], None)) as batches:
            _, channels, *shape = trainer.clips.inputs(next(batches), None).shape
        weights = xxhash.xxh3_128()
        for name, tensor in sorted(trainer.model.split()[0].state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        facts = {
            "version": _VERSION,
            "frozen_weights": weights.hexdigest(),
            "shape": [*shape, channels],
            "clips": [data.reader.fingerprint, data.reader.split_hash, data.num_frames, self.views.tolist()],
            "augmentation": [config.augment, dataclasses.asdict(config.strength), config.seed],
            "computed_in": [trainer.precision.removesuffix("-prefix"), str(torch.__version__)],
        }
        return (*shape, channels), xxhash.xxh3_128_hexdigest(json.dumps(facts).encode()).encode()

    def _open(self) -> None:
        """Open the file; `CacheError` if it is damaged, of other features, or of another version."""
        with contextlib.ExitStack() as on_error:
            self._file = on_error.enter_context(open_regular(self.path))
            magic, key, places, check = [*self._file.read(_BLOCK_BYTES).split(b"\n"), b"", b"", b"", b""][:4]
            if (magic, key, check) != (_MAGIC, self._key, xxhash.xxh3_128_hexdigest(places).encode()):
                raise CacheError(f"{printable(self.path)}: not the features of this run")
            self._offset, hashes_offset, size = map(int, places.split())
            if os.fstat(self._file.fileno()).st_size != size:
                raise CacheError(f"{printable(self.path)}: incomplete")
            self._hashes = os.pread(self._file.fileno(), len(self.rows) * _HASH_BYTES, hashes_offset)
            on_error.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _find_or_compute(self) -> None:
        num_bytes, where = len(self.rows) * self._entry_bytes, printable(self.path)
        what = f"features: {plural(len(self.rows), 'entry', 'entries')} = {num_bytes / 1e9:.2f} GB"
        with contextlib.suppress(OSError, CacheError):
            self._open()
            self.close()  # every process opens it, when it is complete
            self._trainer.tell("on_note", f"{what} in {where}, computed before", False)
            return
        free = free_bytes(self.path.parent)
        if num_bytes > free:
            raise VidcacheError(f"{where}: needs {num_bytes:,} bytes, but its disk has {free:,} free")
        self._trainer.tell("on_note", f"{what}: computing them into {where} ({free / 1e9:.1f} GB free there)", False)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(f"{where}: another run is computing it. Wait for that run") from None
            try:
                self._compute(temporary, file)
                temporary.replace(self.path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        sync_folder(self.path.parent)

    def _compute(self, path: Path, data: BinaryIO) -> None:
        """Write the file; `data` is it, opened and locked."""
        count, trainer = len(self.rows), self._trainer
        size = -(-trainer.config.batch_size // trainer.config.accumulate)
        try:
            with h5py.File(path, "w", userblock_size=_BLOCK_BYTES, locking=False) as file:
                file["rows"], file["views"] = self.rows, self.views
                hashes_offset = create_dataset(file, "hashes", np.dtype("u1"), (count, _HASH_BYTES)).get_offset()
                offset = create_dataset(file, "features", np.dtype("<u2"), (count, *self.shape)).get_offset()
        except RuntimeError as error:  # what h5py raises when the disk is full
            raise VidcacheError(f"{printable(self.path)}: {error}") from None
        parts = np.split(np.arange(count), np.flatnonzero(np.diff(self.views)) + 1)
        chunks = [part[start : start + size] for part in parts for start in range(0, len(part), size)]
        hashes = b""
        data.seek(offset)
        with contextlib.closing(trainer.clips.stream([self.rows[chunk] for chunk in chunks], None)) as batches:
            for chunk, batch in zip(chunks, batches, strict=True):
                view = int(self.views[chunk[0]])
                features = trainer.clips.inputs(batch, None if view < 0 else view + 1)
                low = features.to(torch.bfloat16).permute(0, 2, 3, 4, 1).contiguous().view(torch.uint8).cpu().numpy()
                data.write(low.data)
                hashes += b"".join(xxhash.xxh3_128_digest(entry.data) for entry in low)
                trainer.tell("on_features", int(chunk[-1]) + 1, count)
                if trainer.should_stop():
                    raise InterruptedRunError("train: stopped while features were computed; they are computed again")
        data.seek(hashes_offset)
        data.write(hashes)
        places = b"%d %d %d" % (offset, hashes_offset, data.seek(0, os.SEEK_END))
        data.flush()
        os.fsync(data.fileno())
        data.seek(0)  # the header last: a file with one is complete
        data.write(b"\n".join([_MAGIC, self._key, places, xxhash.xxh3_128_hexdigest(places).encode(), b""]))
        data.flush()
        os.fsync(data.fileno())
