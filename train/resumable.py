"""The state of a run in last.pt, compared with what it has to be before anything of it is used."""

from typing import Any

import torch

from vidcache.checkpoint import Checkpoint, are_tensors
from vidcache.model import copy_to_cpu
from vidcache.plain import NUMBER, Rule, build, check, table, text
from vidcache.text import brief
from vidcache.train.early_stopping import EarlyStopping
from vidcache.train.forward import PRECISIONS
from vidcache.train.results import EpochResult
from vidcache.train.step import EpochSums

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


def check_state(last: Checkpoint) -> None:
    """Check everything but the optimizer's tensors, whose shapes are the model's question.

    Raises:
        ValueError: It holds no state of a run, or one that no run can have.
    """
    check(last.training, _RULES, frozenset(["best"]))
    results = [build(EpochResult, fields) for fields in last.training["results"]]
    if [result.epoch for result in results] != list(range(1, last.epoch + 1)):
        raise ValueError(f"results are not those of {last.epoch} epochs")
    stopping = build(EarlyStopping, last.training["stopping"], finite=False)
    if not min(last.epoch, 1) <= stopping.best_epoch <= last.epoch:
        raise ValueError(f"the best epoch is {stopping.best_epoch} of {last.epoch}")
    sums = build(EpochSums, last.training["sums"])
    if sums.num_steps < 0 or (sums.num_steps and (sums.num_clips < 1 or sums.seconds <= 0)):
        raise ValueError("sums are not those of an epoch")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimizer the state of another one, but not its options: those are of the run.

    Args:
        optimizer: Adam, new.
        saved: What `state_dict` of it gave.

    Raises:
        ValueError: It is not the state of an Adam of these parameters.
    """
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
