"""A checkpoint as one file that runs without vidcache; it is there once it was read back and compared with the model.

What is exported takes the bytes of clips and gives logits; the normalisation is inside. Nothing of a clip is in it.
"""

import contextlib
import copy
import dataclasses
import importlib
import importlib.metadata
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vidcache.cache.reader import CacheReader, Reader, open_caches
from vidcache.checkpoint import Checkpoint
from vidcache.errors import CacheError, InputError, VidcacheError
from vidcache.eval.inference import check_match, load_model, to_input
from vidcache.files import follow, read_json, write_atomically
from vidcache.pixels import MEAN, STD, normalization
from vidcache.sampling import sample_indices
from vidcache.text import plural, printable, to_json

FORMAT = "vidcache-export"
FORMAT_VERSION = 1
METADATA = "metadata.json"  # its name in a torch-export file's extra files and in an ONNX file's metadata
OPSET = 18  # the one that torch writes without converting; a newer one would only lock out older runtimes
TOLERANCE = 1e-3  # of a logit
BATCH_SIZES = (1, 2, 5)  # 1 is where a batch that is not dynamic shows, 5 is more than it was exported with

Clips = npt.NDArray[np.uint8]
Model = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class CheckClips:
    """Clips to compare a file with its model on.

    Attributes:
        source: Where they are from, for messages.
        clips: (n, T', H, W, 3) uint8 RGB, n the sum of `BATCH_SIZES`.
        num_clips: How many of them differ.
        is_real: They are of a cache.
    """

    source: str
    clips: Clips
    num_clips: int
    is_real: bool


@dataclasses.dataclass(frozen=True)
class Export:
    """A file that says what its model says.

    Attributes:
        num_bytes: Its size.
        metadata: What it carries as `METADATA`.
        max_difference: The largest difference of a logit from the model's, in float32.
        max_logit: The largest logit of these clips, without its sign.
    """

    num_bytes: int
    metadata: dict[str, Any]
    max_difference: float
    max_logit: float


class BytesModel(nn.Module):
    """From the bytes of clips to logits: the normalisation of `vidcache.pixels`, then a model.

    Args:
        model: (B, 3, T', H, W) float32, normalised, to logits (B, K); in evaluation mode.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        maps = torch.from_numpy(normalization()).to(torch.float32)
        self.model = model
        self.register_buffer("scale", maps[:, :3].diagonal().clone())
        self.register_buffer("offset", maps[:, 3].clone())

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """From (B, T', H, W, 3) uint8 RGB to (B, K) float32."""
        inputs = clips.to(torch.float32) * self.scale + self.offset
        logits: torch.Tensor = self.model(inputs.permute(0, 4, 1, 2, 3))
        return logits


def export_checkpoint(
    checkpoint: Checkpoint,
    where: str,
    out: Path,
    file_format: str,
    check: CheckClips,
    *,
    device: str = "cpu",
    on_step: Callable[[str], None] = lambda _: None,
) -> Export:
    """Write a file that needs torch or an ONNX runtime, but no vidcache; it is there only once it was compared.

    Args:
        checkpoint: What to export, in float32.
        where: Name of the checkpoint's file, for messages.
        out: The file. Its folder must exist. An older one is replaced in one step, or untouched.
        file_format: "torch-export" or "onnx".
        check: Clips that the file and the model must say the same of, to `TOLERANCE`, in batches of `BATCH_SIZES`.
        device: Where the model runs, and a torch-export file afterwards; an ONNX file is compared on the CPU.
        on_step: Told what is being done.

    Raises:
        InputError: A package that the format needs is not installed.
        MismatchError: The weights are not those of an R3D-18 with these classes.
        VidcacheError: The file says something else than the model; it is gone.
        OSError: The disk is full or the folder not writable; an older file is untouched.
    """
    serialise, load, packages = _FORMATS[file_format]
    on_step("exporting")
    metadata = describe(checkpoint, file_format, device)
    with _packages(file_format, packages):
        model = load_model(checkpoint, where, device)
        data = serialise(_trace(model, check.clips.shape[1:], device), to_json(metadata))
    said: list[tuple[float, float]] = []

    def write(file: BinaryIO) -> None:
        file.write(data)
        file.flush()
        on_step(f"comparing on {check.source}")
        difference, largest = compare(model, load(Path(file.name)), torch.from_numpy(check.clips).to(device))
        if not difference <= TOLERANCE:  # NaN is not
            raise VidcacheError(
                f"{printable(out)}: its logits differ from those of {where} by {difference:.3g} on {check.source}, "
                f"expected at most {TOLERANCE}: not written. Try the other --format, or another version of torch"
            )
        said.append((difference, largest))

    write_atomically(out, write)
    return Export(len(data), metadata, *said[0])


def describe(checkpoint: Checkpoint, file_format: str, device: str = "cpu") -> dict[str, Any]:
    """Return what has to be known to use an exported file, as JSON-ready values; names are printable."""
    spec, frames = checkpoint.spec, sample_indices(checkpoint.spec.num_frames, checkpoint.num_frames_used).tolist()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "classes": [printable(name) for name in checkpoint.classes],
        "input": {
            "name": "clips",
            "dtype": "uint8",
            "shape": ["B", len(frames), spec.height, spec.width, 3],
            "meaning": "RGB, 0 to 255, not normalised; any number B of clips; of each its frames `frames`",
        },
        "output": {
            "name": "logits",
            "dtype": "float32",
            "shape": ["B", len(checkpoint.classes)],
            "meaning": "logits in the order of `classes`; their softmax gives the probabilities",
        },
        "num_frames": len(frames),
        "frames": frames,
        "spec": spec.to_dict(),
        "clip": "frame i of the T = spec.num_frames frames of a clip is frame floor(i * (n - 1) / (T - 1)) of the n "
        "frames of the video that can be decoded; where n < T, all n and then the last one again",
        "normalisation": {"mean": MEAN, "std": STD, "meaning": "of RGB / 255; the file does it"},
        "fingerprint": checkpoint.fingerprint,
        "split_hash": checkpoint.split_hash,
        "epoch": checkpoint.epoch,
        "versions": {"vidcache": importlib.metadata.version("vidcache"), "torch": str(torch.__version__)},
        "trained_with": checkpoint.versions,
        **({"device": device} if file_format == "torch-export" else {}),
    }


