"""Which checkpoint may be used on which cache, and the model from a checkpoint."""

import torch

from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import MismatchError
from vidcache.model import R3D18, load_weights
from vidcache.pixels import MEAN, STD
from vidcache.text import difference


def check_match(
    checkpoint: Checkpoint, reader: Reader, where: str, *, allow_mismatch: bool = False, advice: str = ""
) -> None:
    """Refuse a checkpoint that does not belong to a cache.

    Args:
        checkpoint: Of a run.
        reader: The cache to evaluate it on.
        where: Name of the checkpoint's file, for messages.
        advice: What to do, where there is no --allow-mismatch; empty is that of an evaluation.
        allow_mismatch: Accept other content or another split; never another spec or class list.

    Raises:
        MismatchError: Names both sides.
    """
    cache = reader.name
    if checkpoint.spec != reader.spec:
        raise MismatchError(
            f"{where}: trained on {_spec(checkpoint.spec, reader.spec)}, but {cache} has "
            f"{_spec(reader.spec, checkpoint.spec)}. "
            f"{advice or 'Evaluate with its own cache, or build one with the same options'}"
        )
    if checkpoint.classes != reader.classes:
        raise MismatchError(
            f"{where}: trained on {len(checkpoint.classes)} classes, but {cache} has {len(reader.classes)} "
            f"({difference(reader.classes, checkpoint.classes)}). "
            f"{advice or 'Evaluate with its own cache, or train again'}"
        )
    if allow_mismatch:
        return
    for noun, trained, found in (
        ("cache", checkpoint.fingerprint, reader.fingerprint),
        ("split", checkpoint.split_hash, reader.split_hash),
    ):
        if trained != found:
            raise MismatchError(
                f"{where}: trained on {noun} {trained}, but {cache} is {found}: clips of its test split may have been "
                f"trained on. {advice or 'Evaluate with its own cache, or accept it with --allow-mismatch'}"
            )


def is_of(checkpoint: Checkpoint, reader: Reader) -> bool:
    """Whether a checkpoint was trained on this cache, divided as it is."""
    return (checkpoint.fingerprint, checkpoint.split_hash) == (reader.fingerprint, reader.split_hash)


def load_model(checkpoint: Checkpoint, where: str, device: str | torch.device) -> R3D18:
    """Build the model of a checkpoint, in evaluation mode.

    Raises:
        MismatchError: Its weights are not those of an R3D-18 with these classes, or it normalises otherwise.
    """
    if (checkpoint.mean, checkpoint.std) != (MEAN, STD):
        raise MismatchError(
            f"{where}: trained on clips with mean {checkpoint.mean} and deviation {checkpoint.std}, but this vidcache "
            f"normalises with {MEAN} and {STD}. Use the vidcache that made it, or train again"
        )
    bias = checkpoint.weights.get("fc.bias")
    num_outputs = len(bias) if bias is not None and bias.dim() == 1 else 0
    if num_outputs != len(checkpoint.classes):  # before a model of so many outputs is made
        raise MismatchError(f"{where}: {num_outputs} outputs for {len(checkpoint.classes)} classes. Train again")
    model = R3D18(num_outputs)
    try:
        load_weights(model, checkpoint.weights)
    except ValueError as error:
        raise MismatchError(f"{where}: weights do not fit an R3D-18 ({error}). Train again") from None
    model.to(device, memory_format=torch.channels_last_3d)
    model.eval()
    return model


def _spec(spec: object, other: object) -> str:
    """Show a spec; all of its fields when the short form would look equal."""
    return str(spec) if str(spec) != str(other) else repr(spec)
