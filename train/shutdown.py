"""Ctrl-C and SIGTERM: a run stops after the step that it is in, or in the middle of a long one, and can be resumed."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.checkpoint import Checkpoint

GRACE_SECONDS = 0.7  # for the step that is being done; saving takes another second
_REPEAT_SECONDS = 1.0  # a signal that comes this soon is the same one: torchrun and a batch system both pass it on


class GracefulShutdown:
    """Turns the first SIGINT or SIGTERM into a request; a run that does not stop in time is halted and saved.

    A thread receives the signals: Python's handlers wait for the end of an operation of torch, which may take minutes
    on a CPU. A later signal ends the process at once. Before `halt_with` there is nothing to save, and the first one
    interrupts whatever is being done. `on_exit` is called before the process is ended with exit code 130: with the
    checkpoint that was saved, the error of saving it, or None where nothing was saved.
    """

    def __init__(
        self, on_request: Callable[[], None], on_exit: "Callable[[Checkpoint | Exception | None], None]"
    ) -> None:
        self._on_request, self._on_exit = on_request, on_exit
        self._halt: Callable[[], Checkpoint | None] | None = None
        self.grace_seconds = GRACE_SECONDS
        self._requested_at = math.inf
        self._handlers_before: dict[int, Any] = {}
        self._deciding = threading.Lock()  # who ends the process: the run itself, or `_halter`
        self._halter: threading.Thread | None = None
        self._over = threading.Event()

    def is_requested(self) -> bool:
        """Whether the run is to stop."""
        return self._requested_at < math.inf

    def halt_with(self, halt: "Callable[[], Checkpoint | None]") -> None:
        """Request from now on, and halt with this function a run that does not stop in time."""
        self._halt = halt

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs ignore SIGINT
                self._handlers_before[number] = signal.signal(number, self._handle)
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._deciding:
            self._over.set()
            halter = self._halter
        if halter:
            halter.join()  # it ends the process
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        os.close(self._writing)  # `_listen` closes the other end

    def _handle(self, number: int, frame: object) -> None:
        if self._halt is None:
            before = self._handlers_before[number]
            if callable(before):  # that of the command, which knows then that it was interrupted
                before(number, frame)
            raise KeyboardInterrupt
        # Nothing else: it may run long after the signal, in the middle of what is not to be interrupted.
        self._requested_at = min(time.monotonic(), self._requested_at)

    def _listen(self) -> None:
        """Read the numbers of the signals as they arrive, whatever the run is doing."""
        first_at = math.inf
        while number := os.read(self._reading, 1):
            now = time.monotonic()
            if number[0] not in self._handlers_before:
                continue
            if first_at == math.inf:
                first_at, self._requested_at = now, min(now, self._requested_at)
                threading.Thread(target=self._halt_later, name="halt", daemon=True).start()
                if self._halt:
                    self._on_request()
            elif now - first_at > _REPEAT_SECONDS and not self._over.wait(0.5):  # the run may be ending by itself
                self._exit(None)
        os.close(self._reading)

    def _halt_later(self) -> None:
        if self._over.wait(self.grace_seconds):
            return
        with self._deciding:
            if self._over.is_set():
                return
            self._halter = threading.current_thread()
        result: Checkpoint | Exception | None = None
        try:
            result = self._halt() if self._halt else None
        except Exception as error:
            result = error
        self._exit(result)

    def _exit(self, result: "Checkpoint | Exception | None") -> None:
        reporting = threading.Thread(target=self._on_exit, args=(result,), daemon=True)
        reporting.start()
        reporting.join(0.5)  # whoever reads stderr may have stopped reading
        os._exit(130)
