"""Accidents of a build: killed, torn, refused by the disk, cut off by a power loss. Then: was anything lost?

Run as a program with `faultfs.so` preloaded (tests/test_torture.py does). It imports everything once and forks
one child per accident, so that a thousand accidents take a minute. The decoder is a stand-in, a function of
the file's bytes that says when it is called; everything that writes is real.

    LD_PRELOAD=faultfs.so python -m tests.faults FOLDER FAULTFS.SO SUITE RUNS PART PARTS [MUTANT]

RUNS = 0 is every case there is; PART of PARTS chooses some of them, or the seed where cases are random.
"""

import ctypes
import errno
import json
import math
import os
import random
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import xxhash

from vidcache.cache import builds, writer
from vidcache.cache import lock as place
from vidcache.cache.reader import CacheReader
from vidcache.errors import VidcacheError
from vidcache.preprocess import build, reuse
from vidcache.preprocess import executors as backends
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.video.decode import DecodedClip, DecodeStats
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries
from vidcache.preprocess.video.probe import Probe
from vidcache.preprocess.video.source_file import Failure, Reason
from vidcache.spec import Spec

SPEC = Spec(2, 16, 16)
OPTIONS = BuildOptions(spec=SPEC, workers=1, allow_tiny_classes=True)
TOOLS = [FFmpegBinaries("ffmpeg", "ffprobe", "n0", "nowhere")]
PROBE = Probe(
    stream_index=0, codec="made", pixel_format="up", width=16, height=16, rotation=0, fps_from_header=25.0,
    duration_seconds=1.0, num_frames_from_header=2, num_packets=2, num_packets_in_file=2, encrypted=False,
)  # fmt: skip
LEFT = {"c.h5", "c.h5.lock", "c.failures.csv"}
KILL_BEFORE, TEAR, KILL_AFTER, FAIL_ONCE, FAIL_FROM, SHORT = range(1, 7)
CREATE, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, RMDIR, LINK, MARK = range(1, 11)


# --- one build in a child ----------------------------------------------------------------------


class Ended(NamedTuple):
    """How a child ended: the signal that killed it or 0, what was raised, which videos were decoded, how many calls."""

    signal: int
    error: str = ""
    decoded: tuple[str, ...] = ()
    calls: int = 0


def load_shim(path: str) -> Any:
    """The preloaded library."""
    shim = ctypes.CDLL(path)
    shim.faultfs_calls.restype = ctypes.c_long
    shim.faultfs_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    shim.faultfs_mark.argtypes = [ctypes.c_long]
    return shim


def run_child(
    shim: Any,
    raw: Path,
    out: Path,
    *,
    k: int = 0,
    how: int = 0,
    error: int = 0,
    log: Path | None = None,
    stop_after: int = 0,
    mutant: str = "",
) -> Ended:
    """Build in a forked child in which the k-th write-class call is an accident."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if log else -1
        decoded: list[str] = []
        said = ""
        calls = 0
        try:
            with ExitStack() as stack:
                if mutant:
                    MUTANTS[mutant][1](stack)
                _stand_in(stack, shim, raw, decoded)
                shim.faultfs_arm(os.fsencode(out), k, how, error, log_fd)
                try:
                    with suppress(KeyboardInterrupt):
                        build_cache(raw, out / "c.h5", OPTIONS, _stopper(stop_after))
                finally:
                    shim.faultfs_disarm()
                    calls = shim.faultfs_calls()
        except VidcacheError as caught:
            said = f"VidcacheError: {caught}"
        except BaseException:
            said = traceback.format_exc()
        os.write(write, json.dumps([said, decoded, calls]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Ended(os.WTERMSIG(status))
    said, decoded, calls = json.loads(data)
    return Ended(0, said, tuple(decoded), calls)


def _stand_in(stack: ExitStack, shim: Any, raw: Path, decoded: list[str]) -> None:
    commit = writer.CacheWriter.commit

    def decode(path: bytes, spec: Spec, *_: Any) -> DecodedClip:
        """A clip that is a function of the file's bytes."""
        decoded.append(os.fsdecode(path[len(bytes(raw)) + 1 :]))
        data = Path(os.fsdecode(path)).read_bytes()
        if data.startswith(b"bad"):
            raise Failure(Reason.NO_FRAMES, "made to fail")
        clip = np.random.default_rng(list(data[:8])).integers(0, 256, spec.clip_shape, np.uint8)
        return DecodedClip(clip, 2, PROBE, DecodeStats(2, 0, ()), reuse.hash_video(path, deadline=math.inf), "")

    def commit_and_say_so(self: writer.CacheWriter) -> None:
        rows = [int.from_bytes(entry[:8], "little") for entry in self._waiting]
        commit(self)
        for row in rows:
            shim.faultfs_mark(row)

    for target, name, value in (
        (backends, "decode_video", decode),
        (backends, "SubprocessGroup", lambda *_: closing(mock.Mock())),  # the decoder is no process here
        (build, "find_all_tools", lambda _: TOOLS),
        (writer.CacheWriter, "commit", commit_and_say_so),
        (writer, "COMMIT_CLIPS", 2),
        (writer, "COMMIT_SECONDS", 1e9),  # what a build does between commits must not depend on the clock
    ):
        _patch(target, name, value)(stack)


