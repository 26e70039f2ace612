"""Writing a cache: fixed slots, a journal, a verified finish, one rename.

While `cache.h5` is built, `.cache.h5.build/<plan>/` has `plan.json`, `data.h5` and `journal`. A
build under another plan (a video was added) has another folder, and takes over what is still good from the
earlier ones. The published name is never opened for writing. Nothing here decodes anything.
"""

import contextlib
import os
import stat
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vidcache.cache import format as layout
from vidcache.cache import journal
from vidcache.cache.format import COLUMNS, NEAR_GROUP, RECORD, Header, Layout, Plan, Stage, Status
from vidcache.cache.leakage import near_groups
from vidcache.cache.lock import (
    build_folder,
    check_build_folder,
    check_space,
    lock_output,
    own_builds,
    remove_build,
    remove_builds,
)
from vidcache.cache.reuse import Donor, Skeleton
from vidcache.cache.validate import check_attributes, check_columns, check_names
from vidcache.errors import CacheError, InputError, VidcacheError
from vidcache.files import copy_range, pread_all, pwrite_all, sync_file, sync_folder
from vidcache.text import brief, printable

COMMIT_CLIPS = 32
COMMIT_SECONDS = 1.0


class CacheWriter:
    """The one writer of one cache; resumes a build that was interrupted under the same plan.

    `write_clip` may be called from many threads; everything else belongs to one.

    Args:
        output: The cache; an older one stays readable until `finish`.
        plan: What is to be in it.

    Attributes:
        records: (N,) of dtype `RECORD`, what is known of every completed row.
        done: (N,) bool, which rows are completed.

    Raises:
        LockedError: Another process builds the same cache.
        InputError: Something that no build has made is where it is built, or no reader would accept the cache.
        VidcacheError: The disk has no room for the cache.
    """

    def __init__(self, output: Path, plan: Plan) -> None:
        _check_plan(output, plan)
        self.output = output
        self.plan = plan
        self._identity = plan.identity()
        self.folder = build_folder(output) / self._identity
        self.records: np.ndarray[Any, Any] = np.zeros(plan.num_clips, RECORD)
        self.done: npt.NDArray[np.bool_] = np.zeros(plan.num_clips, bool)
        self._waiting: list[bytes] = []
        self._last_commit = time.monotonic()
        self._broken = threading.Event()
        self._closing = threading.Lock()
        self._data = self._journal = -1
        self._lock = lock_output(output)
        try:
            check_build_folder(build_folder(output))
            _check_space(output, self.folder, plan)
            self._layout = self._resume() or self._create()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # After a failed sync nothing may be acknowledged; the next run decodes those again.
            if not self._broken.is_set() and self._data >= 0:
                self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Release the lock and the descriptors; what was not committed is decoded again next time."""
        with self._closing:
            for descriptor in (self._data, self._journal, self._lock):
                if descriptor >= 0:
                    os.close(descriptor)
            self._data = self._journal = self._lock = -1

    @property
    def pending(self) -> list[int]:
        """Rows that have not been completed yet."""
        rows: list[int] = np.flatnonzero(~self.done).tolist()
        return rows

    def write_clip(self, row: int, clip: np.ndarray[Any, Any]) -> None:
        """Put a clip into its slot. Not durable before `complete` has been committed.

        Args:
            row: Row of the clip.
            clip: (T, H, W, 3) uint8, C-contiguous.

        Raises:
            ValueError: Wrong shape or dtype.
            OSError: The disk is full or broken.
        """
        if clip.shape != self.plan.spec.clip_shape or clip.dtype != np.uint8:
            raise ValueError(
                f"row {row}: clip is {clip.dtype} {clip.shape}, expected uint8 {self.plan.spec.clip_shape}"
            )
        # A descriptor of its own: a thread that is still at it while the writer is closed must not
        # write into whatever file gets the number next.
        with self._closing:
            descriptor = os.dup(self._data)
        try:
            pwrite_all(descriptor, clip.data.cast("B"), self._slot(row))
        finally:
            os.close(descriptor)

    def complete(self, row: int, record: np.void) -> None:
        """Say that a row is done; it counts from the next commit on: now, if the last one is a second old."""
        self._waiting.append(journal.encode_entry(self._identity, row, record))
        self.records[row], self.done[row] = record, True
        if len(self._waiting) >= COMMIT_CLIPS or time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.commit()

    def forget(self, row: int) -> None:
        """Take a row back: it is to be done again. What the journal says of it counts no more than now."""
        self.done[row] = False

    def take_over(self, row: int, donor: Donor, donor_row: int) -> bool:
        """Complete a row with a clip of an earlier build.

        Args:
            row: The row to complete.
            donor: The earlier build; has clips of this spec.
            donor_row: The row of it that is taken.

        Returns:
            Whether the clip was still what had been written; if not, the row is not completed.

        Raises:
            OSError: The disk is full or broken.
        """
        record, clip_bytes = donor.records[donor_row], self.plan.spec.clip_bytes
        if record["status"] != Status.FAILED:
            source_offset = donor.clips_offset + donor_row * clip_bytes
            try:
                copy_range(donor.descriptor, source_offset, self._data, self._slot(row), clip_bytes)
            except EOFError:
                return False
            if not self._matches(row, record):
                return False
        self.complete(row, record)
        return True

    def drop_earlier_builds(self) -> None:
        """Remove what other, interrupted builds of this cache have left."""
        self.commit()
        for folder in own_builds(self.output):
            if folder != self.folder:
                remove_build(folder)

    def discard(self) -> None:
        """Remove this build, which can be had again from the earlier ones; nothing more may be done with it."""
        self._waiting.clear()
        remove_build(self.folder)
        with contextlib.suppress(OSError):  # other builds are there
            self.folder.parent.rmdir()

    def commit(self) -> None:
        """Make everything that was completed so far survive a power cut: data first, then journal.

        Raises:
            OSError: The disk refused; nothing of this group is done.
        """
        if self._waiting:
            try:
                sync_file(self._data)
                os.lseek(self._journal, 0, os.SEEK_END)
                _write_all(self._journal, b"".join(self._waiting))
                sync_file(self._journal)
            except OSError:
                self._broken.set()
                raise
            self._waiting.clear()
        self._last_commit = time.monotonic()

    def finish(
        self,
        group: np.ndarray[Any, Any],
        split: np.ndarray[Any, Any],
        near_group: npt.NDArray[np.int64] | None = None,
    ) -> Header:
        """Write the columns, re-read every clip, and publish the file under its name.

        Args:
            group: (N,) int32.
            split: (N,) uint8, values of `Split`.
            near_group: (N,) int64, of `vidcache.cache.leakage.near_groups`; None computes it.

        Returns:
            The header of the published cache.

        Raises:
            ValueError: A row is not completed.
            CacheError: A clip does not read back as it was written.
            OSError: The disk is full or broken; the build can be resumed.
            VidcacheError: No reader would accept a column, which is a fault of vidcache.
        """
        if self.pending:
            raise ValueError(f"{len(self.pending)} of {self.plan.num_clips} rows are not completed")
        self.commit()
        if near_group is None:
            near_group = near_groups(self.records)
        columns = self._columns({"group": group, "split": split, NEAR_GROUP: near_group})
        try:
            check_columns(self.plan.spec, len(self.plan.classes), columns)
        except ValueError as error:
            raise VidcacheError(
                f"{printable(self.output)}: {error}; no reader would accept this cache, so it is not written. "
                "This is a fault of ours: please report it with this message"
            ) from None
        for column in COLUMNS:
            if column.stage is not Stage.PLAN:
                data = memoryview(columns[column.name].tobytes())
                pwrite_all(self._data, data, self._layout.column_offsets[column.name])
        self._clear_failed_slots()
        sync_file(self._data)
        self._verify_slots()
        spec = self.plan.spec
        header = Header(
            num_clips=self.plan.num_clips,
            num_frames=spec.num_frames,
            height=spec.height,
            width=spec.width,
            clips_offset=self._layout.clips_offset,
            file_bytes=self._layout.file_bytes,
            metadata_hash=layout.metadata_hash_of(
                self._data,
                self._layout.clips_offset,
                self.plan.num_clips * spec.clip_bytes,
                self._layout.file_bytes,
            ),
            fingerprint=layout.fingerprint_of(spec, self.plan.classes, columns),
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
        return self._layout.clips_offset + row * self.plan.spec.clip_bytes

    def _create(self) -> Layout:
        remove_build(self.folder)
        self.folder.mkdir(parents=True)
        plan = self.plan
        made = layout.create_skeleton(
            self.folder / "data.h5", plan.spec, plan.classes, plan.num_clips, plan.path_bytes, plan.attributes
        )
        self._open(os.O_CREAT | os.O_EXCL)
        for name, values in plan.columns().items():
            pwrite_all(self._data, memoryview(values.tobytes()), made.column_offsets[name])
        os.fsync(self._data)
        os.fsync(self._journal)
        Skeleton.of(plan, made, self._data).save(self.folder)
        sync_folder(self.folder.parent)
        sync_folder(self.output.parent)
        return made

    def _resume(self) -> Layout | None:
        """Pick up an interrupted build of this plan, or return None where there is none."""
        skeleton = Skeleton.load(self.folder)
        if skeleton is None or skeleton.plan != self._identity:
            return None
        try:
            self._open(0)
        except OSError:
            return None
        # A second name for the data (a crash in the middle of a rename) may be the published cache.
        names = max(os.fstat(descriptor).st_nlink for descriptor in (self._data, self._journal))
        if names != 1 or not skeleton.matches(self._data):
            os.close(self._data)
            os.close(self._journal)
            self._data = self._journal = -1
            return None
        self._layout = skeleton.layout
        entries = (self.folder / "journal").read_bytes()
        self.records, self.done, good_bytes = journal.decode_entries(self._identity, self.plan.num_clips, entries)
        os.ftruncate(self._journal, good_bytes)
        for row in np.flatnonzero(self.done).tolist():
            self.done[row] = self._matches(row, self.records[row])
        return skeleton.layout

    def _open(self, flags: int) -> None:
        self._data = os.open(self.folder / "data.h5", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._journal = os.open(self.folder / "journal", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)

    def _read_slot(self, row: int) -> np.ndarray[Any, Any]:
        clip = np.empty(self.plan.spec.clip_shape, np.uint8)
        pread_all(self._data, clip.data.cast("B"), self._slot(row))
        return clip

    def _matches(self, row: int, record: np.void) -> bool:
        if record["status"] == Status.FAILED:
            return True
        return bool(layout.clip_hash_of(self._read_slot(row)).encode() == record["clip_hash"])

    def _columns(self, finished: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        columns = self.plan.columns()
        for column in COLUMNS:
            if column.stage is Stage.DECODE:
                columns[column.name] = np.ascontiguousarray(self.records[column.name])
            elif column.stage is Stage.FINISH:
                columns[column.name] = np.asarray(finished[column.name], column.dtype)
        return columns

    def _clear_failed_slots(self) -> None:
        """Make the slot of a failed video zeros: an earlier, killed attempt may have written there."""
        for row in np.flatnonzero(self.records["status"] == Status.FAILED).tolist():
            clip = self._read_slot(row)
            if clip.any():
                clip[:] = 0
                pwrite_all(self._data, clip.data.cast("B"), self._slot(row))

    def _verify_slots(self) -> None:
        for row, record in enumerate(self.records):
            if not self._matches(row, record):
                raise CacheError(
                    f"{printable(self.output)}: row {row} ({printable(self.plan.paths[row])}) does not read back "
                    f"as it was written (expected hash {record['clip_hash'].decode()}): the disk altered it. "
                    "Run the same command again; if this comes back, use another disk"
                )


def _check_plan(output: Path, plan: Plan) -> None:
    """Refuse, before anything is decoded, what a reader of the finished cache would refuse."""
    try:
        check_attributes({"format": layout.FORMAT.decode(), "format_version": layout.FORMAT_VERSION, **plan.attributes})
        check_names(plan.classes, plan.columns()["path"])
        cut = next((name for name in (*plan.classes, *plan.paths) if name.endswith(b"\0")), None)
        if cut is not None:
            raise ValueError(f"the name {brief(cut)} ends with NUL, which would be cut off")
    except ValueError as error:
        raise InputError(
            f"{printable(output)}: no cache can be made of this: {error}. Change the option or the name that this "
            "comes from"
        ) from None


def _check_space(output: Path, folder: Path, plan: Plan) -> None:
    try:
        present = os.stat(folder / "data.h5").st_blocks * 512
    except OSError:
        present = 0
    check_space(output, plan.num_clips * (plan.spec.clip_bytes + 2 * journal.ENTRY_BYTES), present)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
