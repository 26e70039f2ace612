"""What this process may use: the memory of a child, file descriptors. No limit is ever raised beyond its hard one.

Knows neither videos nor programs.
"""

import errno
import os
import resource
from collections.abc import Iterable
from typing import Any

import joblib

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
