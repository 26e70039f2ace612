"""Caches and checkpoints that an attacker wrote, with right hashes: every field replaced by every kind of value.

Whatever is in a file, a command ends with exit code 0, 4 (a cache) or 5 (a checkpoint) and one line, soon, in little
memory.
"""

import dataclasses
import os
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import forge_cache, make_cache, tiny_models
from tests.tiny_model import TinyModel
from vidcache import cli
from vidcache.cache import format as layout
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import CacheError, InterruptedRunError, MismatchError
from vidcache.eval.cli import main as videval
from vidcache.eval.inference import load_model
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.eval.report.files import read_run_log
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain
from vidcache.train.config import TrainConfig
from vidcache.train.resume import TrainingState, load_optimizer
from vidcache.train.run import run_training

SPEC = Spec(4, 16, 16)
NEST = 60


def run(command: click.Command, *arguments: object) -> Result:
    with tiny_models():
        return CliRunner().invoke(command, [str(argument) for argument in arguments])


def assert_refused(result: Result, codes: set[int]) -> None:
    assert result.exit_code in codes, (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert len(result.output) < 20_000
    assert "\x1b" not in result.output


# --- caches ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("c") / "c.h5", {"a": 16, "b": 16}, spec=SPEC, failed=(3,))


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    path = tmp_path / "c.h5"
    path.write_bytes(cache.read_bytes())
    return path


def seal(path: Path) -> Path:
    """Make every hash right, also those of the content."""
    header = layout.Header.from_bytes(path.read_bytes()[: layout.USER_BLOCK_BYTES], "c.h5")
    with h5py.File(path) as file:
        columns = {column: file["videos"][column][:] for column in file["videos"]}
        names = [bytes(one) for one in file["classes"][:]]
        spec = dataclasses.replace(SPEC, sampling=_text(file, "sampling"), scaling=_text(file, "scaling"))
        found = {
            "fingerprint": layout.fingerprint_of(spec, names, columns),
            "split_hash": layout.split_hash_of(columns),
        }
    with path.open("r+b") as raw:
        raw.write(layout.Header(**{**header.__dict__, **found}).to_bytes())
    return path


def _text(file: h5py.File, name: str) -> str:
    try:
        return os.fsdecode(bytes(file.attrs[name]))[:200]
    except (KeyError, TypeError, ValueError, OverflowError):
        return "x"


ATTRIBUTES = "class_depth sampling scaling split_by split_source split_fractions split_seed split_near_duplicates split_files_hash vidcache_version ffmpeg_version format format_version".split()
REFUSED = ["a reference", "text of any length", np.complex64(1 + 2j), np.void(b"\0\1")]
VALUES = [
    None, np.nan, np.inf, np.zeros(0, "<f8"), h5py.Empty("<f8"), np.bytes_(b"\x1b[2J\xff"), np.bytes_(b"x" * 30_000), -1,
    np.uint64(2**64 - 1), np.zeros((3, 3)), np.array([0.5, 0.5, 0.5]), np.zeros(2, [("x", "<f4"), ("y", "S3")]),
    np.True_, np.float16(1e-7), np.longdouble(1) / 3,
]  # fmt: skip


def set_attribute(file: h5py.File, name: str, value: Any) -> None:
    file.attrs.pop(name, None)
    if value is not None:
        file.attrs[name] = file["clips"].ref if isinstance(value, str) and value == "a reference" else value


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ATTRIBUTES, "\x1b[2Junknown"])
def test_an_attribute_of_any_kind(cache: Path, tmp_path: Path, name: str) -> None:
    refused = 0
    for value in (*REFUSED, *VALUES):
        path = tmp_path / "c.h5"
        path.write_bytes(cache.read_bytes())
        seal(forge_cache(path, lambda file: set_attribute(file, name, value)))  # noqa: B023 -- called at once
        for command in (["info", path, "--json"], ["split", path, "--seed", 3, "--dry-run"]):
            result = run(cli.main, *command)
            assert_refused(result, {0, 4})
        refused += result.exit_code == 4
        assert 4 == result.exit_code or refused >= len(REFUSED), value
    assert refused > len(REFUSED)


