"""`vidcache export`: what leaves the house says what the model says, or does not leave."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from tests.helpers import make_cache, tiny_models
from tests.tiny_model import TinyModel
from vidcache import cli
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import VidcacheError
from vidcache.eval import export
from vidcache.eval.export import BATCH_SIZES, NUM_CLIPS, TOLERANCE, compare, export_checkpoint, find_clips, made_clips
from vidcache.eval.inference import load_model, to_input
from vidcache.model import R3D18
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

Files = dict[str, tuple[Path, dict[str, Any]]]
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra `onnx`")
SPEC = Spec(9, 16, 20)
TRAIN = "--weights none --freeze none --epochs 1 --batch-size 8 --num-frames 4 --amp off --device cpu".split()
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
print(json.dumps([json.loads(files["metadata.json"])["classes"], model(clips).tolist()]))
""",
    "onnx": """
import json, sys
sys.modules["vidcache"] = sys.modules["torch"] = sys.modules["onnx"] = None
import numpy, onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1])
clips = numpy.arange(3 * 8 * 32 * 32 * 3).reshape(3, 8, 32, 32, 3).astype(numpy.uint8)
metadata = json.loads(model.get_modelmeta().custom_metadata_map["metadata.json"])
print(json.dumps([metadata["classes"], model.run(None, {"clips": clips})[0].tolist()]))
""",
}


