"""Checkpoints: tensors and primitives only, written in one step, checked before they are read."""

import dataclasses
import hashlib
import importlib.metadata
import io
import os
from pathlib import Path
from typing import Any, Self

import torch
import xxhash

from vidcache.errors import MismatchError
from vidcache.files import open_regular, write_atomically
from vidcache.pixels import MEAN, STD
from vidcache.spec import Spec
from vidcache.text import brief, one_line, printable
from vidcache.untrusted import MAX_BYTES, NUMBER, PRIMITIVE, Rule, check, check_archive, numbers, table, text, whole

FORMAT = "vidcache-checkpoint"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model, and everything that is needed to use it and to know where it came from.

    Attributes:
        weights: State dict of `vidcache.model.R3D18`, on the CPU.
        classes: Names in the order of the outputs.
        spec: Shape of the clips that it was trained on.
        num_frames_used: Frames of each clip that it was shown (T'), evenly spaced.
        fingerprint: Hash of the cache.
        split_hash: Hash of the cache's split.
        config: Options of the run.
        epoch: From 1.
        metrics: Numbers of that epoch.
        training: What only a resumed run needs (optimizer state); empty in best.pt.
        mean: Normalisation, RGB in 0 to 1.
        std: Normalisation.
        versions: vidcache's and torch's.
    """

    weights: dict[str, torch.Tensor]
    classes: tuple[str, ...]
    spec: Spec
    num_frames_used: int
    fingerprint: str
    split_hash: str
    config: dict[str, Any]
    epoch: int
    metrics: dict[str, float]
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    versions: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"vidcache": importlib.metadata.version("vidcache"), "torch": str(torch.__version__)}
    )

    def save(self, path: Path) -> str:
        """Write the checkpoint; the old file is there until the new one is safe on disk; raises OSError."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"format": FORMAT, "format_version": FORMAT_VERSION, "spec": self.spec.to_dict()}
        fields["classes"] = [os.fsencode(name) for name in self.classes]
        fields["weights"] = dict(self.weights)  # not torch's own kind of dict
        archive = io.BytesIO()  # a full disk is then an OSError; torch's own writer makes a RuntimeError of it
        torch.save(fields, archive)
        data = archive.getbuffer()
        write_atomically(path, lambda file: file.write(data))
        return xxhash.xxh3_128_hexdigest(data)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint as `load_checkpoint` does: no code runs, a flipped bit is found, every field is checked."""
        where = printable(path)
        fields = _read(path, where)
        if type(fields) is not dict or brief(fields.pop("format", None)) != brief(FORMAT):
            raise MismatchError(f"{where}: no vidcache checkpoint. Train one: vidtrain CACHE")
        version = fields.pop("format_version", None)
        if type(version) is not int or version != FORMAT_VERSION:
            raise MismatchError(
                f"{where}: checkpoint version {brief(version)}, but this vidcache reads version {FORMAT_VERSION}. "
                "Use the vidcache that made it, or train again"
            )
        try:
            check(fields, _RULES, _OPTIONAL)
            fields["spec"] = Spec.from_dict(fields["spec"])
            if fields["num_frames_used"] > fields["spec"].num_frames:
                raise ValueError(f"num_frames_used is {fields['num_frames_used']}, but a clip of it has fewer frames")
        except ValueError as error:
            reason = one_line(str(error), 300)
            raise MismatchError(f"{where}: incomplete checkpoint ({reason}). Train again: vidtrain CACHE") from None
        fields["classes"] = tuple(os.fsdecode(name) for name in fields["classes"])
        fields.update({name: tuple(fields[name]) for name in ("mean", "std") if name in fields})
        return cls(**fields)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint that `vidtrain` wrote; no code in the file can run.

    Returns:
        Its `weights` (a state dict on the CPU), `classes`, `spec`, `num_frames_used`, `config`, `epoch`, `metrics`, ...

    Raises:
        MismatchError: It is missing, damaged, or no checkpoint of this version.

    Example:
        >>> checkpoint = load_checkpoint("best.pt")  # doctest: +SKIP
        >>> checkpoint.classes  # doctest: +SKIP
        ('jump', 'run')
    """
    return Checkpoint.load(Path(path))


def hash_file(path: Path) -> str:
    """Return the xxh3-128 of a file; raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _read(path: Path, where: str) -> Any:
    try:
        with open_regular(path) as file:
            check_archive(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MismatchError(f"{where}: {error.strerror}. Train first: vidtrain CACHE") from None
    except ValueError as error:
        reason = one_line(str(error), 300)
        raise MismatchError(f"{where}: {reason}. Use another copy, or train again: vidtrain CACHE") from None
    except Exception as error:  # torch says in as many ways as there are what a malformed pickle makes it stumble over
        reason = one_line(str(error).split("\n", 1)[0], 200)
        raise MismatchError(f"{where}: cannot be read safely ({reason}), expected a vidcache checkpoint") from None


def are_tensors(value: Any) -> bool:
    """Whether something is a state dict of finite numbers, of any shapes and strides (0: one number for many)."""
    if not table(Rule(_is_dense, ""), 10_000).holds(value):
        return False
    held = {(tensor.untyped_storage().data_ptr(), tensor.dtype): tensor for tensor in value.values()}
    stores = (torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()) for tensor in held.values())
    return all(bool(store.isfinite().all()) for store in stores)


def _is_dense(tensor: Any) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
        and tensor.numel() <= MAX_BYTES
    )


def _are_names(value: Any) -> bool:
    return (
        type(value) is list
        and 1 <= len(value) <= _MAX_CLASSES
        and all(type(name) is bytes and 1 <= len(name) <= 4096 for name in value)
        and len(set(value)) == len(value)
    )


_MAX_CLASSES = 100_000
_OPTIONS = table(PRIMITIVE, 100)
# What each field of a file has to be.
_RULES = {
    "weights": Rule(are_tensors, "finite tensors by name"),
    "classes": Rule(_are_names, f"1 to {_MAX_CLASSES:,} different names"),
    "spec": Rule(lambda value: type(value) is dict, "the fields of a spec"),
    "num_frames_used": whole(1, 1024),
    "fingerprint": text(64),
    "split_hash": text(64),
    "config": table(
        Rule(lambda value: PRIMITIVE.holds(value) or _OPTIONS.holds(value), "a number, a short text or options"), 200
    ),
    "epoch": whole(0),
    "metrics": table(NUMBER, 100),
    "training": Rule(lambda value: type(value) is dict, "the state of a run"),
    "mean": numbers(3),
    "std": numbers(3),
    "versions": table(text(200), 100),
}
_OPTIONAL = frozenset(("training", "mean", "std", "versions"))
