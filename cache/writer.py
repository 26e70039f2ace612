"""Writing a cache: fixed slots, a journal, a verified finish, one rename.

Next to `cache.h5` lie, while it is built, `cache.h5.lock` (never removed: removing a lock file is
a race) and `.cache.h5.build/` with `plan.json`, `data.h5` and `journal`. The published name is
never opened for writing. Nothing here decodes anything.
"""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from vidcache.cache import journal, layout
from vidcache.cache.layout import COLUMNS, Header, Layout, Stage, Status
from vidcache.errors import CacheError, LockedError, VidcacheError
from vidcache.files import pread_all, pwrite_all, sync_file, sync_folder, write_text_atomically
from vidcache.spec import Spec
from vidcache.text import printable

COMMIT_CLIPS = 32
COMMIT_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a cache that is known before the first video is opened.

    Attributes:
        spec: Shape of the clips.
        classes: Names in label order.
        paths: Relative path of every video, sorted; one row each.
        labels: Index into `classes`, one per video.
        source_bytes: Size of each video file.
        source_mtime_ns: Modification time of each video file.
        attributes: Root attributes of the HDF5 file: str, int, float or lists of them.
    """

    spec: Spec
    classes: tuple[bytes, ...]
    paths: tuple[bytes, ...]
    labels: tuple[int, ...]
    source_bytes: tuple[int, ...]
    source_mtime_ns: tuple[int, ...]
    attributes: dict[str, Any]

    @property
    def num_clips(self) -> int:
        """Rows of the cache (N)."""
        return len(self.paths)

    @property
    def path_bytes(self) -> int:
        """Width of the `path` column."""
        return max(len(path) for path in self.paths)

    def identity(self) -> str:
        """Hash of the whole plan: a build is resumed only under the same one."""
        fields = (
            self.spec.to_dict(),
            self.classes,
            self.paths,
            self.labels,
            self.source_bytes,
            self.source_mtime_ns,
            self.attributes,
        )
        return xxhash.xxh3_128_hexdigest(repr(fields).encode())


class CacheWriter:
    """The one writer of one cache; resumes a build that was interrupted under the same plan.

    `write_clip` may be called from many threads; everything else belongs to one.

    Attributes:
        records: What is known of every completed row, scalars of dtype `RECORD`.

    Raises:
        LockedError: Another process builds the same cache.
        VidcacheError: The disk has no room for the cache.
    """

    def __init__(self, output: Path, plan: Plan) -> None:
        self.output = output
        self.plan = plan
        self.folder = output.with_name(f".{output.name}.build")
        self.records: dict[int, np.void] = {}
        self._identity = plan.identity()
        self._waiting: list[bytes] = []
        self._last_commit = time.monotonic()
        self._broken = threading.Event()
        self._closing = threading.Lock()
        self._data = self._journal = -1
        self._lock = _lock(output)
        try:
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
        return [row for row in range(self.plan.num_clips) if row not in self.records]

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
        except OSError:
            self._broken.set()
            raise
        finally:
            os.close(descriptor)

    def complete(self, row: int, record: np.void) -> None:
        """Say that a row is done; it counts from the next commit on, at most a second later."""
        self._waiting.append(journal.encode_entry(self._identity, row, record))
        self.records[row] = record
        if len(self._waiting) >= COMMIT_CLIPS or time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.commit()

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

    def finish(self, group: np.ndarray[Any, Any], split: np.ndarray[Any, Any]) -> Header:
        """Write the columns, re-read every clip, and publish the file under its name.

        Args:
            group: (N,) int32.
            split: (N,) uint8, values of `Split`.

        Returns:
            The header of the published cache.

        Raises:
            ValueError: A row is not completed.
            CacheError: A clip does not read back as it was written.
            OSError: The disk is full or broken; the build can be resumed.
        """
        if self.pending:
            raise ValueError(f"{len(self.pending)} of {self.plan.num_clips} rows are not completed")
        self.commit()
        columns = self._columns(group, split)
        for column in COLUMNS:
            data = memoryview(columns[column.name].tobytes())
            pwrite_all(self._data, data, self._layout.column_offsets[column.name])
        self._clear_failed_slots(columns["status"])
        sync_file(self._data)
        self._verify_slots(columns)
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
        sync_file(self._data)
        (self.folder / "data.h5").rename(self.output)
        sync_folder(self.output.parent)
        sync_folder(self.folder)
        _remove_build_folder(self.folder)
        return header

    def _slot(self, row: int) -> int:
        return self._layout.clips_offset + row * self.plan.spec.clip_bytes

    def _create(self) -> Layout:
        _remove_build_folder(self.folder)
        self.folder.mkdir()
        plan = self.plan
        made = layout.create_skeleton(
            self.folder / "data.h5", plan.spec, plan.classes, plan.num_clips, plan.path_bytes, plan.attributes
        )
        self._open(os.O_CREAT)
        os.fsync(self._data)
        os.fsync(self._journal)
        # plan.json comes last: where it is, the skeleton is whole.
        facts = {
            "plan": self._identity,
            "layout": dataclasses.asdict(made),
            "skeleton_hash": _skeleton_hash(self._data, made, plan),
        }
        write_text_atomically(self.folder / "plan.json", json.dumps(facts))
        sync_folder(self.output.parent)
        return made

    def _resume(self) -> Layout | None:
        """Pick up an interrupted build, or return None where there is none that fits."""
        try:
            facts = json.loads((self.folder / "plan.json").read_text())
            made = Layout(**facts["layout"])
            if facts["plan"] != self._identity:
                return None
            self._open(0)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        skeleton_hash = _skeleton_hash(self._data, made, self.plan)
        if skeleton_hash != facts["skeleton_hash"] or os.fstat(self._data).st_size != made.file_bytes:
            os.close(self._data)
            os.close(self._journal)
            self._data = self._journal = -1
            return None
        self._layout = made
        data = (self.folder / "journal").read_bytes()
        records, good_bytes = journal.decode_entries(self._identity, self.plan.num_clips, data)
        os.ftruncate(self._journal, good_bytes)
        buffer = np.empty(self.plan.spec.clip_shape, np.uint8)
        self.records = {row: record for row, record in records.items() if self._matches(row, record, buffer)}
        return made

    def _open(self, flags: int) -> None:
        self._data = os.open(self.folder / "data.h5", os.O_RDWR | os.O_CLOEXEC)
        self._journal = os.open(self.folder / "journal", os.O_RDWR | os.O_CLOEXEC | flags, 0o666)

    def _matches(self, row: int, record: np.void, buffer: np.ndarray[Any, Any]) -> bool:
        if record["status"] == Status.FAILED:
            return True
        pread_all(self._data, buffer.data.cast("B"), self._slot(row))
        return bool(layout.clip_hash_of(buffer) == record["clip_hash"].decode())

    def _columns(self, group: np.ndarray[Any, Any], split: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        plan = self.plan
        records = np.array([self.records[row] for row in range(plan.num_clips)], layout.RECORD)
        values: dict[str, Any] = {
            "path": plan.paths,
            "label": plan.labels,
            "source_bytes": plan.source_bytes,
            "source_mtime_ns": plan.source_mtime_ns,
            "group": group,
            "split": split,
        }
        values |= {column.name: records[column.name] for column in COLUMNS if column.stage is Stage.DECODE}
        return {
            column.name: np.asarray(values[column.name], layout.column_dtype(column, plan.path_bytes))
            for column in COLUMNS
        }

    def _clear_failed_slots(self, status: np.ndarray[Any, Any]) -> None:
        """Make the slot of a failed video zeros: an earlier, killed attempt may have written there."""
        buffer = np.empty(self.plan.spec.clip_shape, np.uint8)
        for row in np.flatnonzero(status == Status.FAILED).tolist():
            pread_all(self._data, buffer.data.cast("B"), self._slot(row))
            if buffer.any():
                buffer[:] = 0
                pwrite_all(self._data, buffer.data.cast("B"), self._slot(row))

    def _verify_slots(self, columns: dict[str, np.ndarray[Any, Any]]) -> None:
        buffer = np.empty(self.plan.spec.clip_shape, np.uint8)
        for row, record in self.records.items():
            if not self._matches(row, record, buffer):
                raise CacheError(
                    f"{printable(self.output)}: row {row} ({printable(columns['path'][row])}) reads back as "
                    f"{layout.clip_hash_of(buffer)}, expected {record['clip_hash'].decode()}: the disk altered "
                    "it. Run the same command again; if this comes back, use another disk"
                )


def _lock(output: Path) -> int:
    where = printable(output)
    try:
        descriptor = os.open(output.with_name(f"{output.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise VidcacheError(
            f"{where}: cannot write into {printable(output.parent)} ({error.strerror}). "
            "Choose a folder that exists and is writable"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise VidcacheError(
                f"{where}: this file system cannot lock files ({error.strerror}). Build on a local disk"
            ) from error
        raise LockedError(f"{where}: another build is writing it. Wait for that build, or stop it") from None
    return descriptor


def _check_space(output: Path, folder: Path, plan: Plan) -> None:
    try:
        present = os.stat(folder / "data.h5").st_blocks * 512
    except OSError:
        present = 0
    needed = plan.num_clips * (plan.spec.clip_bytes + 2 * journal.ENTRY_BYTES) - present
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise VidcacheError(
            f"{printable(output)}: needs {needed:,} bytes, but its disk has {free:,} free. "
            "Free some space, or write to another disk"
        )


def _skeleton_hash(descriptor: int, made: Layout, plan: Plan) -> str:
    """Hash what libhdf5 wrote, leaving out the clips and the columns, which `finish` fills in."""
    gaps = [(made.clips_offset, plan.num_clips * plan.spec.clip_bytes), (made.file_bytes, 0)]
    for column in COLUMNS:
        width = layout.column_dtype(column, plan.path_bytes).itemsize * int(np.prod(column.shape, initial=1))
        gaps.append((made.column_offsets[column.name], width * plan.num_clips))
    return layout.hash_between(descriptor, sorted(gaps))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _remove_build_folder(folder: Path) -> None:
    """Remove a build folder, plan first, so that a kill in between leaves nothing that resumes."""
    for name in ("plan.json", "journal", "data.h5"):
        (folder / name).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)  # a temporary of plan.json that a kill left behind
