"""`vidcache export`: a file agrees with its model, or is not kept."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from tests.helpers import tiny_models
from tests.tiny_model import TinyModel
from vidcache import cli
from vidcache.checkpoint import Checkpoint
from vidcache.errors import VidcacheError
from vidcache.eval import export
from vidcache.eval.export import BATCH_SIZES, TOLERANCE, compare, export_checkpoint
from vidcache.eval.inference import load_model
from vidcache.model import R3D18
from vidcache.pixels import normalize
from vidcache.spec import Spec

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra `onnx`")
SPEC = Spec(9, 16, 20)
ODD = ("fall", "a\n\x1b[31mb", os.fsdecode(b"caf\xe9"), "日本 <b>")
PRINTABLE = ["fall", r"a\n\x1b[31mb", r"caf\xe9", "日本 <b>"]
# What a program with neither vidcache nor (for ONNX) torch does with a file.
OUTSIDE = {
    "torch-export": """
import json, sys
sys.modules["vidcache"] = None
import torch
files = {"metadata.json": ""}
model = torch.export.load(sys.argv[1], extra_files=files).module()
clips = torch.arange(3 * 8 * 32 * 32 * 3).reshape(3, 8, 32, 32, 3).to(torch.uint8)
print(json.dumps([json.loads(files["metadata.json"]), model(clips).tolist()]))
""",
    "onnx": """
