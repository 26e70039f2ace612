"""Errors of files, disks, ffmpeg and checkpoints, and their exit codes; a caller's wrong argument is a `ValueError`."""


class VidcacheError(Exception):
    """A problem outside the program. The message says what to do."""

    exit_code = 1


class InputError(VidcacheError):
    """What the user pointed at cannot be used: no videos, a class too small, no weights."""

    exit_code = 2


class TooManyFailuresError(VidcacheError):
    """The work is finished, but more videos failed than `--max-failures` allows."""

    exit_code = 3


class CacheError(VidcacheError):
    """The cache is missing, unfinished, damaged, foreign or of another format version."""

    exit_code = 4


class MismatchError(VidcacheError):
    """The checkpoint does not belong to this cache, or is not a vidcache checkpoint."""

    exit_code = 5


class LockedError(VidcacheError):
    """Another build is writing the same cache, or another run the same checkpoint."""

    exit_code = 6


class InterruptedRunError(VidcacheError):
    """The work was stopped from outside and can be resumed."""

    exit_code = 130
