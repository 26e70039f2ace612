"""Several processes that train one model, started by torchrun; or one, which is all the same to the loop."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from vidcache.errors import VidcacheError

# How long the others wait for what only the first one does. A process that dies is noticed by its closed connection.
_PATIENCE = datetime.timedelta(hours=24)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among those that train one model.

    What is asked of all (`any`, `gather`, ...) must be asked by all, in the same order.

    Attributes:
        rank: Of this process, from 0; only the first one writes and reports.
        count: Processes.
        device: Where this one computes: "cpu", "cuda:1", ...
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    _control: Any = None  # a group for flags and objects that never waits for a GPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control)
        return bool(value)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor on `device` up over all processes, in place; nobody waits for the device."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has, in the order of their ranks."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def of_first(self, make: Callable[[], Any]) -> Any:
        """Return to all what the first process makes.

        Raises:
            Exception: What `make` raised there; in all processes.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None]
        if self.is_first:
            try:
                box = [make()]
            except Exception as error:
                box = [_Failed(error)]
        dist.broadcast_object_list(box, 0, group=self._control)
        if isinstance(box[0], _Failed):
            raise box[0].error
        return box[0]

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Say it when another process has died: until then, all wait for it.

        Raises:
            VidcacheError: Instead of what torch raises.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_lost_connection(error):
                raise
            raise VidcacheError(
                f"train: another of the {self.count} processes of this run has ended, expected all to go on. "
                "Look at what it said; start all of them again with --resume"
            ) from error


@dataclasses.dataclass(frozen=True)
class _Failed:
    error: Exception


def _is_lost_connection(error: RuntimeError) -> bool:
    said = str(error)
    return isinstance(error, dist.DistError) or any(
        word in said for word in ("onnection closed", "onnection reset", "Broken pipe", "gloo", "NCCL", "timed out")
    )


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Meet the other processes that torchrun has started; without torchrun, this process is the only one.

    Args:
        device: "cpu" or "cuda"; of several GPUs, each process takes the one of its place on the machine.
    """
    if not dist.is_torchelastic_launched():
        yield Ranks(device=device)
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size(), str(own), control)
    finally:
        dist.destroy_process_group()
