"""Who decodes: threads of this process, or the workers of a Dask or Ray cluster.

Threads write each clip into its slot themselves: the work is in their child processes. Workers of a
cluster read the videos from a shared path and send the clips back to the one process that writes.
"""

import atexit
import contextlib
import dataclasses
import functools
import os
import socket
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from vidcache.errors import InputError, VidcacheError
from vidcache.files import modification_time_ns
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.records import clip_record, failure_record
from vidcache.preprocess.video.decode import DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import (
    FFmpegBinaries,
    SubprocessGroup,
    find_tools,
    find_tools_on_path,
    start_threads,
)
from vidcache.preprocess.video.source_file import Failure, Reason, check_folder
from vidcache.spec import Spec
from vidcache.text import one_line, printable

JOBS_PER_WORKER = 8  # in one request to a cluster, so that no more clips than these wait to be written
MAX_ATTEMPTS = 4

Clip = npt.NDArray[np.uint8]
WriteClip = Callable[[int, Clip], None]
Records = Generator[tuple[int, np.void], None, None]


@dataclasses.dataclass(frozen=True)
class Job:
    """One video to decode.

    Attributes:
        row: Of the cache.
        raw: The raw folder, absolute.
        path: Below it.
        num_bytes: Size when it was listed.
        mtime_ns: Modification time when it was listed.
    """

    row: int
    raw: bytes
    path: bytes
    num_bytes: int
    mtime_ns: int


def find_all_tools(ffmpeg_dir: Path | None) -> list[FFmpegBinaries]:
    """Find the ffmpeg to use, and a second one, if it runs, that may know a codec that the first lacks."""
    tools = [find_tools(ffmpeg_dir)]
    with contextlib.suppress(InputError):
        on_path = find_tools_on_path()
        if on_path and on_path.ffmpeg != tools[0].ffmpeg:
            tools.append(on_path)
    return tools


def decode(jobs: list[Job], tools: list[FFmpegBinaries], write_clip: WriteClip, options: BuildOptions) -> Records:
    """Decode videos; each clip is written before its record is given.

    Args:
        jobs: In the order in which to begin.
        tools: The ffmpeg to use, and others to try; the workers of a cluster find their own.
        write_clip: Called with row and clip, (T, H, W, 3) uint8; with threads, from many of them.
        options: How.

    Yields:
        (row, record) as they are done; the record is a scalar of dtype `RECORD`.

    Raises:
        InputError: The cluster cannot be reached, or its libraries are not installed.
        VidcacheError: A worker has another ffmpeg or does not see the videos, or the cluster keeps failing.
    """
    if options.backend == "threads" or not jobs:
        return _decode_here(jobs, tools, write_clip, options)
    return _decode_there(jobs, tools[0].version, write_clip, options)


def _decode_here(jobs: list[Job], tools: list[FFmpegBinaries], write_clip: WriteClip, options: BuildOptions) -> Records:
    def work(job: Job) -> tuple[int, np.void]:
        record, clip = _decode_job(job, tools, children, options.spec, options.limits)
        if clip is not None:
            write_clip(job.row, clip)
        return job.row, record

    with SubprocessGroup() as children:
        yield from in_threads(work, jobs, options.workers, children)


def in_threads(
    work: Callable[[Any], tuple[int, np.void]], jobs: Iterable[Any], workers: int, children: SubprocessGroup
) -> Records:
    """Do work that waits for child processes, in threads; yields what it gives as it is done.

    Args:
        work: Called with a job.
        jobs: In the order in which to begin.
        workers: Jobs at a time.
        children: Runs the processes; closed when the work is left early, so that no thread waits for one.

    Raises:
        OSError: There is no room for so many threads.
    """
    parallel = joblib.Parallel(n_jobs=workers, backend="threading", return_as="generator_unordered", batch_size=1)
    results: Records = start_threads(parallel, (joblib.delayed(work)(job) for job in jobs))
    try:
        for result in results:  # noqa: UP028  (`yield from` would close `results` before the children)
            yield result
    except BaseException:
        children.close()
        with warnings.catch_warnings():  # joblib's, that some work was in vain
            warnings.simplefilter("ignore")
            results.close()
        raise


def _decode_job(
    job: Job, tools: list[FFmpegBinaries], children: SubprocessGroup, spec: Spec, limits: DecodeLimits
) -> tuple[np.void, Clip | None]:
    path = job.raw + b"/" + job.path
    try:
        decoded = decode_video(path, spec, tools, children, limits)
        _check_unchanged(path, job, follow_links=limits.follow_links)
    except Failure as failure:
        if failure.reason in (Reason.NOT_FOUND, Reason.NOT_ACCESSIBLE):
            check_folder(path)
        return failure_record(failure), None
    return clip_record(decoded), decoded.clip