def compare(model: Model, exported: Model, clips_BTHWC: torch.Tensor) -> tuple[float, float]:
    """Ask a model and what was made of it about the same clips, in batches of `BATCH_SIZES`, without TF32.

    Args:
        model: (B, 3, T', H, W) float32, normalised, to logits (B, K).
        exported: (B, T', H, W, 3) uint8 RGB to logits (B, K).
        clips_BTHWC: (n, T', H, W, 3) uint8 RGB, n the sum of `BATCH_SIZES`, on the device of both.

    Returns:
        The largest difference of two logits, infinite where there are not as many; and the largest logit of the model.
        NaN where any is.
    """
    differences, logits = [], []
    with torch.inference_mode(), _no_tf32():
        for batch in torch.split(clips_BTHWC, list(BATCH_SIZES)):
            expected, found = model(to_input(batch)).cpu(), exported(batch).cpu()
            is_same_shape = found.shape == expected.shape
            differences.append((found - expected).abs() if is_same_shape else torch.full_like(expected, math.inf))
            logits.append(expected.abs())
    return float(torch.cat(differences).max()), float(torch.cat(logits).max())


def _trace(model: nn.Module, clip_shape: tuple[int, ...], device: str) -> torch.export.ExportedProgram:
    # A copy whose weights are contiguous: torch cannot tell that others fill their memory, and warns.
    module = BytesModel(copy.deepcopy(model).to(memory_format=torch.contiguous_format)).to(device).eval()
    clips = torch.zeros((2, *clip_shape), dtype=torch.uint8, device=device)  # kept in the file; 1 would be a constant
    with torch.no_grad():
        program = torch.export.export(module, (clips,), dynamic_shapes={"clips": {0: torch.export.Dim("B")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the names of folders of this machine
    return program


def _to_torch_export(program: torch.export.ExportedProgram, metadata: str) -> memoryview:
    # Not straight to the disk: torch makes a RuntimeError of a full one.
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: metadata})
    return file.getbuffer()


def _open_torch_export(path: Path) -> Model:
    with path.open("rb") as file:
        model: Model = torch.export.load(file).module()
    return model


def _to_onnx(program: torch.export.ExportedProgram, metadata: str) -> memoryview:
    import onnx

    exported = torch.onnx.export(
        program,
        (),
        input_names=["clips"],
        output_names=["logits"],
        dynamic_shapes={"clips": {0: "B"}},  # only its name: the program has it already
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    if exported is None:
        raise TypeError("torch.onnx.export returned None, expected a program")
    model = exported.model_proto
    onnx.helper.set_model_props(model, {METADATA: metadata})
    return memoryview(model.SerializeToString())  # weights and all: R3D-18 is far below the 2 GiB of one message


def _open_onnx(path: Path) -> Model:
    import onnx
    import onnxruntime

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.cpu().numpy()})[0])


