"""Ctrl-C and SIGTERM: a run stops after the step that it is in, or in the middle of a long one, and can be resumed."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.checkpoint import Checkpoint

_REPEAT_SECONDS = 1.0  # a signal that comes this soon is the same one: torchrun and a batch system both pass it on


class GracefulShutdown:
    """Turns the first SIGINT or SIGTERM into a request; a run that does not stop in time is halted and saved.

    A thread receives the signals: Python's handlers wait for the end of an operation of torch, which may take minutes
    on a CPU. A later signal ends the process at once. Before `halt_with` there is nothing to save, and the first one
    interrupts whatever is being done.

    Args:
        on_request: Called when a run is asked to stop.
        on_exit: Called before the process is ended with exit code 130: with the checkpoint that was saved, the error
            of saving it, or None where nothing was saved.
        grace_seconds: For the step that is being done; saving takes another second.
    """

    def __init__(
        self,
        on_request: Callable[[], None],
        on_exit: "Callable[[Checkpoint | Exception | None], None]",
        grace_seconds: float = 0.7,
    ) -> None:
        self._on_request, self._on_exit = on_request, on_exit
        self._halt: Callable[[], Checkpoint | None] | None = None
        self._requested = threading.Event()
        self._timer = threading.Timer(grace_seconds, self._halt_and_exit)
        self._timer.daemon = True
        self._handlers_before: dict[int, Any] = {}

    def is_requested(self) -> bool:
        """Whether the run is to stop."""
        return self._requested.is_set()

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
        self._timer.cancel()
        if self._timer.is_alive():  # where it was too late to cancel, it ends the process
            self._timer.join()
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
        self._requested.set()

    def _listen(self) -> None:
        """Read the numbers of the signals as they arrive, whatever the run is doing."""
        first_at = None
        while number := os.read(self._reading, 1):
            if number[0] not in self._handlers_before:
                continue
            if first_at is None:
                first_at = time.monotonic()
                self._requested.set()
                self._timer.start()
                if self._halt:
                    self._on_request()
            elif time.monotonic() - first_at > _REPEAT_SECONDS:
                self._exit(None)
        os.close(self._reading)

    def _halt_and_exit(self) -> None:
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