def vidcache(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def exported(*arguments: object) -> dict[str, Any]:
    with tiny_models():
        result = vidcache("export", *arguments, "--json")
    assert 0 == result.exit_code, (result.stderr, result.exception)
    said: dict[str, Any] = json.loads(result.stdout)
    return said


def save_checkpoint(path: Path, model: nn.Module, classes: tuple[str, ...], spec: Spec, num_frames_used: int) -> Path:
    Checkpoint(model.state_dict(), classes, spec, num_frames_used, "f" * 32, "5" * 32, {}, 3, {}).save(path)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint of a tiny model without a run beside it."""
    return save_checkpoint(tmp_path / "best.pt", TinyModel(3), ("a", "b", "c"), SPEC, 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cache.h5, best.pt of a run on it, and best.run."""
    folder = tmp_path_factory.mktemp("run")
    make_cache(folder / "cache.h5", dict.fromkeys("abc", 8), spec=SPEC)
    with pytest.MonkeyPatch.context() as patch, tiny_models():
        patch.chdir(folder)
        result = CliRunner().invoke(vidtrain, ["cache.h5", *TRAIN])
    assert 0 == result.exit_code, result.stderr
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an R3D-18 whose BatchNorms have seen something."""
    torch.manual_seed(0)
    model = R3D18(len(ODD))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return save_checkpoint(tmp_path_factory.mktemp("real") / "best.pt", model, ODD, Spec(16, 32, 32), 8)


# --- what is in a file ------------------------------------------------------------------------


def opened(path: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """A file as its own library opens it, and its metadata."""
    if path.suffix == ".pt2":
        files = {"metadata.json": ""}
        return torch.export.load(path, extra_files=files).module(), files["metadata.json"]
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map["metadata.json"]
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0]), metadata


@pytest.fixture(scope="module")
def files(real: Path) -> Files:
    """The R3D-18 in both formats, where they go by themselves, and what was said of them."""
    found = {}
    for file_format, name in (("torch-export", "best.pt2"), ("onnx", "best.onnx"))[: 2 if HAS_ONNX else 1]:
        result = vidcache("export", real, "--format", file_format, "--json")
        assert (0, "") == (result.exit_code, result.stderr), result.exception
        found[file_format] = (real.with_name(name), json.loads(result.stdout))
    return found


@pytest.mark.parametrize("file_format", ["torch-export", pytest.param("onnx", marks=needs_onnx)])
def test_a_file_of_r3d18_says_what_the_model_says(real: Path, files: Files, file_format: str) -> None:
    file, said = files[file_format]
    run, metadata = opened(file)
    model = load_model(Checkpoint.load(real), "best.pt", "cpu")

    for size in (1, 2, 5, 9):
        clips = torch.randint(0, 256, (size, 8, 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected, found = model(to_input(clips)), run(clips)
        assert ((size, 4), torch.float32) == (tuple(found.shape), found.dtype)
        assert 1e-5 > (expected - found).abs().max()
        assert 0.01 < expected.std()
    assert (file_format, str(file), file.stat().st_size) == (said["format"], said["file"], said["num_bytes"])
    assert said["max_difference"] <= 1e-5 < 0.01 < said["max_logit"]
    assert said["metadata"] == json.loads(metadata)
    assert str(Path(cli.__file__).parents[1]).encode() not in file.read_bytes()
    assert {real, *(path for path, _ in files.values())} == set(real.parent.iterdir()), (
        "one file, and nothing beside it"
    )


@pytest.mark.parametrize("file_format", ["torch-export", pytest.param("onnx", marks=needs_onnx)])
def test_a_file_runs_without_vidcache(real: Path, files: Files, file_format: str) -> None:
    program = [sys.executable, "-c", OUTSIDE[file_format], files[file_format][0]]
    classes, logits = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    clips = torch.arange(3 * 8 * 32 * 32 * 3).reshape(3, 8, 32, 32, 3).to(torch.uint8)
    with torch.inference_mode():
        expected = load_model(Checkpoint.load(real), "best.pt", "cpu")(to_input(clips))
    assert PRINTABLE == classes
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


@needs_onnx
def test_an_onnx_file_names_its_batch_and_has_an_old_enough_opset(
    files: Files,
) -> None:
    import onnx

    model = onnx.load(files["onnx"][0], load_external_data=False)

    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert [["B", 8, 32, 32, 3], ["B", 4]] == shapes
    assert [18] == [opset.version for opset in model.opset_import]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_the_metadata_say_what_goes_in_and_what_comes_out(real: Path) -> None:
    checkpoint = Checkpoint.load(real)
    said = export.describe(checkpoint, "torch-export", "cuda:1")

    assert PRINTABLE == said["classes"]
    assert ["B", 8, 32, 32, 3] == said["input"]["shape"]
    assert ["B", 4] == said["output"]["shape"]
    assert (8, [0, 2, 4, 6, 8, 10, 12, 15]) == (said["num_frames"], said["frames"])
    assert checkpoint.spec == Spec.from_dict(said["spec"])
    assert ("f" * 32, "5" * 32, 3) == (said["fingerprint"], said["split_hash"], said["epoch"])
    assert ([0.43216, 0.394666, 0.37645], 0.22803) == (
        list(said["normalisation"]["mean"]),
        said["normalisation"]["std"][0],
    )
    assert {"vidcache", "torch"} == set(said["versions"]) == set(said["trained_with"])
    assert "cuda:1" == said["device"]
    assert "device" not in export.describe(checkpoint, "onnx", "cuda:1")
    json.dumps(said, ensure_ascii=False).encode()  # no lone surrogate


# --- compared before it is there --------------------------------------------------------------


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_that_says_something_else_is_not_written(
    tiny: Path, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the offset of the normalisation: what an export by hand forgets."""
    file = tiny.with_suffix(".pt2")
    if is_there:
        file.write_bytes(b"an older vidcache-export")
    maps = export.normalization()
    maps[:, 3] = 0
    monkeypatch.setattr(export, "normalization", lambda: maps)

    with tiny_models():
        result = vidcache("export", tiny, "--format", "torch-export")

    assert 1 == result.exit_code
    assert "" == result.stdout
    difference = float(result.stderr.split(" by ")[1].split()[0])
    assert difference > 10 * TOLERANCE
    assert (
        f"Error: {file}: its logits differ from those of {tiny} by {difference:.3g} on 8 made clips, expected at most "
        "0.001: not written. Try the other --format, or another version of torch\n"
    ) == result.stderr
    assert {tiny, *([file] if is_there else [])} == set(tiny.parent.iterdir())
    assert not is_there or file.read_bytes() == b"an older vidcache-export"


def test_numbers_that_are_none_are_no_match(tmp_path: Path) -> None:
    model = TinyModel(2)
    torch.nn.init.constant_(model.fc.weight, 3e38)  # infinite logits: their difference is no number
    ckpt = save_checkpoint(tmp_path / "best.pt", model, ("a", "b"), SPEC, 4)
    checkpoint = Checkpoint.load(ckpt)

    with tiny_models(), pytest.raises(VidcacheError, match=r"x\.pt2: its logits differ from those of best by nan on"):
        export_checkpoint(checkpoint, "best", tmp_path / "x.pt2", "torch-export", made_clips(checkpoint))
    assert [ckpt] == list(tmp_path.iterdir())


def test_the_largest_difference_counts_whatever_batch_it_is_in() -> None:
    clips = torch.randint(0, 256, (NUM_CLIPS, 2, 4, 4, 3), dtype=torch.uint8)
    sizes, is_tf32 = [], []

    def model(inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        is_tf32.append(torch.backends.cudnn.allow_tf32)
        return inputs.mean((2, 3, 4))

    def wrong_with_two(batch: torch.Tensor) -> torch.Tensor:
        return model(to_input(batch)) + (0.25 if len(batch) == 2 else 0)

    before = torch.backends.cudnn.allow_tf32
    difference, largest = compare(model, wrong_with_two, clips)

    assert pytest.approx(0.25, abs=1e-6) == difference
    assert pytest.approx(float(to_input(clips).mean((2, 3, 4)).abs().max())) == largest
    assert set(BATCH_SIZES) == {1, 2, 5} == set(sizes)
    assert not any(is_tf32)
    assert before == torch.backends.cudnn.allow_tf32
    assert (float("inf"), largest) == compare(model, lambda batch: model(to_input(batch))[:1], clips)


def test_what_is_done_is_told(tiny: Path) -> None:
    checkpoint, steps = Checkpoint.load(tiny), list[str]()

    with tiny_models():
        made = export_checkpoint(
            checkpoint, "t", tiny.with_suffix(".pt2"), "torch-export", made_clips(checkpoint), on_step=steps.append
        )

    assert ["exporting", "comparing on 8 made clips"] == steps
    assert tiny.with_suffix(".pt2").stat().st_size == made.num_bytes


# --- on which clips ---------------------------------------------------------------------------


def test_the_cache_of_the_run_is_found_and_believed_only_if_it_is_that_cache(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--format", "torch-export", "--out", tmp_path / "x.pt2")
    said = exported(trained / "best.pt", *out)  # named as seen from its folder
    assert (f"8 clips of {trained}/cache.h5", True) == (said["checked_on"], said["checked_on_real_clips"])
    assert 8 == said["num_clips"]
    monkeypatch.chdir(trained)
    assert "8 clips of cache.h5" == exported("best.pt", *out)["checked_on"]

    monkeypatch.chdir(tmp_path)
    for name in ("best.pt", "best.run/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    said = exported("best.pt", *out)
    assert ("8 made clips", False) == (said["checked_on"], said["checked_on_real_clips"])
    make_cache(tmp_path / "cache.h5", dict.fromkeys("abc", 9), spec=SPEC)
    assert "8 made clips" == exported("best.pt", *out)["checked_on"]
    for broken in ("{", "[]", '{"caches": []}', '{"caches": 3}'):
        (tmp_path / "best.run" / "config.json").write_text(broken)
        assert not find_clips(Path("best.pt"), Checkpoint.load(Path("best.pt"))).is_real


def test_a_given_cache_is_used_if_spec_and_classes_are_those(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny)
    few = make_cache(tmp_path / "few.h5", {"a": 2, "b": 2, "c": 1}, spec=SPEC, failed=(1,))

    found = find_clips(tiny, checkpoint, few)
    said = exported(tiny, "--format", "torch-export", "--cache", few)

    assert (f"4 clips of {few}", 4, True) == (found.source, found.num_clips, found.is_real)
    assert (f"4 clips of {few}", 4) == (said["checked_on"], said["num_clips"])
    assert (NUM_CLIPS, 4, 16, 20, 3) == found.clips.shape
    with CacheReader(few) as reader:
        assert np.array_equal(reader.read([0, 2, 3, 4, 4, 4, 4, 4])[:, [0, 2, 5, 8]], found.clips)


@pytest.mark.parametrize(
    ("counts", "spec", "message"),
    [
        (dict.fromkeys("abc", 3), Spec(9, 16, 24), "trained on 9 frames of 16x20, but {cache} has 9 frames of 16x24"),
        (dict.fromkeys("abd", 3), SPEC, "trained on 3 classes, but {cache} has 3 (new: d; missing: c)"),
    ],
)
def test_a_cache_of_another_kind_is_refused(
    tiny: Path, tmp_path: Path, counts: dict[str, int], spec: Spec, message: str
) -> None:
    cache = make_cache(tmp_path / "other.h5", counts, spec=spec)

    with tiny_models():
        result = vidcache("export", tiny, "--format", "torch-export", "--cache", cache)

    assert 5 == result.exit_code
    assert f"{tiny}: {message.format(cache=cache)}" in result.stderr
    assert not tiny.with_suffix(".pt2").exists()


def test_a_cache_without_clips_is_refused(tiny: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "none.h5", dict.fromkeys("abc", 1), spec=SPEC, failed=(0, 1, 2))

    result = vidcache("export", tiny, "--format", "torch-export", "--cache", cache)

    assert 2 == result.exit_code
    assert f"{cache}: no clips, expected at least one to compare on. Leave --cache out" in result.stderr


def test_made_clips_are_the_same_every_time_and_move(tiny: Path) -> None:
    clips = made_clips(Checkpoint.load(tiny)).clips

    assert (NUM_CLIPS, 4, 16, 20, 3) == clips.shape
    assert np.array_equal(clips, made_clips(Checkpoint.load(tiny)).clips)
    assert NUM_CLIPS == len(np.unique(clips.reshape(NUM_CLIPS, -1), axis=0))
    neighbours = [np.abs(np.diff(clip.astype(int), axis=1)).mean() for clip in clips]
    assert max(neighbours[1::2]) < min(neighbours[::2]), "every other one is coarse"
    assert any((clip[0] != clip[1]).any() for clip in clips[1::2])


# --- as it is typed ---------------------------------------------------------------------------


def test_it_says_what_it_made_and_on_what_it_was_compared(tiny: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c.h5", dict.fromkeys("abc", 4), spec=SPEC)
    with tiny_models():
        made = vidcache("export", tiny, "--format", "torch-export", "--out", tmp_path / "new" / "x.pt2")
        real = vidcache("export", tiny, "--format", "torch-export", "--cache", cache)

    size = (tmp_path / "new" / "x.pt2").stat().st_size / 1e6
    first, second = made.stdout.splitlines()
    assert f"{tmp_path}/new/x.pt2: clips uint8 (B, 4, 16, 20, 3) -> logits float32 (B, 3), {size:.1f} MB" == first
    assert second.startswith("Compared with the model on 8 made clips in batches of 1, 2, 5: logits of up to ")
    assert second.endswith(", allowed 0.001; --cache compares on real ones")
    assert f"{tiny.with_suffix('.pt2')}: clips uint8" in real.stdout
    assert f"on 8 clips of {cache} in" in real.stdout
    assert real.stdout.endswith("allowed 0.001\n")
    assert "" == made.stderr == real.stderr


def test_the_same_checkpoint_gives_the_same_bytes(tiny: Path) -> None:
    files = []
    for _ in range(2):
        exported(tiny, "--format", "torch-export")
        files.append(tiny.with_suffix(".pt2").read_bytes())

    assert files[0] == files[1]


@pytest.fixture(params=["onnx", *(pytest.param(name, marks=needs_onnx) for name in ("onnxscript", "onnxruntime"))])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is not installed."""
    monkeypatch.setitem(sys.modules, request.param, None)
    return request.param  # type: ignore[no-any-return]


def test_without_its_packages_onnx_is_refused_and_the_other_format_is_not(tiny: Path, missing: str) -> None:
    with tiny_models():
        result = vidcache("export", tiny, "--format", "onnx")

    assert 2 == result.exit_code
    assert f"Error: --format onnx: import of {missing} halted" in result.stderr
    assert ", expected onnx, onnxscript, onnxruntime, new enough for torch " in result.stderr
    assert result.stderr.endswith(". pip install 'vidcache[onnx]'\n")
    assert [tiny] == list(tiny.parent.iterdir())
    assert 8 == exported(tiny, "--format", "torch-export")["num_clips"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--format'"),
        (["--format", "coreml"], "'coreml' is not one of 'torch-export', 'onnx'"),
        (["--format", "onnx", "--out", "x.pt2"], "x.pt2, expected a name that ends in .onnx"),
        (["--format", "torch-export", "--out", "cache.h5"], "cache.h5, expected a name that ends in .pt2"),
        (["--format", "onnx", "--device", "cuda"], "sees no GPU"),
        (["--format", "onnx", "--device", "toaster"], "Expected one of cpu, cuda"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="--device cuda is no error where there is a GPU")
def test_what_makes_no_sense_is_a_usage_error(tiny: Path, arguments: list[str], message: str) -> None:
    result = vidcache("export", tiny, *arguments)

    assert 2 == result.exit_code
    assert message in " ".join(result.stderr.split())


def test_a_checkpoint_is_not_replaced_by_what_is_made_of_it(tiny: Path) -> None:
    odd = tiny.rename(tiny.with_name("best.pt2"))

    result = vidcache("export", odd, "--format", "torch-export")

    assert 2 == result.exit_code
    assert f"{odd}: is read by this command ({odd}). Choose another name" in result.stderr


def test_a_damaged_checkpoint_is_refused(tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-100])

    result = vidcache("export", tiny, "--format", "torch-export")

    assert 5 == result.exit_code
    assert f"{tiny}: " in result.stderr
    assert "damaged, or no vidcache checkpoint" in result.stderr