TEXTS = [b"", b"\xff\xfe\x1b[2J", b"a\0b", b"=x:y", b"x" * 300]
NUMBERS = [-1, 0, 1, 5, 255, 2**31 - 1, -(2**63), 2**63 - 1, np.nan, np.inf, -np.inf, 5e-324, 1e-40, 1e300]


@pytest.mark.slow
@pytest.mark.parametrize("name", [column.name for column in layout.COLUMNS])
def test_a_column_with_any_number(cache: Path, tmp_path: Path, name: str) -> None:
    column = next(column for column in layout.COLUMNS if column.name == name)
    for value in TEXTS if column.dtype.startswith("S") else NUMBERS:
        for rows in (slice(None), slice(4, 5)):
            path = tmp_path / "c.h5"
            path.write_bytes(cache.read_bytes())
            with np.errstate(all="ignore"):
                try:
                    seal(forge_cache(path, lambda file: file[f"videos/{name}"].__setitem__(rows, value)))  # noqa: B023
                except (OverflowError, TypeError, ValueError):  # no number of that type
                    continue
            assert_refused(run(cli.main, "info", path, "--json"), {0, 4})


def test_an_analysis_of_the_largest_and_the_smallest_that_is_accepted(copy: Path, tmp_path: Path) -> None:
    highest = {"fps": 1e12, "duration_seconds": 1e12, "num_frames": 2**48, "width": 2**24, "height": 2**24}

    def change(file: h5py.File) -> None:
        for name, value in {**highest, "source_bytes": 2**63 - 1, "num_real": 4}.items():
            file[f"videos/{name}"][5:20] = value
            file[f"videos/{name}"][20:] = 1e-9 if name in ("fps", "duration_seconds") else 0

    seal(forge_cache(copy, change))

    assert 0 == run(cli.main, "analyze", copy, "--out", tmp_path / "analysis").exit_code


def replaced_names(*names: Any, **settings: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file["classes"]
        file["classes"] = np.array(names, **settings)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced_names(b"a", b"a"), "class 'a' is there twice"),
        (replaced_names(b"", b"b"), "class 0 has no name"),
        (replaced_names(10**12, 5), "/classes is int64 of shape"),
        (replaced_names([b"a", b"b"]), r"/classes is \|S1 of shape"),
        (replaced_names(b"a"), "label of row"),
        (replaced_names(0, 0, dtype="<c16"), "/classes is complex128 of shape"),
        (lambda file: file["videos/path"].__setitem__(5, file["videos/path"][6]), r"path 'a/video_0006.mp4' is there"),
    ],
)
def test_names_of_any_kind(copy: Path, change: Callable[[h5py.File], object], message: str) -> None:
    forge_cache(copy, change)
    if "/classes is" not in message:
        seal(copy)

    with pytest.raises(CacheError, match=rf"c\.h5: .*{message}"):
        CacheReader(copy)


def test_columns_that_are_a_hole_of_a_terabyte_are_not_hashed(copy: Path) -> None:
    header = layout.Header.from_bytes(copy.read_bytes()[: layout.USER_BLOCK_BYTES], "c.h5")
    with copy.open("r+b") as raw:
        raw.truncate(1 << 40)
        raw.write(dataclasses.replace(header, file_bytes=1 << 40).to_bytes())

    with pytest.raises(CacheError, match="no columns that a build writes"):
        CacheReader(copy)


def test_a_pipe_is_neither_a_cache_nor_a_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert 4 == run(cli.main, "info", tmp_path / "pipe").exit_code
    assert 5 == run(vidpredict, tmp_path, "--ckpt", tmp_path / "pipe").exit_code