def _stopper(number: int) -> Callable[[int, int, int], None]:
    def progress(done: int, failed: int, total: int) -> None:
        del failed, total
        if number and done == number:
            raise KeyboardInterrupt

    return progress


# --- scenarios --------------------------------------------------------------------------------


class Scenario(NamedTuple):
    """A state of the disk, and a folder of videos to build from there.

    The output folder is `before`; `golden` must come out, `old` was there; a build without accidents decodes `needed`.
    """

    name: str
    raw: Path
    before: Path
    golden: bytes
    old: bytes | None
    needed: frozenset[str]
    paths: tuple[str, ...]
    calls: int


def make_scenarios(shim: Any, folder: Path, mutant: str = "") -> list[Scenario]:
    """Fresh build, resume, rebuild over a good cache, append to a cache and an interrupted build."""
    raws = _make_raws(folder)
    with ExitStack() as stack:  # what a first build imports and caches is not to be done in every child
        _stand_in(stack, shim, raws["a"], [])
        (folder / "first").mkdir()
        build_cache(raws["a"], folder / "first" / "c.h5", OPTIONS)
    made = []
    for name, raw, steps in (
        ("fresh", raws["a"], []),
        ("resume", raws["a"], [("a", 4)]),
        ("rebuild", raws["b"], [("a", 0)]),
        ("append", raws["c"], [("a", 0), ("b", 6)]),
    ):
        before = folder / f"before_{name}"
        before.mkdir()
        for raw_name, stop_after in steps:
            ended = run_child(shim, raws[raw_name], before, stop_after=stop_after, mutant=mutant)
            assert not ended.error, ended.error
        clean, trial = folder / f"golden_{name}", folder / f"trial_{name}"
        clean.mkdir()
        shutil.copytree(before, trial)
        golden, unharmed = run_child(shim, raw, clean), run_child(shim, raw, trial)
        assert not golden.error + unharmed.error, golden.error + unharmed.error
        assert (clean / "c.h5").read_bytes() == (trial / "c.h5").read_bytes()
        with CacheReader(clean / "c.h5") as reader:
            paths = tuple(os.fsdecode(reader.path_of(row)) for row in range(len(reader)))
        old = (before / "c.h5").read_bytes() if (before / "c.h5").exists() else None
        golden_bytes = (clean / "c.h5").read_bytes()
        made.append(Scenario(name, raw, before, golden_bytes, old, frozenset(unharmed.decoded), paths, unharmed.calls))
    return made


def _make_raws(folder: Path) -> dict[str, Path]:
    """Three states of one folder of videos; times are fixed, since they are in the file."""

    def put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((text.encode() * 20)[:100])
        os.utime(path, ns=(10**18, 10**18 + len(text)))

    a, b, c = (folder / f"raw_{name}" for name in "abc")
    for index in range(3):
        put(a / "x" / f"{index}.mp4", f"video x{index}!")
        put(a / "y" / f"{index}.mp4", f"{index} is a video of y")
    put(a / "y" / "bad.mp4", "bad video")
    shutil.copytree(a, b)
    put(b / "x" / "0.mp4", "another video")
    (b / "x" / "1.mp4").rename(b / "x" / "moved.mp4")
    (b / "y" / "0.mp4").unlink()
    put(b / "y" / "new.mp4", "new video of y")
    shutil.copytree(b, c)
    put(c / "x" / "newer.mp4", "newer video of x")
    return {"a": a, "b": b, "c": c}


