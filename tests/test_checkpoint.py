"""Checkpoints: tensors and primitives, whole or refused, no code."""

import dataclasses
import io
import os
import pickle
import random
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from vidcache import untrusted as archive_module
from vidcache.checkpoint import Checkpoint
from vidcache.errors import MismatchError
from vidcache.spec import Spec


def make_checkpoint(**changes: object) -> Checkpoint:
    fields: dict[str, object] = {
        "weights": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)},
        "classes": ("one", "two", os.fsdecode(b"\xff")),
        "spec": Spec(4, 16, 16),
        "num_frames_used": 2,
        "fingerprint": "f" * 32,
        "split_hash": "5" * 32,
        "config": {"lr": 1e-4, "strength": {"flip": 0.5}, "num_frames_used": None},
        "epoch": 3,
        "metrics": {"val_loss": 0.5},
        **changes,
    }
    return Checkpoint(**fields)  # type: ignore[arg-type]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = make_checkpoint()

    saved.save(tmp_path / "best.pt")
    loaded = Checkpoint.load(tmp_path / "best.pt")

    for field in dataclasses.fields(Checkpoint):
        if field.name != "weights":
            assert getattr(saved, field.name) == getattr(loaded, field.name)
    assert all(torch.equal(saved.weights[name], loaded.weights[name]) for name in ("a", "n"))
    assert {"vidcache", "torch"} == set(loaded.versions)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    make_checkpoint().save(path)
    data = path.read_bytes()
    numbers = random.Random(0)
    harmless = 0
    for _ in range(200):
        position, bit = numbers.randrange(len(data)), 1 << numbers.randrange(8)
        altered = bytearray(data)
        altered[position] ^= bit
        path.write_bytes(altered)
        try:
            loaded = Checkpoint.load(path)
        except MismatchError as error:
            assert str(path) in str(error)
        else:  # a bit of the zip's time stamps or padding: nothing that is read
            harmless += 1
            assert torch.equal(make_checkpoint().weights["a"], loaded.weights["a"])
            assert make_checkpoint().config == loaded.config
    assert harmless < 150


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"none\.pt: No such file or directory\. Train first: vidtrain CACHE"):
        Checkpoint.load(tmp_path / "none.pt")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    make_checkpoint().save(tmp_path / "best.pt")
    os.truncate(tmp_path / "best.pt", 500)

    with pytest.raises(MismatchError, match=r"best\.pt: File is not a zip file: damaged, or no vidcache checkpoint"):
        Checkpoint.load(tmp_path / "best.pt")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("/tmp/vidcache-was-here",))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"format": "vidcache-checkpoint", "weights": _Evil()}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(_Evil()))

    with pytest.raises(MismatchError, match=r"evil\.pt: cannot be read safely \(unsupported GLOBAL posix.mkdir"):
        Checkpoint.load(tmp_path / "evil.pt")
    with pytest.raises(MismatchError, match=r"bare\.pt: File is not a zip file"):
        Checkpoint.load(tmp_path / "bare.pt")
    assert not Path("/tmp/vidcache-was-here").exists()


def test_a_file_that_inflates_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(10**6))
    with pytest.raises(MismatchError, match=r"bomb\.pt: has compressed members, expected none"):
        Checkpoint.load(tmp_path / "bomb.pt")
    make_checkpoint().save(tmp_path / "best.pt")
    monkeypatch.setattr(archive_module, "MAX_BYTES", 100)
    with pytest.raises(MismatchError, match=r"best\.pt: more than 100 bytes, expected a checkpoint of R3D-18"):
        Checkpoint.load(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(2)}, "no vidcache checkpoint. Train one: vidtrain CACHE"),
        ([1, 2], "no vidcache checkpoint"),
        (
            {"format": "vidcache-checkpoint", "format_version": 7},
            "checkpoint version 7, but this vidcache reads version 1",
        ),
        ({"format": "vidcache-checkpoint", "format_version": 1, "spec": {}}, "incomplete checkpoint"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")

    with pytest.raises(MismatchError, match=rf"x\.pt: {message}"):
        Checkpoint.load(tmp_path / "x.pt")


def test_a_checkpoint_holds_no_numpy_numbers(tmp_path: Path) -> None:
    """They cannot be read back with weights_only."""
    make_checkpoint(metrics={"x": 0.25}).save(tmp_path / "best.pt")
    buffer = io.BytesIO((tmp_path / "best.pt").read_bytes())

    assert 0.25 == torch.load(buffer, weights_only=True)["metrics"]["x"]


@pytest.mark.parametrize("limit", [0, 3000, 100_000])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, limit: int) -> None:
    """At the first byte, in the middle, and in torch's own clean-up."""
    checkpoint = make_checkpoint(weights={"w": torch.zeros(50_000)})
    checkpoint.save(tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(OSError, match="File too large") as raised:
            checkpoint.save(tmp_path / "x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert str(tmp_path / "x.pt") == raised.value.filename
    assert before == (tmp_path / "x.pt").read_bytes()
    assert ["x.pt"] == [file.name for file in tmp_path.iterdir()]


def test_names_that_are_no_text_are_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"weights": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes().replace(b"data.pkl", b"data.pk\xff"))

    with pytest.raises(MismatchError, match=r"x\.pt: .*codec can't decode.*: damaged, or no vidcache checkpoint"):
        Checkpoint.load(path)