def test_a_header_that_says_that_it_is_not_complete(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    fields = np.frombuffer(bytes(data), layout.HEADER, count=1).copy()
    for name, value in (("complete", 0), ("clip_bytes", 7)):
        altered = fields.copy()
        altered[name] = value
        copy.write_bytes(layout.seal(altered) + data[layout.USER_BLOCK_BYTES :])
        with pytest.raises(CacheError, match="the header does not belong to a finished cache"):
            CacheReader(copy)


# --- checkpoints -------------------------------------------------------------------------------


def write_archive(path: Path, fields: dict[str, Any], **operations: bytes) -> Path:
    """What `torch.save` writes, but for fields whose pickle is given."""
    torch.save({**fields, **{name: f"<{name}>" for name in operations}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    for field, replacement in operations.items():
        text = f"<{field}>".encode()
        marked = b"X" + struct.pack("<I", len(text)) + text
        assert members[name].count(marked) == 1
        members[name] = members[name].replace(marked, replacement)
    return write_members(path, members)


def write_members(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def nested() -> bytes:
    """A tuple that holds the one before twice, NEST times: 2 ** NEST elements."""
    pickled = b")r" + struct.pack("<I", 1000)
    for number in range(1000, 1000 + NEST):
        pickled += b"j" + struct.pack("<I", number) + b"\x86r" + struct.pack("<I", number + 1)
    return pickled


# Pickled, and what is said of it.
PICKLES = {
    nested(): "an object that is in two places",
    b")" + b"\x85" * 50_000: "objects in objects in objects",
    b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR": "unsupported GLOBAL __builtin__.bytearray",
    b"\x8a\xff" + b"\x7f" * 255: "a number of more than 64 bits",
    b"\x85" * 3 + b")": "incomplete|without what it needs|cannot be read",
}


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that is to have three."""
    out = tmp_path_factory.mktemp("run") / "best.pt"
    config = TrainConfig(weights="none", freeze="none", epochs=3, batch_size=6, amp="off", min_epochs=3)
    stops = iter([False] * 8 + [True] * 99)
    with tiny_models(), pytest.raises(InterruptedRunError):
        run_training([cache], out, config, should_stop=lambda: next(stops))
    return out


def fields_of(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = torch.load(path, weights_only=True)
    return fields


STRANGE: dict[str, Any] = {
    "nothing": None,
    "true": True,
    "minus one": -1,
    "a large number": 2**80,
    "a float": 0.5,
    "NaN": float("nan"),
    "text": "x\x1b[2J",
    "long text": "x" * 60_000,
    "bytes": b"\xff",
    "a list": [1, [2, [3]]],
    "a tuple": (1, (2, 3)),
    "a dict": {"x": {"y": {"z": 1}}},
    "other keys": {1: 2, (1, 2): 3},
    "a tensor": torch.zeros(3),
    "NaN tensors": {"fc.bias": torch.full((2,), float("nan"))},
    "sparse": {"fc.bias": torch.zeros(2).to_sparse()},
    "complex": {"fc.bias": torch.zeros(2, dtype=torch.complex64)},
    "huge": {"fc.bias": torch.zeros(1).expand(2**40)},
    "names twice": [b"a", b"a"],
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Checkpoint)])
def test_a_field_of_a_checkpoint_of_any_kind(cache: Path, finished: Path, tmp_path: Path, name: str) -> None:
    fields, path = fields_of(finished), tmp_path / "x.pt"
    for kind, value in STRANGE.items():
        torch.save({**fields, name: value}, path)
        if name == "training" and type(value) is dict:
            continue  # of a resumed run alone: see below
        if name in ("fingerprint", "split_hash") and kind == "text":
            result = run(videval, cache, "--ckpt", path, "--out", tmp_path / "eval")
            assert_refused(result, {5})
            continue
        with pytest.raises(MismatchError) as raised:
            Checkpoint.load(path)
        assert f"{path}: " in str(raised.value)
        assert len(str(raised.value)) < 400
    for pickled, message in PICKLES.items():
        with pytest.raises(MismatchError, match=message):
            Checkpoint.load(write_archive(path, fields, **{name: pickled}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": [b"%d" % n for n in range(100_001)]}, "classes is a list, expected 1 to 100,000 different"),
        ({"classes": [b"a", b"x" * 5000]}, "classes is a list, expected 1 to 100,000 different"),
        ({"num_frames_used": 5}, "num_frames_used is 5, but a clip of it has fewer frames"),
        ({"spec": {**Spec(4, 16, 16).to_dict(), "height": 2**40}}, "height: 1099511627776, expected 16 to 1024"),
        ({"spec": {**Spec(4, 16, 16).to_dict(), "more": 1}}, "'more' is not known"),
        ({"x": 1}, "'x' is not known"),
        ({None: 1}, "None is not known"),
        ({(): 1}, "a tuple is not known"),
        ({"mean": (1.0, 2.0)}, "mean is a tuple, expected 3 numbers"),
    ],
)
def test_fields_that_no_run_writes(finished: Path, tmp_path: Path, fields: dict[Any, Any], message: str) -> None:
    torch.save({**fields_of(finished), **fields}, tmp_path / "x.pt")

    with pytest.raises(MismatchError, match=rf"x\.pt: incomplete checkpoint \({re.escape(message)}"):
        Checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("changes", [{"classes": [b"%05d" % n for n in range(10_000)]}, {"bias": torch.tensor(1.0)}])
def test_other_outputs_than_classes_are_refused_before_a_model_is_made(
    finished: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    fields = fields_of(finished)
    if "bias" in changes:
        changes = {"weights": {**fields["weights"], "fc.bias": changes["bias"]}}
    torch.save({**fields, **changes}, tmp_path / "x.pt")

    with pytest.raises(MismatchError, match=r"x\.pt: \d outputs for \d+ classes"):
        load_model(Checkpoint.load(tmp_path / "x.pt"), "x.pt", "cpu")


def pickled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


TEXT = b"X" + struct.pack("<I", 60_000) + b"a" * 60_000
ENCODE = b"c_codecs\nencode\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickled(ENCODE, TEXT, b"X\x06\0\0\0utf-32", b"\x86", b"R"), "text in another encoding than latin1"),
        (pickled(ENCODE, b"(", TEXT, b"X\x06\0\0\0latin1", b"t", b"R"), "text in another encoding than latin1"),
        (pickled(TEXT, b"q\0", b"h\0" * 300), "texts that are used again and again"),
        (pickled(b"\x8a\x09", b"\xff" * 8, b"\x01"), "a number of more than 64 bits"),
        (pickled(b"N" * 2_000_002), "more than 2,000,000 operations"),
    ],
    ids=["encoding", "list of encoding", "texts", "number", "operations"],
)
def test_pickles_that_take_memory_or_time(finished: Path, tmp_path: Path, data: bytes, message: str) -> None:
    members = archive_of(finished)
    name = next(name for name in members if name.endswith("/data.pkl"))
    write_members(tmp_path / "x.pt", {**members, name: data})

    with pytest.raises(MismatchError, match=rf"x\.pt: cannot be read safely \({message}\)"):
        Checkpoint.load(tmp_path / "x.pt")


def archive_of(finished: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(finished) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_archives_that_torch_does_not_write(finished: Path, tmp_path: Path) -> None:
    members, path = archive_of(finished), tmp_path / "x.pt"
    folder = next(iter(members)).split("/")[0]
    whole = write_members(path, members).read_bytes()
    encrypted = bytearray(whole)
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(f"{folder}/data.pkl", b"x")
    # A name twice; two archives, of which zipfile reads the last one and torch can read the first.
    for data in (path.read_bytes(), whole + whole, bytes(encrypted)):
        path.write_bytes(data)
        with pytest.raises(MismatchError, match="x.pt: an archive with other members than torch writes"):
            Checkpoint.load(path)
    for more in ("other/data.pkl", f"{folder}/DATA.PKL", "data.pkl", f"{folder}/a b", None):
        write_members(path, {**members, more: b"x"} if more else {})
        with pytest.raises(MismatchError, match="x.pt: an archive with other members than torch writes"):
            Checkpoint.load(path)


@pytest.mark.parametrize(
    "name",
    "optimizer scaler stopping precision results sums best stopping.best_epoch stopping.best_loss sums.num_steps sums.seconds "
    "sums.loss optimizer.state optimizer.state.0 optimizer.state.0.step optimizer.state.0.exp_avg results.0 "
    "results.0.val_loss results.0.is_best".split(),
)
def test_a_state_of_a_run_of_any_kind(finished: Path, name: str) -> None:
    refused = 0
    for value in (*STRANGE.values(), 10**9, float("inf")):
        last = Checkpoint.load(finished.with_suffix(".run") / "last.pt")
        path: list[Any] = [int(part) if part.isdigit() else part for part in name.split(".")]
        holder: Any = last.training
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = value
        try:
            TrainingState.from_checkpoint(last)
            load_optimizer(torch.optim.Adam(TinyModel(2).parameters()), last.training["optimizer"])
        except ValueError as error:
            refused += 1
            assert len(str(error)) < 300
    assert refused >= 15


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("epochs", "x"), ("lr", float("nan")), ("device", "meta"), ("amp", "x"), ("freeze", "x"),
     ("strength", {"flip": 7}), ("batch_size", -1), ("reader_threads", 10**9), ("feature_views", 10**12), ("seed", None)],
)  # fmt: skip
def test_options_that_no_run_has(cache: Path, finished: Path, tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "best.run").mkdir()
    fields = fields_of(finished.with_suffix(".run") / "last.pt")
    fields["config"][name] = value
    torch.save(fields, tmp_path / "best.run" / "last.pt")

    result = run(vidtrain, cache, "--out", tmp_path / "best.pt", "--resume", "--device", "cpu")

    assert_refused(result, {5})
    assert re.search("[Tt]rain again with another --out|incomplete checkpoint", result.stderr)


@pytest.mark.parametrize("weights", [{}, {"fc.bias": torch.zeros(2)}])
def test_the_weights_of_another_model_begin_and_go_on_with_nothing(
    cache: Path, finished: Path, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "best.run").mkdir()
    (tmp_path / "best.pt").write_bytes(finished.read_bytes())
    last = tmp_path / "best.run" / "last.pt"
    torch.save({**fields_of(finished.with_suffix(".run") / "last.pt"), "weights": weights}, last)

    resumed = run(vidtrain, cache, "--out", tmp_path / "best.pt", "--resume", "--device", "cpu")
    begun = run(vidtrain, cache, "--out", tmp_path / "o.pt", "--init", last, "--device", "cpu", "--amp", "off")

    assert_refused(resumed, {5})
    assert "train: not the state of this run (" in resumed.stderr
    assert_refused(begun, {5})
    assert "not the weights of an R3D-18. Start without --init" in begun.stderr


def test_a_run_folder_of_a_stranger_is_not_believed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "run")
    finished = tmp_path / "run" / finished.name
    checkpoint, folder = Checkpoint.load(finished), finished.with_suffix(".run")
    assert read_run_log(finished, checkpoint).num_epochs >= 1
    for content in (b"[" * 100_000, b'{"command": {"a": 1}}', b"\xff", b'{"command": "x", "fingerprint": "other"}'):
        (folder / "config.json").write_bytes(content)
        assert not read_run_log(finished, checkpoint).command
    (folder / "metrics.csv").unlink()
    os.mkfifo(folder / "metrics.csv")
    assert not read_run_log(finished, checkpoint).num_epochs