import json, sys
sys.modules["vidcache"] = sys.modules["torch"] = sys.modules["onnx"] = None
import numpy, onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1])
clips = numpy.arange(3 * 8 * 32 * 32 * 3).reshape(3, 8, 32, 32, 3).astype(numpy.uint8)
metadata = json.loads(model.get_modelmeta().custom_metadata_map["metadata.json"])
print(json.dumps([metadata, model.run(None, {"clips": clips})[0].tolist()]))
""",
}


def vidcache(*arguments: object) -> Result:
    with tiny_models():
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def save_checkpoint(path: Path, model: nn.Module, classes: tuple[str, ...], spec: Spec, num_frames_used: int) -> Path:
    Checkpoint(model.state_dict(), classes, spec, num_frames_used, "f" * 32, "5" * 32, {}, 3, {}).save(path)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "best.pt", TinyModel(3), ("a", "b", "c"), SPEC, 4)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["torch-export", pytest.param("onnx", marks=needs_onnx)])
def test_a_file_of_r3d18_runs_without_vidcache_and_agrees_with_the_model(tmp_path: Path, file_format: str) -> None:
    torch.manual_seed(0)
    network = R3D18(len(ODD))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    ckpt = save_checkpoint(tmp_path / "best.pt", network, ODD, Spec(16, 32, 32), 8)
    file = ckpt.with_suffix(export.ENDINGS[file_format])

    result = CliRunner().invoke(cli.main, ["export", str(ckpt), "--format", file_format, "--json"])

    assert (0, "") == (result.exit_code, result.stderr), result.exception
    report = json.loads(result.stdout)
    program = [sys.executable, "-c", OUTSIDE[file_format], file]
    metadata, logits = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    clips = torch.arange(3 * 8 * 32 * 32 * 3).reshape(3, 8, 32, 32, 3).to(torch.uint8)
    with torch.inference_mode():
        expected = load_model(Checkpoint.load(ckpt), "best.pt", "cpu")(normalize(clips))
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    assert PRINTABLE == metadata["classes"]
    assert report["metadata"] == metadata
    assert (file_format, str(file), file.stat().st_size) == (report["format"], report["file"], report["num_bytes"])
    assert report["max_difference"] <= 1e-5 < 0.01 < report["max_logit"]
    assert {ckpt, file} == set(tmp_path.iterdir()), "one file, and nothing beside it"
    assert str(Path(cli.__file__).parents[1]).encode() not in file.read_bytes()
    if file_format == "onnx":
        import onnx

        model = onnx.load(file, load_external_data=False)
        values = (model.graph.input[0], model.graph.output[0])
        shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
        assert [["B", 8, 32, 32, 3], ["B", 4]] == shapes
        assert [18] == [opset.version for opset in model.opset_import]
        assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_what_is_printed_and_what_is_in_the_json(tiny: Path, tmp_path: Path) -> None:
    arguments = "export", tiny, "--format", "torch-export", "--out", tmp_path / "new" / "x.pt2"

    text = vidcache(*arguments)
    first = arguments[-1].read_bytes()
    report = json.loads(vidcache(*arguments, "--json").stdout)

    assert f"{arguments[-1]}: uint8 (B, 4, 16, 20, 3) -> float32 (B, 3), {len(first) / 1e6:.1f} MB\n" in text.stdout
    assert "Compared with the model on 8 random clips: logits differ by at most " in text.stdout
    assert first == arguments[-1].read_bytes(), "the same checkpoint gives the same bytes"
    assert set(report) == set(
        "checkpoint format file num_bytes checked_on checked_on_real_clips num_clips batch_sizes max_difference "
        "tolerance max_logit seconds metadata".split()
    )
    metadata = report["metadata"]
    assert {"vidcache", "torch"} == set(metadata["versions"]) == set(metadata["trained_with"])
    assert ["B", 4, 16, 20, 3] == metadata["input"]["shape"]
    assert ([0.43216, 0.394666, 0.37645], SPEC.to_dict()) == (metadata["normalisation"]["mean"], metadata["spec"])
    expected = {"num_frames": 4, "frames": [0, 2, 5, 8], "device": "cpu", "epoch": 3}
    assert expected | {"fingerprint": "f" * 32, "split_hash": "5" * 32} == {
        name: metadata[name] for name in (*expected, "fingerprint", "split_hash")
    }


def test_a_file_that_differs_is_not_written_and_an_older_one_stays(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, load = tiny.with_suffix(".pt2"), export._load
    file.write_bytes(b"an older vidcache-export")
    monkeypatch.setattr(export, "_load", lambda *arguments: lambda clips: load(*arguments)(clips) + 0.25)

    result = vidcache("export", tiny, "--format", "torch-export")

    assert (1, "") == (result.exit_code, result.stdout)
    assert f"Error: {file}: logits differ from those of {tiny} by 0.25, more than 0.001; not written" in result.stderr
    assert {tiny, file} == set(tiny.parent.iterdir())
    assert b"an older vidcache-export" == file.read_bytes()


def test_nan_logits_fail_the_comparison(tmp_path: Path) -> None:
    model = TinyModel(2)
    torch.nn.init.constant_(model.fc.weight, 3e38)  # infinite logits, whose difference is NaN
    ckpt = save_checkpoint(tmp_path / "best.pt", model, ("a", "b"), SPEC, 4)

    with tiny_models(), pytest.raises(VidcacheError, match=r"x\.pt2: logits differ from those of checkpoint by nan"):
        export_checkpoint(Checkpoint.load(ckpt), tmp_path / "x.pt2", "torch-export")
    assert [ckpt] == list(tmp_path.iterdir())


def test_the_largest_difference_counts_whatever_batch_it_is_in() -> None:
    clips, is_tf32 = torch.randint(0, 256, (8, 2, 4, 4, 3), dtype=torch.uint8), list[bool]()

    def model(inputs: torch.Tensor) -> torch.Tensor:
        is_tf32.append(torch.backends.cudnn.allow_tf32)
        return inputs.mean((2, 3, 4))

    def exported(wrong_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda batch: model(normalize(batch)) + 0.25 * (len(batch) == wrong_size)

    largest = float(normalize(clips).mean((2, 3, 4)).abs().max())
    for size in BATCH_SIZES:
        assert pytest.approx((0.25, largest), abs=1e-6) == compare(model, exported(size), clips)
    assert compare(model, exported(3), clips)[0] < TOLERANCE
    assert not any(is_tf32)
    assert float("inf") == compare(model, lambda batch: model(normalize(batch))[:1], clips)[0]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_its_packages_onnx_is_refused(tiny: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)

    result = vidcache("export", tiny, "--format", "onnx")

    assert 2 == result.exit_code
    assert "It needs onnx, onnxscript and onnxruntime, new enough for torch " in result.stderr
    assert result.stderr.endswith(": pip install 'vidcache[onnx]'\n")
    assert [tiny] == list(tiny.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--format'"),
        (["--format", "coreml"], "'coreml' is not one of 'torch-export', 'onnx'"),
        (["--format", "onnx", "--out", "x.pt2"], "x.pt2 must end in .onnx"),
        (["--format", "onnx", "--device", "toaster"], "Expected one of cpu, cuda"),
    ],
)
def test_wrong_options_are_usage_errors(tiny: Path, arguments: list[str], message: str) -> None:
    result = vidcache("export", tiny, *arguments)

    assert 2 == result.exit_code
    assert message in " ".join(result.stderr.split())


def test_inputs_are_not_replaced_and_damaged_ones_refused(tiny: Path) -> None:
    odd = tiny.rename(tiny.with_name("best.pt2"))
    same = vidcache("export", odd, "--format", "torch-export")
    odd.write_bytes(odd.read_bytes()[:-100])
    damaged = vidcache("export", odd, "--format", "torch-export", "--out", tiny.with_name("x.pt2"))

    assert (2, 5) == (same.exit_code, damaged.exit_code)
    assert f"{odd}: is read by this command ({odd}). Choose another name" in same.stderr
    assert f"{odd}: " in damaged.stderr
    assert [odd] == list(tiny.parent.iterdir())
