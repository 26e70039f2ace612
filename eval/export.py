"""`vidcache export`: a checkpoint as one file that runs without vidcache, kept only if it agrees with the model.

The file takes the bytes of clips and gives logits; the normalisation is inside. Torch, which takes 2 s to import, is
imported inside functions: `--help` is instant.
"""

import copy
import importlib.metadata
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from vidcache.cli import Command, choose_device, echo_json, json_option, option, progress_console, verbosity_options
from vidcache.console import Progress, echo
from vidcache.errors import InputError, VidcacheError
from vidcache.files import write_atomically
from vidcache.outputs import EXPORT, claim
from vidcache.spec import sample_indices
from vidcache.text import printable, to_json

if TYPE_CHECKING:
    import torch

    from vidcache.checkpoint import Checkpoint

    Model = Callable[[torch.Tensor], torch.Tensor]

ENDINGS = {"torch-export": ".pt2", "onnx": ".onnx"}
FILE = click.Path(path_type=Path, dir_okay=False)
METADATA = "metadata.json"  # its name in a torch-export file's extra files and in an ONNX file's metadata
OPSET = 18  # the one that torch writes without converting; a newer one would only lock out older runtimes
TOLERANCE = 1e-3  # of a logit
BATCH_SIZES = (1, 2, 5)  # 1 shows a batch size that is not dynamic; 5 is more than the model is traced with


@click.command(cls=Command)
@click.argument("ckpt", type=FILE)
@option("--format", type=click.Choice([*ENDINGS]), required=True, help="onnx: first pip install 'vidcache[onnx]'.")
@option("--out", envvar="VIDCACHE_EXPORT_OUT", type=FILE, show_default="CKPT with another ending", help="The new file.")
@option("--device", default="cpu", help="Device that a torch-export file will run on: cpu, cuda, cuda:1, ...")
@verbosity_options()
@json_option()
def export(ckpt: Path, format: str, out: Path | None, device: str, as_json: bool) -> None:  # noqa: A002
    """Export CKPT to a file that runs without vidcache: uint8 clips (B, T, H, W, 3) in, logits (B, classes) out.

    The normalisation is inside, B is any number; classes, frames and spec are in its metadata. The file is read back
    and compared with the model on random clips: if a logit differs by more than 0.001, nothing is written.

    \b
    vidcache export best.pt --format torch-export
    vidcache export best.pt --format onnx
    """
    path, where = out or ckpt.with_suffix(ENDINGS[format]), printable(ckpt)
    if path.suffix != ENDINGS[format]:  # other tools look at the ending
        raise click.BadParameter(f"{printable(path)} must end in {ENDINGS[format]}", param_hint="--out")
    path = claim(path, EXPORT, [ckpt])

    from vidcache.checkpoint import Checkpoint

    started = time.perf_counter()
    device, checkpoint = choose_device(device), Checkpoint.load(ckpt)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Progress(progress_console(), "exporting"):
        result = export_checkpoint(checkpoint, path, format, where=where, device=device)
    if as_json:
        facts = {"checkpoint": where, "format": format, "file": printable(path)}
        echo_json({**facts, **result, "seconds": time.perf_counter() - started})
        return
    shapes = (", ".join(map(str, result["metadata"][name]["shape"])) for name in ("input", "output"))
    echo("{}: uint8 ({}) -> float32 ({}), {:.1f} MB".format(printable(path), *shapes, result["num_bytes"] / 1e6))
    differences = f"{result['max_difference']:.2g} (allowed: {TOLERANCE}), the largest is {result['max_logit']:.3g}"
    echo(f"Compared with the model on {result['checked_on']}: logits differ by at most {differences}")


def export_checkpoint(
    checkpoint: "Checkpoint", out: Path, file_format: str, *, where: str = "checkpoint", device: str = "cpu"
) -> dict[str, Any]:
    """Write a file that needs torch or an ONNX runtime, but no vidcache; keep it only if it agrees with the model.

    Returns JSON-ready facts. Raises InputError (a package is missing), MismatchError (the weights do not fit),
    VidcacheError (a logit differs by more than `TOLERANCE`) and OSError; an older file is then untouched.
    """
    import torch

    from vidcache.eval.inference import load_model

    is_onnx, metadata = file_format == "onnx", describe(checkpoint, file_format, device)
    shape = metadata["input"]["shape"][1:]
    model = load_model(checkpoint, where, device)
    try:
        data = _serialise(model, torch.zeros((2, *shape), dtype=torch.uint8, device=device), is_onnx, to_json(metadata))
    except ImportError as error:  # also of a package that is too old for this torch
        raise InputError(
            f"--format onnx: {error}. It needs onnx, onnxscript and onnxruntime, new enough for torch "
            f"{torch.__version__}: pip install 'vidcache[onnx]'"
        ) from None
    num_clips, random = sum(BATCH_SIZES), torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (num_clips, *shape), dtype=torch.uint8, generator=random).to(device)
    result: dict[str, Any] = {"num_bytes": len(data), "metadata": metadata, "batch_sizes": BATCH_SIZES}
    result |= {"checked_on": f"{num_clips} random clips", "checked_on_real_clips": False, "num_clips": num_clips}
    result["tolerance"] = TOLERANCE

    def write(file: BinaryIO) -> None:
        file.write(data)
        file.flush()
        result["max_difference"], result["max_logit"] = compare(model, _load(Path(file.name), is_onnx), clips)
        if not result["max_difference"] <= TOLERANCE:  # also if it is NaN
            raise VidcacheError(
                f"{printable(out)}: logits differ from those of {where} by {result['max_difference']:.3g}, more than "
                f"{TOLERANCE}; not written. Try the other --format, or another version of torch"
            )

    write_atomically(out, write)
    return result


