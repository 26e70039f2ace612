"""Writing a cache: fixed slots, a journal, a verified finish, one rename.

A build under another manifest (a video was added) has another folder, and copies what is still valid from previous
ones. The published name is never opened for writing. Nothing is decoded here.
"""

import contextlib
import os
import stat
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from vidcache.cache import format as layout
from vidcache.cache.builds import (
    ENTRY_BYTES,
    Manifest,
    PreviousBuild,
    Skeleton,
    create_skeleton,
    decode_entries,
    encode_entry,
)
from vidcache.cache.format import COLUMNS, FORMAT, FORMAT_VERSION, NEAR_GROUP, RECORD, Array, Header, Stage, Status
from vidcache.cache.leakage import near_groups
from vidcache.cache.lock import (
    build_folder,
    check_build_folder,
    check_space,
    lock_output,
    remove_builds,
)
from vidcache.cache.validate import check_attributes, check_columns, check_names
from vidcache.errors import CacheError, InputError, VidcacheError
from vidcache.files import copy_range, pread_all, pwrite_all, sync_file, sync_folder
from vidcache.text import brief, printable

COMMIT_CLIPS = 32
COMMIT_SECONDS = 1.0


class CacheWriter:
    """The one writer of one cache; resumes a build that was interrupted under the same manifest.

    `write_clip` may be called from many threads; everything else belongs to one. An older cache of that name stays
    readable until `finish`.

    Attributes:
        records: (N,) of dtype `RECORD`, what is known about every completed row.
        done: (N,) bool, which rows are completed.

    Raises:
        LockedError: Another process builds the same cache.
        InputError: Something that no build has made is where it is built, or no reader would accept the cache.
        VidcacheError: The disk has no room for the cache.
    """

    def __init__(self, output: Path, manifest: Manifest) -> None:
        _check_manifest(output, manifest)
        self.output = output
        self.manifest = manifest
        self._hash = manifest.hash()
        self.folder = build_folder(output) / self._hash
        self.records: Array = np.zeros(manifest.num_clips, RECORD)
        self.done: npt.NDArray[np.bool_] = np.zeros(manifest.num_clips, bool)
        self._waiting: list[bytes] = []
        self._last_commit = time.monotonic()
        self._broken = threading.Event()
        self._closing = threading.Lock()
        self._data = self._journal = -1
        self._lock = lock_output(output)
        try:
            check_build_folder(output)
            num_bytes = manifest.num_clips * (manifest.spec.clip_bytes + 2 * ENTRY_BYTES)
            check_space(output, num_bytes, self.folder / "data.h5")
            self._skeleton = self._resume() or self._create()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # After a failed sync nothing may be acknowledged; the next run decodes those again.
            if not self._broken.is_set() and self._data >= 0:
                self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Release the lock and the descriptors; what was not committed is decoded again next time."""
        with self._closing:
            self._close_files()
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1

    @property
    def pending(self) -> list[int]:
        """Rows that have not been completed yet."""
        rows: list[int] = np.flatnonzero(~self.done).tolist()
        return rows

    def write_clip(self, row: int, clip: Array) -> None:
        """Put a clip, (T, H, W, 3) uint8, C-contiguous, into its slot; not durable before `mark_done` is committed."""
        expected = self.manifest.spec.clip_shape
        if clip.shape != expected or clip.dtype != np.uint8:
            raise ValueError(f"row {row}: clip is {clip.dtype} {clip.shape}, expected uint8 {expected}")
        # A descriptor of its own: a thread that is still at it while the writer is closed must not write into
        # whatever file gets the number next.
        with self._closing:
            descriptor = os.dup(self._data)
        try:
            pwrite_all(descriptor, clip.data.cast("B"), self._slot(row))
        finally:
            os.close(descriptor)

    def mark_done(self, row: int, record: np.void) -> None:
        """Complete a row; it counts from the next commit on: now, if the last one is a second old."""
        self._waiting.append(encode_entry(self._hash, row, record))
        self.records[row], self.done[row] = record, True
        if len(self._waiting) >= COMMIT_CLIPS or time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.commit()

    def invalidate(self, row: int) -> None:
        """Mark a row as not done, so that it is decoded again."""
        self.done[row] = False

    def copy_clip_from(self, row: int, previous: PreviousBuild, previous_row: int) -> bool:
        """Complete a row with a clip of an open previous build; False if it is not what had been written."""
        record, clip_bytes = previous.records[previous_row], self.manifest.spec.clip_bytes
        if record["status"] != Status.FAILED:
            offset = previous.clips_offset + previous_row * clip_bytes
            try:
                copy_range(previous.descriptor, offset, self._data, self._slot(row), clip_bytes)
            except EOFError:
                return False
            if not self._matches(row, record):
                return False
        self.mark_done(row, record)
        return True

    def drop_previous_builds(self) -> None:
        """Remove what other, interrupted builds of this cache have left."""
        self.commit()
        remove_builds(self.output, lambda folder: folder != self.folder)

    def discard(self) -> None:
        """Remove this build, which can be made again from previous ones; nothing more may be done with it."""
        self._waiting.clear()
        remove_builds(self.output, lambda folder: folder == self.folder)

    def commit(self) -> None:
        """Make everything that was completed so far survive a power cut: data first, then journal.

        After an OSError nothing of this group is done.
        """
        if self._waiting:
            try:
                sync_file(self._data)
                end = os.lseek(self._journal, 0, os.SEEK_END)
                pwrite_all(self._journal, memoryview(b"".join(self._waiting)), end)
                sync_file(self._journal)
            except OSError:
                self._broken.set()
                raise
            self._waiting.clear()
        self._last_commit = time.monotonic()

    def finish(self, group: Array, split: Array, near_group: npt.NDArray[np.int64] | None = None) -> Header:
        """Write the columns, re-read every clip, and publish the file under its name.

        Args:
            group: (N,) int32.
            split: (N,) uint8, values of `Split`.
            near_group: (N,) int64, of `vidcache.cache.leakage.near_groups`; None computes it.

        Raises:
            ValueError: A row is not completed.
            CacheError: A clip does not read back as it was written.
            VidcacheError: No reader would accept a column, which is a bug in vidcache.
        """
        if self.pending:
            raise ValueError(f"{len(self.pending)} of {self.manifest.num_clips} rows are not completed")
        self.commit()
        if near_group is None:
            near_group = near_groups({name: self.records[name] for name in ("status", "perceptual_hash")})
        columns = self._columns({"group": group, "split": split, NEAR_GROUP: near_group})
        for column in COLUMNS:
            if column.stage is not Stage.PLAN:
                data = memoryview(columns[column.name].tobytes())
                pwrite_all(self._data, data, self._skeleton.column_offsets[column.name])
        self._clear_failed_slots()
        sync_file(self._data)
        self._verify_slots()
        spec, count, place = self.manifest.spec, self.manifest.num_clips, self._skeleton
        clips_bytes = count * spec.clip_bytes
        header = Header(
            num_clips=count,
            num_frames=spec.num_frames,
            height=spec.height,
            width=spec.width,
            clips_offset=place.clips_offset,
            file_bytes=place.file_bytes,
            metadata_hash=layout.metadata_hash_of(self._data, place.clips_offset, clips_bytes, place.file_bytes),
            fingerprint=layout.fingerprint_of(spec, self.manifest.classes, columns),
            split_hash=layout.split_hash_of(columns),
        )
        pwrite_all(self._data, memoryview(header.to_bytes()), 0)
        with contextlib.suppress(FileNotFoundError):  # whoever may read the old one may read the new one, and no more
            os.fchmod(self._data, stat.S_IMODE(os.stat(self.output).st_mode))
        sync_file(self._data)
        (self.folder / "data.h5").rename(self.output)
        sync_folder(self.output.parent)
        sync_folder(self.folder)
        remove_builds(self.output)
        return header

    def _slot(self, row: int) -> int:
        return self._skeleton.clips_offset + row * self.manifest.spec.clip_bytes

    def _create(self) -> Skeleton:
        remove_builds(self.output, lambda folder: folder == self.folder)
        self.folder.mkdir(parents=True)
        self._open(os.O_CREAT | os.O_EXCL)
        skeleton = create_skeleton(self._data, self.manifest)
        os.fsync(self._data)
        os.fsync(self._journal)
        skeleton.save(self.folder)
        sync_folder(self.folder.parent)
        sync_folder(self.output.parent)
        return skeleton

    def _resume(self) -> Skeleton | None:
        """Pick up an interrupted build under this manifest, or return None where there is none."""
        skeleton = Skeleton.load(self.folder)
        if skeleton is None or skeleton.manifest_hash != self._hash:
            return None
        with contextlib.suppress(OSError):
            self._open(0)
        # A second name for the data (a crash in the middle of a rename) may be the published cache.
        names = {os.fstat(descriptor).st_nlink for descriptor in (self._data, self._journal) if descriptor >= 0}
        if self._journal < 0 or names != {1} or not skeleton.matches(self._data):
            self._close_files()
            return None
        self._skeleton = skeleton
        entries = (self.folder / "journal").read_bytes()
        self.records, self.done, good_bytes = decode_entries(self._hash, self.manifest.num_clips, entries)
        os.ftruncate(self._journal, good_bytes)
        for row in np.flatnonzero(self.done).tolist():
            self.done[row] = self._matches(row, self.records[row])
        return skeleton

    def _open(self, flags: int) -> None:
        flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._data = os.open(self.folder / "data.h5", flags, 0o666)
        self._journal = os.open(self.folder / "journal", flags, 0o666)

    def _close_files(self) -> None:
        for descriptor in (self._data, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._journal = -1

    def _read_slot(self, row: int) -> Array:
        clip = np.empty(self.manifest.spec.clip_shape, np.uint8)
        pread_all(self._data, clip.data.cast("B"), self._slot(row))
        return clip

    def _matches(self, row: int, record: np.void) -> bool:
        if record["status"] == Status.FAILED:
            return True
        return bool(layout.clip_hash_of(self._read_slot(row)).encode() == record["clip_hash"])

    def _columns(self, finished: dict[str, Array]) -> dict[str, Array]:
        columns = self.manifest.columns()
        for column in COLUMNS:
            if column.stage is Stage.DECODE:
                columns[column.name] = np.ascontiguousarray(self.records[column.name])
            elif column.stage is Stage.FINISH:
                columns[column.name] = np.asarray(finished[column.name], column.dtype)
        try:
            check_columns(self.manifest.spec, len(self.manifest.classes), columns)
        except ValueError as error:
            raise VidcacheError(
                f"{printable(self.output)}: {error}; no reader would accept this cache, so it is not written. "
                "This is a bug in vidcache: please report it with this message"
            ) from None
        return columns

    def _clear_failed_slots(self) -> None:
        """Make the slot of a failed video zeros: a previous, killed attempt may have written there."""
        for row in np.flatnonzero(self.records["status"] == Status.FAILED).tolist():
            clip = self._read_slot(row)
            if clip.any():
                clip[:] = 0
                pwrite_all(self._data, clip.data.cast("B"), self._slot(row))

    def _verify_slots(self) -> None:
        for row, record in enumerate(self.records):
            if not self._matches(row, record):
                raise CacheError(
                    f"{printable(self.output)}: row {row} ({printable(self.manifest.paths[row])}) does not read back "
                    f"as it was written (expected hash {record['clip_hash'].decode()}): the disk altered it. "
                    "Run the same command again; if this comes back, use another disk"
                )


def _check_manifest(output: Path, manifest: Manifest) -> None:
    """Refuse, before anything is decoded, what a reader of the finished cache would refuse."""
    try:
        check_attributes({"format": FORMAT.decode(), "format_version": FORMAT_VERSION, **manifest.attributes})
        check_names(manifest.classes, manifest.columns()["path"])
        cut = next((name for name in (*manifest.classes, *manifest.paths) if name.endswith(b"\0")), None)
        if cut is not None:
            raise ValueError(f"the name {brief(cut)} ends with NUL, which would be cut off")
    except ValueError as error:
        raise InputError(
            f"{printable(output)}: no cache can be made of this: {error}. Change the option or the name that this "
            "comes from"
        ) from None