def _check_unchanged(path: bytes, job: Job, *, follow_links: bool) -> None:
    try:
        facts = os.stat(path, follow_symlinks=follow_links)
    except FileNotFoundError:
        raise Failure(Reason.NOT_FOUND, "the file was removed; run again") from None
    except OSError as error:
        raise Failure(Reason.NOT_ACCESSIBLE, error.strerror or "") from None
    if (facts.st_size, modification_time_ns(facts)) != (job.num_bytes, job.mtime_ns):
        raise Failure(Reason.CHANGED, "the file changed after the build had begun; run again")


# --- clusters ---------------------------------------------------------------------------------


def _decode_there(jobs: list[Job], version: str, write_clip: WriteClip, options: BuildOptions) -> Records:
    connect = _connect_dask if options.backend == "dask" else _connect_ray
    task = functools.partial(
        decode_remotely,
        version=version,
        spec=options.spec,
        limits=options.limits,
        ffmpeg_dir=options.ffmpeg_dir and options.ffmpeg_dir.absolute(),
    )
    waiting, attempts = list(jobs), 0
    with connect(options.scheduler):
        while waiting:
            size = JOBS_PER_WORKER * max(1, joblib.parallel.effective_n_jobs(-1))
            block = waiting[:size]
            try:
                results = joblib.Parallel(n_jobs=-1, batch_size=1)(joblib.delayed(task)(job) for job in block)
            except VidcacheError:
                raise
            except Exception as error:
                # Dask and Ray begin lost work again by themselves, but give up on what they deem the cause.
                attempts += 1
                if attempts == MAX_ATTEMPTS:
                    raise VidcacheError(
                        f"{options.backend} cluster: failed {attempts} times in a row "
                        f"({one_line(f'{type(error).__name__}: {error}', 200)}). What was decoded is kept: "
                        "see the logs of its workers, then run the same command again"
                    ) from error
                continue
            attempts = 0
            waiting = waiting[size:]
            for job, (record, clip) in zip(block, results, strict=True):
                if clip is not None:
                    write_clip(job.row, clip)
                yield job.row, record


def decode_remotely(
    job: Job, version: str, spec: Spec, limits: DecodeLimits, ffmpeg_dir: Path | None
) -> tuple[np.void, Clip | None]:
    """Decode one video in a worker of a cluster.

    Args:
        job: The video; its path is the same on every machine.
        version: Of the ffmpeg that the build was started with.
        spec: Shape of the clip.
        limits: Bounds.
        ffmpeg_dir: Folder of the ffmpeg to use, the same on every machine; None finds one.

    Returns:
        The record, a scalar of dtype `RECORD`, and the clip, (T, H, W, 3) uint8, or None.

    Raises:
        VidcacheError: This machine has another ffmpeg, or does not see the raw folder.
    """
    tools, children = _worker(ffmpeg_dir)
    if tools[0].version != version:
        raise VidcacheError(
            f"worker on {socket.gethostname()}: ffmpeg {tools[0].version}, expected {version}. Clips would differ: "
            "install the same vidcache everywhere, or use --ffmpeg-dir"
        )
    if not os.path.isdir(job.raw):
        raise VidcacheError(
            f"worker on {socket.gethostname()}: {printable(job.raw)} is not there, expected the raw folder. "
            "Put it on a path that all machines share"
        )
    return _decode_job(job, tools, children, spec, limits)


@functools.cache
def _worker(ffmpeg_dir: Path | None) -> tuple[list[FFmpegBinaries], SubprocessGroup]:
    """Return what a worker process keeps; its children end with it."""
    children = SubprocessGroup()
    atexit.register(children.close)
    return find_all_tools(ffmpeg_dir), children


@contextlib.contextmanager
def _connect_dask(scheduler: str | None) -> Iterator[None]:
    distributed = _import("distributed", "dask")
    try:
        client: Any = distributed.Client(scheduler, timeout=20, set_as_default=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--scheduler {scheduler}: no Dask scheduler answers ({one_line(str(error), 120)}). "
            "Start it with `dask scheduler`, and workers with `dask worker ADDRESS`"
        ) from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise InputError(f"--scheduler {scheduler}: has no workers, expected some. Start `dask worker {scheduler}`")
        with joblib.parallel_config(backend="dask"):
            yield


@contextlib.contextmanager
def _connect_ray(scheduler: str | None) -> Iterator[None]:
    ray = _import("ray", "ray")
    try:
        ray.init(address=scheduler, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--scheduler {scheduler}: no Ray cluster answers ({one_line(str(error), 120)}). "
            "Start it with `ray start --head`"
        ) from None
    try:
        _import("ray.util.joblib", "ray").register_ray()
        with joblib.parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()


def _import(module: str, backend: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--backend {backend}: {error}. Install it on every machine: pip install 'vidcache[distributed]'"
        ) from None