# --- what must hold ---------------------------------------------------------------------------


def violations(
    shim: Any, scenario: Scenario, out: Path, acknowledged: set[int], mutant: str, *, rotten: bool = False
) -> list[str]:
    """Check L1 to L6 of what an accident has left, then run the build again and check what comes out."""
    cache = out / "c.h5"
    published = cache.read_bytes() if cache.exists() else None
    again = run_child(shim, scenario.raw, out, mutant=mutant)
    decoded, done = set(again.decoded), {scenario.paths[row] for row in acknowledged}
    left = sorted(path.name for path in out.iterdir())
    checks = {
        "the published cache is neither the old nor the new one": published in (scenario.old, scenario.golden),
        f"the next build failed: {again.signal} {again.error}": not (again.signal or again.error),
        f"decoded again: {sorted(decoded & done)}": rotten or not decoded & done,
        f"decoded for nothing: {sorted(decoded - scenario.needed)}": rotten or decoded <= scenario.needed,
        "the next build gave another file": cache.exists() and cache.read_bytes() == scenario.golden,
        f"left behind: {left}": set(left) == LEFT,
    }
    return [text for text, holds in checks.items() if not holds]


def state_of(folder: Path) -> str:
    """Name everything that is in a folder: names, bytes, and how many names each file has."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.rglob("*")):
        said = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        digest.update(repr((path.relative_to(folder), said.st_mode, said.st_nlink, len(content))).encode() + content)
    return digest.hexdigest()


class Op(NamedTuple):
    """One write-class call, or a mark; a call that failed has a negative kind."""

    kind: int
    one: str
    two: str
    offset: int
    size: int
    data: bytes


def read_log(path: Path) -> Iterator[Op]:
    """Read what the shim has recorded."""
    data, at = path.read_bytes(), 0
    while at + 48 <= len(data):
        kind, len_one, len_two, offset, size, len_data = struct.unpack_from("<6q", data, at)
        at += 48
        one, two = data[at : at + len_one], data[at + len_one : at + len_one + len_two]
        at += len_one + len_two
        yield Op(kind, os.fsdecode(one), os.fsdecode(two), offset, size, data[at : at + len_data])
        at += len_data


def marks(path: Path) -> list[int]:
    """Rows that were acknowledged, and -1 where a sync failed, in order."""
    return [op.offset for op in read_log(path) if op.kind == MARK]


# --- suites: each yields (what happened, violations) ---------------------------------------------

Outcome = tuple[str, list[str]]


class Suite:
    """What all suites share."""

    def __init__(self, shim: Any, folder: Path, scenarios: list[Scenario], part: int, parts: int, mutant: str) -> None:
        self.shim, self.folder, self.scenarios, self.mutant = shim, folder, scenarios, mutant
        self.random, self.part, self.parts = random.Random(part), part, parts
        self.out, self.log = folder / "case" / "out", folder / "case" / "log"
        self.checked: dict[tuple[Any, ...], list[str]] = {}

    def begin(self, scenario: Scenario) -> None:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        shutil.copytree(scenario.before, self.out)

    def run(self, scenario: Scenario, **accident: Any) -> Ended:
        return run_child(self.shim, scenario.raw, self.out, log=self.log, mutant=self.mutant, **accident)

    def check(self, scenario: Scenario, acknowledged: set[int]) -> list[str]:
        # Half of the accidents leave what another one has left, and the next build depends on nothing else.
        state = (scenario.name, frozenset(acknowledged), state_of(self.out))
        if state not in self.checked:
            self.checked[state] = violations(self.shim, scenario, self.out, acknowledged, self.mutant)
        return self.checked[state]

    def kills(self, runs: int) -> Iterator[Outcome]:
        """Kill before and in the middle of every call, and after the last; `runs` = 0 for all of them."""
        cases = [
            (scenario, k, how)
            for scenario in self.scenarios
            for k in range(1, scenario.calls + 1)
            for how in (KILL_BEFORE, TEAR, *([KILL_AFTER] if k == scenario.calls else []))
        ]
        for scenario, k, how in self.random.sample(cases, runs) if runs else cases[self.part :: self.parts]:
            self.begin(scenario)
            ended = self.run(scenario, k=k, how=how)
            name = f"{scenario.name}: kill {k} {how}"
            if ended.signal != signal.SIGKILL:
                yield name, [f"not killed: {ended}"]
                continue
            yield name, self.check(scenario, set(marks(self.log)))

    def fresh(self, runs: int) -> Iterator[Outcome]:
        """As `kills`, of a first build alone."""
        self.scenarios = self.scenarios[:1]
        yield from self.kills(runs)

    def chains(self, runs: int) -> Iterator[Outcome]:
        """Two to five kills in a row, in whatever is going on then."""
        for _ in range(runs):
            scenario = self.random.choice(self.scenarios)
            self.begin(scenario)
            acknowledged: set[int] = set()
            name = scenario.name
            for _ in range(self.random.randint(2, 5)):
                k, how = self.random.randint(1, scenario.calls), self.random.choice((KILL_BEFORE, TEAR))
                ended = self.run(scenario, k=k, how=how)
                acknowledged |= set(marks(self.log))
                name += f" {k}/{how}"
                if not ended.signal:
                    break
            yield name, self.check(scenario, acknowledged)

    def errors(self, runs: int) -> Iterator[Outcome]:
        """A full or broken disk, once or from then on, interrupted and short writes, at every call."""
        cases = []
        for scenario in self.scenarios:
            self.begin(scenario)
            self.run(scenario)
            ops = [abs(op.kind) for op in read_log(self.log) if op.kind != MARK]
            for k, kind in enumerate(ops, 1):
                full = FAIL_FROM if k % 2 else FAIL_ONCE
                accidents = [(full, errno.ENOSPC), (FAIL_ONCE, errno.EIO)]
                # rename, unlink and mkdir are never interrupted by a real kernel, and only a write is short
                accidents += [(FAIL_ONCE, errno.EINTR)] if kind in (WRITE, SYNC, TRUNCATE) else []
                accidents += [(SHORT, 0)] if kind == WRITE else []
                cases += [(scenario, k, *accident) for accident in accidents]
        for scenario, k, how, error in self.random.sample(cases, runs) if runs else cases[self.part :: self.parts]:
            self.begin(scenario)
            ended = self.run(scenario, k=k, how=how, error=error)
            said = marks(self.log)
            name = f"{scenario.name}: call {k}: {how} {errno.errorcode.get(error, 'short')}"
            found = []
            if ended.signal or (ended.error and not ended.error.startswith("VidcacheError")):
                found.append(f"not a clean error: {ended.signal} {ended.error}")
            if ended.error and (how == SHORT or error == errno.EINTR):
                found.append(f"gave up: {ended.error}")
            if error != errno.EINTR and -1 in said and said[-1] != -1:  # an interrupted sync is begun again
                found.append("acknowledged after a failed sync")
            yield name, found + self.check(scenario, {row for row in said if row >= 0})

    def rot(self, runs: int) -> Iterator[Outcome]:
        """A byte of what an interrupted build has left changes on disk."""
        scenarios = [scenario for scenario in self.scenarios if scenario.name in ("resume", "append")]
        for number in range(runs):
            scenario = scenarios[number % len(scenarios)]
            self.begin(scenario)
            (folder,) = place.build_folder(self.out / "c.h5").iterdir()
            target = folder / self.random.choice(("data.h5", "data.h5", "data.h5", "journal", "plan.json"))
            data = bytearray(target.read_bytes())
            # Where something is: all of the first pages, and the clips.
            position = self.random.randrange(len(data))
            data[position] ^= self.random.randint(1, 255)
            target.write_bytes(data)
            name = f"{scenario.name}: {target.name} at {position}"
            yield name, violations(self.shim, scenario, self.out, set(), self.mutant, rotten=True)

    def power(self, runs: int) -> Iterator[Outcome]:
        """The power goes at any time: of what was not synced, any part is on the disk."""
        logs = {}
        for scenario in self.scenarios:
            self.begin(scenario)
            ended = self.run(scenario)
            if ended.signal or ended.error:
                yield scenario.name, [f"without any accident: {ended}"]
            logs[scenario.name] = list(read_log(self.log))
        for number in range(runs):
            scenario = self.scenarios[number % len(self.scenarios)]
            ops = logs[scenario.name]
            at = self.random.randint(0, len(ops))
            self.begin(scenario)
            disk = Disk(self.out)
            acknowledged = {row for row in (disk.apply(op) for op in ops[:at]) if row is not None}
            ordered = self.random.random() < 0.5
            disk.lose_power(self.random, ordered=ordered)
            name = f"{scenario.name}: power lost after {at} of {len(ops)}{'' if ordered else ', reordered'}"
            yield name, self.check(scenario, acknowledged)


# --- a disk without power -----------------------------------------------------------------------


class _File:
    """A file: what is safe, and what was done since the last sync."""

    def __init__(self, content: bytes = b"") -> None:
        self.safe = bytearray(content)
        self.later: list[tuple[int, bytes | None]] = []  # (offset, data), or (size, None)

    def sync(self) -> None:
        for offset, data in self.later:
            _put(self.safe, offset, data)
        self.later.clear()

    def after_power_loss(self, rng: random.Random) -> bytes:
        content, page = bytearray(self.safe), rng.choice((512, 4096))
        if (luck := rng.random()) < 0.2:
            return bytes(content)  # nothing since the last sync
        for offset, data in self.later:
            if data is None:
                if rng.random() < 0.5:
                    _put(content, offset, None)
                continue
            for start in range(offset - offset % page, offset + len(data), page):
                low, high = max(start, offset), min(start + page, offset + len(data))
                if luck > 0.9 or rng.random() < 0.5:
                    _put(content, low, data[low - offset : high - offset])
        return bytes(content)


def _put(content: bytearray, offset: int, data: bytes | None) -> None:
    end = offset if data is None else offset + len(data)
    if data is None:
        del content[end:]
    content.extend(bytes(max(0, end - len(content))))
    if data is not None:
        content[offset:end] = data


class Disk:
    """The output folder as the disk has it: synced contents, and names in folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now: dict[str, _File | None] = {}  # path: file, or None for a folder
        for path in sorted(folder.rglob("*")):
            self.now[str(path)] = None if path.is_dir() else _File(path.read_bytes())
        self.safe = dict(self.now)
        self.later: list[Op] = []  # changes of names that no folder sync has covered
        self.files: dict[int, _File] = {}  # by the op that gave it a name

    def apply(self, op: Op) -> int | None:
        """Do what the call did; returns the row of a mark."""
        file = self.now.get(op.one)
        if op.kind == MARK:
            return op.offset if op.offset >= 0 else None
        if op.kind < 0:
            return None
        if op.kind == WRITE and file:
            file.later.append((op.offset, op.data))
        elif op.kind == TRUNCATE and file:
            file.later.append((op.size, None))
        elif op.kind == SYNC and file:
            file.sync()
        elif op.kind == SYNC:
            self._sync_folder(op.one)
        else:
            if op.kind == CREATE:
                self.files[id(op)] = _File()
            elif op.kind == RENAME and file:
                self.files[id(op)] = file
            self._rename_names(self.now, op)
            self.later.append(op)
        return None

    def _rename_names(self, names: dict[str, "_File | None"], op: Op) -> None:
        if op.kind == CREATE:
            names[op.one] = self.files[id(op)]
        elif op.kind == MKDIR:
            names[op.one] = None
        elif op.kind in (UNLINK, RMDIR):
            names.pop(op.one, None)
        elif op.kind == RENAME:  # the new name is that of the file, whatever became of the old one
            names.pop(op.one, None)
            names[op.two] = self.files[id(op)]

    def _sync_folder(self, folder: str) -> None:
        kept = []
        for op in self.later:
            parents = {os.path.dirname(name) for name in (op.one, op.two) if name}
            if folder in parents:
                self._rename_names(self.safe, op)
            else:
                kept.append(op)
        self.later = kept

    def lose_power(self, rng: random.Random, *, ordered: bool) -> None:
        """Write to the folder what is left; `ordered`: names change in order, as a journaling file system has it."""
        names = dict(self.safe)
        count = rng.randint(0, len(self.later))
        for index, op in enumerate(self.later):
            if index < count if ordered else rng.random() < 0.5:
                self._rename_names(names, op)
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for path, file in sorted(names.items()):
            if not Path(path).parent.is_dir():
                continue  # its folder is gone
            if file is None:
                Path(path).mkdir(exist_ok=True)
            else:
                Path(path).write_bytes(file.after_power_loss(rng))


