"""What a run starts from: its own last checkpoint, whose every field is checked, or the weights of another run."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from vidcache.checkpoint import Checkpoint, are_tensors
from vidcache.errors import MismatchError
from vidcache.model import copy_to_cpu, load_weights
from vidcache.text import brief, one_line, plural, printable
from vidcache.train.callbacks import EpochResult, RunningMetrics
from vidcache.train.distributed import PRECISIONS
from vidcache.train.schedule import EarlyStopping
from vidcache.untrusted import NUMBER, Rule, build, check, table, text

_MAX_EPOCHS = 100_000
_FIELDS = Rule(lambda value: type(value) is dict, "fields")
_RULES = {
    "optimizer": Rule(
        lambda value: type(value) is dict and type(value.get("state")) is dict and "param_groups" in value,
        "the state of an optimizer",
    ),
    "scaler": table(NUMBER, 10),
    "stopping": _FIELDS,
    "precision": Rule(lambda value: type(value) is str and value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "results": Rule(lambda value: type(value) is list and len(value) <= _MAX_EPOCHS, "a list"),
    "sums": _FIELDS,
    "best": text(32),
}


@dataclasses.dataclass
class TrainingState:
    """How far a run is: `Checkpoint.training`, without what optimizer and scaler keep themselves."""

    stopping: EarlyStopping
    results: list[EpochResult]
    sums: RunningMetrics

    def to_dict(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, precision: str) -> dict[str, Any]:
        """Return everything that a run needs to continue, as a checkpoint keeps it."""
        return {
            "optimizer": copy_to_cpu(optimizer.state_dict()),
            "scaler": scaler.state_dict(),
            "stopping": dataclasses.asdict(self.stopping),
            "precision": precision,
            "results": [dataclasses.asdict(result) for result in self.results],
            "sums": dataclasses.asdict(self.sums),
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Check everything but the tensors of the optimizer, whose shapes depend on the model; else `ValueError`."""
        training = checkpoint.training
        check(training, _RULES, frozenset(["best"]))
        results = [build(EpochResult, fields) for fields in training["results"]]
        if [result.epoch for result in results] != list(range(1, checkpoint.epoch + 1)):
            raise ValueError(f"results are not those of {checkpoint.epoch} epochs")
        stopping = build(EarlyStopping, training["stopping"], finite=False)
        if not min(checkpoint.epoch, 1) <= stopping.best_epoch <= checkpoint.epoch:
            raise ValueError(f"the best epoch is {stopping.best_epoch} of {checkpoint.epoch}")
        sums = build(RunningMetrics, training["sums"])
        if sums.num_steps < 0 or (sums.num_steps and (sums.num_clips < 1 or sums.seconds <= 0)):
            raise ValueError("sums are not those of an epoch")
        return cls(stopping, results, sums)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> TrainingState:
    """Give model, optimizer and scaler the state of a run, and return the rest of it; `MismatchError` if none fits."""
    try:
        state = TrainingState.from_checkpoint(checkpoint)
        load_weights(model, checkpoint.weights)
        load_optimizer(optimizer, checkpoint.training["optimizer"])
        scaler.load_state_dict(checkpoint.training["scaler"])
        return state
    except (ValueError, RuntimeError, KeyError) as error:  # a scaler raises RuntimeErrors
        reason = one_line(str(error), 200)
        raise MismatchError(f"train: not the state of this run ({reason}). Train again with another --out") from None


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the state of an Adam of these parameters, but not its options; `ValueError` if it is something else."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in saved["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"the optimizer has {brief(number)} of {len(parameters)} parameters")
        shape = parameters[number].shape
        shapes = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if not are_tensors(state) or {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise ValueError(f"the optimizer's state of parameter {number} is not that of an Adam")
        if state["step"] < 0 or state["exp_avg_sq"].min() < 0:
            raise ValueError(f"the optimizer's state of parameter {number} is negative")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": copy_to_cpu(saved["state"]), "param_groups": groups})


def load_pretrained(model: nn.Module, path: Path, classes: tuple[str, ...]) -> str:
    """Give a new model the weights of a checkpoint (`--init`), and return a sentence that says so.

    With other classes the model keeps its own, new head.

    Raises:
        MismatchError: The file is missing, damaged, not a checkpoint, or of another model.
    """
    checkpoint = Checkpoint.load(path)
    where, weights = printable(path), dict(checkpoint.weights)
    same = checkpoint.classes == classes
    if not same:
        weights |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    try:
        load_weights(model, weights)
    except ValueError as error:
        raise MismatchError(f"{where}: {error}: not the weights of an R3D-18. Start without --init") from None
    old = plural(len(checkpoint.classes), "class", "classes")
    start = f"starting from {where} (epoch {checkpoint.epoch})"
    return f"{start}, with its {old}" if same else f"{start}; it has {old}, this cache {len(classes)}: new head"