def describe(checkpoint: "Checkpoint", file_format: str, device: str) -> dict[str, Any]:
    """Return what has to be known to use an exported file, JSON-ready; names are printable."""
    import torch

    from vidcache.pixels import MEAN, STD

    spec, classes = checkpoint.spec, [printable(name) for name in checkpoint.classes]
    frames = sample_indices(spec.num_frames, checkpoint.num_frames_used).tolist()
    clips = "RGB, 0 to 255, not normalised; any number B of clips; of each its frames `frames`"
    logits = "logits in the order of `classes`; their softmax gives the probabilities"
    shape = ["B", len(frames), spec.height, spec.width, 3]
    return {
        "format": "vidcache-export",
        "format_version": 1,
        "classes": classes,
        "input": {"name": "clips", "dtype": "uint8", "shape": shape, "meaning": clips},
        "output": {"name": "logits", "dtype": "float32", "shape": ["B", len(classes)], "meaning": logits},
        "num_frames": len(frames),
        "frames": frames,
        "spec": spec.to_dict(),
        "clip": "frame i of the T = spec.num_frames frames of a clip is frame floor(i * (n - 1) / (T - 1)) of the n "
        "frames of the video that can be decoded; where n < T, all n and then the last one again",
        "normalisation": {"mean": MEAN, "std": STD, "meaning": "of RGB / 255; the file does it"},
        **{name: getattr(checkpoint, name) for name in ("fingerprint", "split_hash", "epoch")},
        "versions": {"vidcache": importlib.metadata.version("vidcache"), "torch": str(torch.__version__)},
        "trained_with": checkpoint.versions,
        **({"device": device} if file_format == "torch-export" else {}),
    }


def compare(model: "Model", exported: "Model", clips_BTHWC: "torch.Tensor") -> tuple[float, float]:
    """Run a model (on normalised clips) and its exported file (on bytes) in batches of `BATCH_SIZES`, without TF32.

    Returns the largest difference of two logits, infinite if shapes differ, and the largest logit; NaN if any is.
    """
    import torch

    from vidcache.pixels import normalize

    batches = torch.split(clips_BTHWC, list(BATCH_SIZES))
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = torch.cat([model(normalize(batch)).cpu() for batch in batches])
        found = torch.cat([exported(batch).cpu() for batch in batches])
    is_same_shape = found.shape == expected.shape
    return float((found - expected).abs().max()) if is_same_shape else math.inf, float(expected.abs().max())


def _serialise(model: "torch.nn.Module", example: "torch.Tensor", is_onnx: bool, metadata: str) -> memoryview:
    import torch

    from vidcache.pixels import normalization

    if is_onnx:
        import onnx
        import onnxruntime  # noqa: F401 -- needed later, to compare
        import onnxscript  # noqa: F401 -- used by torch

    matrix = torch.from_numpy(normalization()).to(example.device, torch.float32)
    scale, offset = matrix[:, :3].diagonal().clone(), matrix[:, 3].clone()
    # A copy whose weights are contiguous: torch cannot tell that others fill their memory, and warns.
    network = copy.deepcopy(model).to(memory_format=torch.contiguous_format)

    class BytesModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, clips: torch.Tensor) -> Any:
            return self.network((clips.to(torch.float32) * scale + offset).permute(0, 4, 1, 2, 3))

    with torch.no_grad():
        dynamic = {"clips": {0: torch.export.Dim("B")}}
        program = torch.export.export(BytesModel().eval(), (example,), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the names of folders of this machine
    if not is_onnx:
        file = io.BytesIO()  # not straight to the disk: torch makes a RuntimeError of a full one
        torch.export.save(program, file, extra_files={METADATA: metadata})
        return file.getbuffer()
    names: dict[str, Any] = {"input_names": ["clips"], "output_names": ["logits"]}
    names["dynamic_shapes"] = {"clips": {0: "B"}}
    exported: Any = torch.onnx.export(program, (), **names, opset_version=OPSET, dynamo=True, verbose=False)
    proto = exported.model_proto  # made anew whenever it is asked for
    onnx.helper.set_model_props(proto, {METADATA: metadata})
    return memoryview(proto.SerializeToString())  # R3D-18 is far below the 2 GiB of one message


def _load(path: Path, is_onnx: bool) -> "Model":
    import torch

    if not is_onnx:
        with path.open("rb") as file:
            return cast("Model", torch.export.load(file).module())
    import onnx
    import onnxruntime

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.cpu().numpy()})[0])