# --- broken variants of the protocol: the suites must catch each -----------------------------------


def _patch(target: Any, name: str, value: Any) -> Callable[[ExitStack], None]:
    def apply(stack: ExitStack) -> None:
        stack.enter_context(mock.patch.object(target, name, value))

    return apply


def _journal_first(self: writer.CacheWriter) -> None:
    if self._waiting:
        end = os.lseek(self._journal, 0, os.SEEK_END)
        writer.pwrite_all(self._journal, memoryview(b"".join(self._waiting)), end)
        writer.sync_file(self._journal)
        self._waiting.clear()


def _write_in_place(source: Path, target: Path) -> None:
    with open(target, "wb") as file:
        file.write(source.read_bytes())
        os.fsync(file.fileno())


def _no_sync_at_the_end(stack: ExitStack) -> None:
    real = writer.CacheWriter.finish

    def finish(self: writer.CacheWriter, *arguments: Any) -> Any:
        self.commit()
        with mock.patch.object(writer, "sync_file", lambda _: None):
            return real(self, *arguments)

    stack.enter_context(mock.patch.object(writer.CacheWriter, "finish", finish))


def _torn_tail(stack: ExitStack) -> None:
    real = os.ftruncate

    def truncate(descriptor: int, size: int) -> None:
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith("journal"):
            real(descriptor, size)

    stack.enter_context(mock.patch.object(os, "ftruncate", truncate))


