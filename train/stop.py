"""Ctrl-C and SIGTERM as a wish: a run ends after the step that it is in."""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Stop:
    """The first SIGINT or SIGTERM asks the run to stop after the step that it is in; a later one stops it at once.

    One that comes within a second is the same one: torchrun and a batch system may both pass it on.

    Args:
        on_asked: Told of the first one.
    """

    def __init__(self, on_asked: Callable[[], None]) -> None:
        self._on_asked = on_asked
        self._asked_at = math.inf
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self._asked_at < math.inf

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs ignore SIGINT
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        now, asked = time.monotonic(), self.asked
        if now - self._asked_at > 1:
            before = self._before[number]
            if callable(before):  # that of the command, which knows then that it was interrupted
                before(number, frame)
            raise KeyboardInterrupt
        self._asked_at = min(now, self._asked_at)
        if not asked:
            with contextlib.suppress(RuntimeError):  # it came in the middle of a write to stderr
                self._on_asked()
