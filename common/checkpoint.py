"""Checkpoints: tensors and primitives only, written in one step, checked before they are read."""

import dataclasses
import importlib.metadata
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import torch

from vidcache.errors import MismatchError
from vidcache.files import write_atomically
from vidcache.pixels import MEAN, STD
from vidcache.spec import Spec
from vidcache.text import one_line, printable

FORMAT = "vidcache-checkpoint"
FORMAT_VERSION = 1
MAX_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model, and everything that is needed to use it and to know where it came from.

    Attributes:
        weights: State dict of `vidcache.model.R3D18`, on the CPU.
        classes: Names in the order of the outputs.
        spec: Of the clips that it was trained on.
        num_frames_used: Frames of each clip that it was shown (T'), evenly spaced.
        fingerprint: Of the cache.
        split_hash: Of the cache's split.
        config: What the run was asked to do.
        epoch: From 1.
        metrics: Of that epoch.
        training: What only a resumed run needs (optimizer state); empty in best.pt.
        mean: Normalisation, RGB in 0 to 1.
        std: Normalisation.
        versions: Of the tools.
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

    def save(self, path: Path) -> None:
        """Write the checkpoint; the old file is there until the new one is safe on disk.

        Raises:
            OSError: The disk is full or not writable; the old file is untouched.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"format": FORMAT, "format_version": FORMAT_VERSION, "spec": self.spec.to_dict()}
        fields["classes"] = [os.fsencode(name) for name in self.classes]
        written: list[_Remembering] = []

        def write(file: BinaryIO) -> None:
            written.append(_Remembering(file))
            torch.save(fields, cast(BinaryIO, written[0]))

        try:
            write_atomically(path, write)
        except RuntimeError:  # torch's writer makes one of whatever stops it: a full disk, Ctrl-C
            cause = written[0].error if written else None
            if isinstance(cause, OSError):
                cause.filename = str(path)
            if cause:
                raise cause from None
            raise

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint. No code in it can run, and a flipped bit is found.

        Raises:
            MismatchError: It is missing, damaged, or no checkpoint of this version.
        """
        where = printable(path)
        _check_zip(path)
        try:
            fields = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            # Of torch's paragraphs the one that says what was found; the others advise to read it unsafely.
            found = re.search(r"[Uu]nsupported [^\n]*", str(error))
            reason = one_line(found[0] if found else str(error).split("\n", 1)[0], 200)
            raise MismatchError(f"{where}: cannot be read safely ({reason}), expected a vidcache checkpoint") from None
        version = fields.pop("format_version", None) if isinstance(fields, dict) else None
        if not isinstance(version, int) or fields.pop("format", None) != FORMAT:
            raise MismatchError(f"{where}: no vidcache checkpoint. Train one: vidtrain CACHE")
        if version != FORMAT_VERSION:
            older = "Use the vidcache that made it, or train again"
            raise MismatchError(
                f"{where}: checkpoint version {version}, but this vidcache reads version {FORMAT_VERSION}. "
                f"{'Use a newer vidcache' if version > FORMAT_VERSION else older}"
            )
        try:
            fields["spec"] = Spec.from_dict(fields["spec"])
            fields["classes"] = tuple(os.fsdecode(name) for name in fields["classes"])
            return cls(**fields)
        except (TypeError, KeyError, ValueError) as error:
            reason = one_line(str(error), 200)
            raise MismatchError(f"{where}: incomplete checkpoint ({reason}). Train again: vidtrain CACHE") from None


class _Remembering:
    """A file that knows why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _check_zip(path: Path) -> None:
    """Check the CRCs that `torch.load` does not look at, and that nothing inflates."""
    where = printable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise MismatchError(f"{where}: has compressed members, expected none: not written by vidtrain")
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise MismatchError(f"{where}: more than {MAX_BYTES:,} bytes, expected a checkpoint of R3D-18")
            bad = archive.testzip()
    except OSError as error:
        raise MismatchError(f"{where}: {error.strerror}. Train first: vidtrain CACHE") from None
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise MismatchError(f"{where}: {error}: damaged, or no vidcache checkpoint. Restore a copy") from None
    if bad:
        raise MismatchError(f"{where}: {bad} is damaged (its CRC differs). Restore a copy, or train again")