@contextlib.contextmanager
def _packages(file_format: str, names: tuple[str, ...]) -> Iterator[None]:
    """Say what to install where one is not there, or too old for this torch, which asks for the newest by its name."""
    try:
        for name in names:
            importlib.import_module(name)
        yield
    except ImportError as error:
        if not names:
            raise
        raise InputError(
            f"--format {file_format}: {error}, expected {', '.join(names)}, new enough for torch {torch.__version__}. "
            f"pip install 'vidcache[{file_format}]'"
        ) from None


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """Let a GPU use all 23 bits of a mantissa in convolutions; its default is 10."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


# Format: how a program becomes a file with metadata, how the file becomes a function again, packages for both.
_FORMATS: dict[
    str, tuple[Callable[[torch.export.ExportedProgram, str], memoryview], Callable[[Path], Model], tuple[str, ...]]
] = {
    "torch-export": (_to_torch_export, _open_torch_export, ()),
    "onnx": (_to_onnx, _open_onnx, ("onnx", "onnxscript", "onnxruntime")),
}


NUM_CLIPS = sum(BATCH_SIZES)
_MAX_CACHES = 100
_GRID = 8  # the coarse pattern that moves, in cells along a side


def find_clips(ckpt: Path, checkpoint: Checkpoint, cache: Path | None = None) -> CheckClips:
    """Take clips of a cache: the given one, else what the checkpoint was trained on, if it is there; else make some.

    Args:
        ckpt: File of the checkpoint.
        checkpoint: What it holds.
        cache: May have other content or another split, but not another spec or other classes. None looks into
            best.run/ beside best.pt, where the run has left the names of its caches.

    Raises:
        CacheError: The given cache cannot be read.
        InputError: The given cache has no clips.
        MismatchError: The given cache has another spec or other classes.
    """
    if cache is not None:
        with CacheReader(cache) as reader:
            check_match(checkpoint, reader, printable(ckpt), allow_mismatch=True)
            return _real_clips(reader, checkpoint)
    for paths in _caches_of_run(ckpt):
        try:
            with open_caches(paths) as found:
                if (found.fingerprint, found.spec) == (checkpoint.fingerprint, checkpoint.spec):
                    return _real_clips(found, checkpoint)
        except CacheError:
            continue  # moved or gone since: that others are taken is said
    return made_clips(checkpoint)


def made_clips(checkpoint: Checkpoint) -> CheckClips:
    """Make clips, the same every time: noise, and in every other one a coarse pattern that moves."""
    spec, rng = checkpoint.spec, np.random.default_rng(0)
    shape = (checkpoint.num_frames_used, spec.height, spec.width, 3)
    clips = rng.integers(0, 256, (NUM_CLIPS, *shape), np.uint8)
    for clip in clips[1::2]:
        cells = rng.integers(0, 256, (_GRID, _GRID, 3), np.uint8)
        rows, columns = (np.arange(size) * _GRID // size for size in shape[1:3])
        step = rng.integers(-3, 4, 2)
        for number, frame in enumerate(clip):
            frame[:] = np.roll(cells[rows[:, None], columns], step * number, axis=(0, 1))
    return CheckClips(plural(NUM_CLIPS, "made clip"), clips, NUM_CLIPS, is_real=False)


def _real_clips(reader: Reader, checkpoint: Checkpoint) -> CheckClips:
    """Read clips from all over a cache; where it has too few, the last one again."""
    rows = reader.rows()
    if not len(rows):
        raise InputError(f"{reader.name}: no clips, expected at least one to compare on. Leave --cache out")
    chosen = rows[sample_indices(len(rows), NUM_CLIPS)]
    clips = reader.read(chosen, sample_indices(checkpoint.spec.num_frames, checkpoint.num_frames_used))
    num_clips = len(np.unique(chosen))
    return CheckClips(f"{plural(num_clips, 'clip')} of {reader.name}", clips, num_clips, is_real=True)


def _caches_of_run(ckpt: Path) -> list[list[Path]]:
    """Say where the caches of a run may be: as they were named then, from here or from beside the checkpoint."""
    said = read_json(follow(ckpt).with_suffix(".run") / "config.json").get("caches")
    if (
        type(said) is not list
        or len(said) > _MAX_CACHES
        or not all(type(name) is str and "\0" not in name for name in said)
    ):
        return []
    names = [Path(name) for name in said]
    return [names, [ckpt.parent / name for name in names]] if names else []