# Name: the suite that catches it, and what is broken.
MUTANTS: dict[str, tuple[str, Callable[[ExitStack], None]]] = {
    "no_data_sync": ("power", _patch(writer, "sync_file", lambda _: None)),
    "no_folder_sync": ("power", _patch(writer, "sync_folder", lambda _: None)),
    "journal_before_data": ("power", _patch(writer.CacheWriter, "commit", _journal_first)),
    "no_clip_hash": ("rot", _patch(writer.CacheWriter, "_matches", lambda *_: True)),
    "no_skeleton_hash": ("rot", _patch(builds.Skeleton, "matches", lambda *_: True)),
    "publish_in_place": ("kills", _patch(Path, "rename", _write_in_place)),
    "no_sync_before_publishing": ("power", _no_sync_at_the_end),
    "no_journal_checksum": ("power", _patch(builds, "_checksum", lambda *_: 0)),
    "torn_tail_is_kept": ("chains", _torn_tail),
    "acknowledge_after_failed_sync": (
        "errors",
        _patch(writer.threading, "Event", lambda: mock.Mock(is_set=lambda: False)),
    ),
}


def main() -> None:
    """Run one suite; print its figures as JSON."""
    folder, library, suite = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    runs, part, parts = (int(word) for word in sys.argv[4:7])
    mutant = sys.argv[7] if len(sys.argv) > 7 else ""
    folder.mkdir(parents=True, exist_ok=True)
    shim = load_shim(library)
    # What was there before was made by the same program, as far as that can make anything.
    scenarios = make_scenarios(shim, folder, mutant if mutant == "no_journal_checksum" else "")
    made = Suite(shim, folder, scenarios, part, parts, mutant)
    count, bad = 0, []
    for name, found in getattr(made, suite)(runs):
        count += 1
        bad += [f"{name}: {text}" for text in found]
        if mutant and bad:
            break  # caught
    print(json.dumps({"suite": suite, "runs": count, "violations": bad, "calls": [s.calls for s in scenarios]}))


if __name__ == "__main__":
    main()
