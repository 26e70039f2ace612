"""Where videos are decoded: in threads of this process, or by the workers of a Dask or Ray cluster.

Threads write each clip into its slot themselves: the work is in their child processes. Workers of a
cluster read the videos from a shared path and send the clips back to the one process that writes.
"""

import atexit
import contextlib
import dataclasses
import functools
import importlib
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
from vidcache.preprocess.video.decode import decode_video
from vidcache.preprocess.video.ffmpeg import (
    FFmpegBinaries,
    SubprocessGroup,
    find_all_tools,
    start_threads,
)
from vidcache.preprocess.video.source_file import Failure, Reason, check_folder
from vidcache.text import one_line

JOBS_PER_WORKER = 8  # in one request to a cluster, so that no more clips than these wait to be written

Clip = npt.NDArray[np.uint8]
WriteClip = Callable[[int, Clip], None]
Records = Generator[tuple[int, np.void], None, None]


@dataclasses.dataclass(frozen=True)
class Job:
    """One video to decode."""

    row: int  # of the cache
    raw: bytes  # the raw folder, absolute
    path: bytes  # below it
    num_bytes: int  # when it was listed
    mtime_ns: int


def decode(jobs: list[Job], tools: list[FFmpegBinaries], write_clip: WriteClip, options: BuildOptions) -> Records:
    """Decode videos; yields (row, record of dtype `RECORD`) as they are done.

    Each clip, (T, H, W, 3) uint8, is passed to `write_clip` before its record is given, from many threads.

    Raises:
        InputError: The cluster cannot be reached, or its libraries are not installed.
        VidcacheError: A worker has another ffmpeg or does not see the videos, or the cluster fails.
    """
    if options.backend != "threads" and jobs:  # the workers find tools of their own
        yield from _decode_on_cluster(jobs, tools[0].version, write_clip, options)
        return

    def work(job: Job) -> tuple[int, np.void]:
        record, clip = _decode_job(job, tools, group, options)
        if clip is not None:
            write_clip(job.row, clip)
        return job.row, record

    with SubprocessGroup() as group:
        yield from in_threads(work, jobs, options.workers, group)


def in_threads(
    work: Callable[[Any], tuple[int, np.void]], jobs: Iterable[Any], workers: int, group: SubprocessGroup
) -> Records:
    """Do work that waits for processes of `group` in threads; left early, it closes the group, so that none waits."""
    parallel = joblib.Parallel(n_jobs=workers, backend="threading", return_as="generator_unordered", batch_size=1)
    results: Records = start_threads(parallel, (joblib.delayed(work)(job) for job in jobs))
    try:
        for result in results:  # noqa: UP028  (`yield from` would close `results` before the processes)
            yield result
    except BaseException:
        group.close()
        with warnings.catch_warnings():  # joblib's, that some work was in vain
            warnings.simplefilter("ignore")
            results.close()
        raise


def _decode_job(
    job: Job, tools: list[FFmpegBinaries], group: SubprocessGroup, options: BuildOptions
) -> tuple[np.void, Clip | None]:
    path = job.raw + b"/" + job.path
    try:
        decoded = decode_video(path, options.spec, tools, group, options.limits)
        _check_unchanged(path, job, follow_links=options.limits.follow_links)
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


def _decode_on_cluster(jobs: list[Job], version: str, write_clip: WriteClip, options: BuildOptions) -> Records:
    with _connect(options):
        size = JOBS_PER_WORKER * max(1, joblib.parallel.effective_n_jobs(-1))
        for block in (jobs[start : start + size] for start in range(0, len(jobs), size)):
            tasks = (joblib.delayed(decode_remotely)(job, version, options) for job in block)
            try:
                results = joblib.Parallel(n_jobs=-1, batch_size=1)(tasks)
            except VidcacheError:
                raise
            except Exception as error:  # Dask and Ray begin lost work again by themselves, a few times
                problem = one_line(f"{type(error).__name__}: {error}", 200)
                raise VidcacheError(
                    f"{options.backend} cluster: failed ({problem}). What was decoded is kept: see the logs of its "
                    "workers, then run the same command again"
                ) from error
            for job, (record, clip) in zip(block, results, strict=True):
                if clip is not None:
                    write_clip(job.row, clip)
                yield job.row, record


def decode_remotely(job: Job, version: str, options: BuildOptions) -> tuple[np.void, Clip | None]:
    """Decode one video in a worker of a cluster; raises VidcacheError if it has another ffmpeg, or no such folder."""
    tools, group = _worker_tools(options.ffmpeg_dir)
    if tools[0].version != version:
        raise VidcacheError(
            f"worker on {socket.gethostname()}: has ffmpeg {tools[0].version} instead of {version}, so clips would "
            "differ. Install the same vidcache everywhere, or use --ffmpeg-dir"
        )
    return _decode_job(job, tools, group, options)


@functools.cache
def _worker_tools(ffmpeg_dir: Path | None) -> tuple[list[FFmpegBinaries], SubprocessGroup]:
    """Return what a worker process keeps; its children end with it."""
    group = SubprocessGroup()
    atexit.register(group.close)
    return find_all_tools(ffmpeg_dir), group


@contextlib.contextmanager
def _connect(options: BuildOptions) -> Iterator[None]:
    """Make joblib use the cluster."""
    backend, address = options.backend, options.scheduler
    try:
        library: Any = importlib.import_module("distributed" if backend == "dask" else "ray")
        ray_joblib: Any = importlib.import_module("ray.util.joblib") if backend == "ray" else None
    except ImportError as error:
        advice = "Install it on every machine: pip install 'vidcache[distributed]'"
        raise InputError(f"--backend {backend}: {error}. {advice}") from None
    with contextlib.ExitStack() as stack:
        try:
            if backend == "dask":
                start = "`dask scheduler`, and workers with `dask worker ADDRESS`"
                client = stack.enter_context(library.Client(address, timeout=20, set_as_default=True))
            else:
                start = "`ray start --head`"
                library.init(address=address, log_to_driver=False, logging_level="ERROR")
                stack.callback(library.shutdown)
                ray_joblib.register_ray()
        except (OSError, ValueError, RuntimeError) as error:  # OSError: ConnectionError is one
            problem = one_line(str(error), 120)
            raise InputError(
                f"--scheduler {address}: no {backend.title()} cluster answers ({problem}). Start it with {start}"
            ) from None
        if backend == "dask" and not client.scheduler_info()["workers"]:
            raise InputError(f"--scheduler {address}: has no workers. Start some with `dask worker {address}`")
        stack.enter_context(joblib.parallel_config(backend=backend))
        yield
