"""Ctrl-C and SIGTERM: a run ends after the step that it is in, or in the middle of a long one, and can go on."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.checkpoint import Checkpoint


GRACE_SECONDS = 0.7  # for the step that is being done; saving takes another second


class Stop:
    """The first SIGINT or SIGTERM asks the run to stop; one that has not in time is halted and saved.

    A thread hears the signals: Python's handlers wait for the end of an operation of torch, which may take minutes on a
    CPU. A later signal ends the process at once; one that comes within a second is the same one: torchrun and a batch
    system may both pass it on. As long as there is nothing to save, the first one interrupts what is being done.

    Args:
        on_asked: Told of the first one, in a thread.
        on_exit: Told of the checkpoint that was saved, or of the error that saving it gave, or of None where there is
            nothing new to save; in a thread, and then the process ends with 130.
    """

    def __init__(
        self, on_asked: Callable[[], None], on_exit: "Callable[[Checkpoint | Exception | None], None]"
    ) -> None:
        self._on_asked, self._on_exit = on_asked, on_exit
        self._halt: Callable[[], Checkpoint | None] | None = None
        self.grace_seconds = GRACE_SECONDS
        self._asked_at = math.inf
        self._before: dict[int, Any] = {}
        self._deciding = threading.Lock()  # who ends the run: the run itself, or `_halter`
        self._halter: threading.Thread | None = None
        self._over = threading.Event()

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self._asked_at < math.inf

    def halt_with(self, halt: "Callable[[], Checkpoint | None]") -> None:
        """From now on the run is asked first, and halted with this if it does not listen."""
        self._halt = halt

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs ignore SIGINT
                self._before[number] = signal.signal(number, self._ask)
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._deciding:
            self._over.set()
            halter = self._halter
        if halter:
            halter.join()  # it ends the process
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writing)  # `_listen` closes the other end

    def _ask(self, number: int, frame: object) -> None:
        if self._halt is None:
            before = self._before[number]
            if callable(before):  # that of the command, which knows then that it was interrupted
                before(number, frame)
            raise KeyboardInterrupt
        # Nothing else: it may run long after the signal, in the middle of what is not to be interrupted.
        self._asked_at = min(time.monotonic(), self._asked_at)

    def _listen(self) -> None:
        """Read the numbers of the signals as they arrive, whatever the run is doing."""
        heard_at = math.inf
        while number := os.read(self._reading, 1):
            now = time.monotonic()
            if number[0] not in self._before:
                continue
            if heard_at == math.inf:
                heard_at, self._asked_at = now, min(now, self._asked_at)
                threading.Thread(target=self._halt_later, name="halt", daemon=True).start()
                if self._halt:
                    self._on_asked()
            elif now - heard_at > 1 and not self._over.wait(0.5):  # for the run to end of itself
                self._exit(None)
        os.close(self._reading)

    def _halt_later(self) -> None:
        if self._over.wait(self.grace_seconds):
            return
        with self._deciding:
            if self._over.is_set():
                return
            self._halter = threading.current_thread()
        found: Checkpoint | Exception | None = None
        try:
            found = self._halt() if self._halt else None
        except Exception as error:
            found = error
        self._exit(found)

    def _exit(self, found: "Checkpoint | Exception | None") -> None:
        said = threading.Thread(target=self._on_exit, args=(found,), daemon=True)
        said.start()
        said.join(0.5)  # whoever reads stderr may have stopped reading
        os._exit(130)
