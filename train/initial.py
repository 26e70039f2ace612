"""Starting a run from the checkpoint of another one."""

from pathlib import Path

from torch import nn

from vidcache.checkpoint import Checkpoint
from vidcache.errors import MismatchError
from vidcache.model import load_weights
from vidcache.text import plural, printable


def start_from(model: nn.Module, path: Path, classes: tuple[str, ...]) -> str:
    """Give a new model the weights of a checkpoint; with other classes it keeps its own, new head.

    Args:
        model: Of `vidcache.model.R3D18`; changed.
        path: A checkpoint of vidcache.
        classes: Of the new run, in the order of the outputs.

    Returns:
        What was done, in words.

    Raises:
        MismatchError: The file is missing, damaged, no checkpoint, or of another model.
    """
    checkpoint = Checkpoint.load(path)
    where, state = printable(path), dict(checkpoint.weights)
    same = checkpoint.classes == classes
    if not same:
        state |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    try:
        load_weights(model, state)
    except ValueError as error:
        raise MismatchError(f"{where}: {error}: not the weights of an R3D-18. Start without --init") from None
    before = plural(len(checkpoint.classes), "class", "classes")
    said = f"starting from {where} (epoch {checkpoint.epoch})"
    if same:
        return f"{said}, with its {before}"
    return f"{said}; its {before} are not the {len(classes)} of this cache: the head is new"
