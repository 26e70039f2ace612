"""Checkpoints: tensors and primitives, whole or refused, no code."""

import dataclasses
import os
import pickle
import random
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from vidcache import untrusted
from vidcache.checkpoint import Checkpoint
from vidcache.errors import MismatchError
from vidcache.spec import Spec

FORMAT = {"format": "vidcache-checkpoint"}


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_checkpoint().save(tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_what_is_saved_is_loaded(path: Path) -> None:
    saved, loaded = make_checkpoint(), Checkpoint.load(path)

    for field in dataclasses.fields(Checkpoint):
        if field.name != "weights":
            assert getattr(saved, field.name) == getattr(loaded, field.name)
    assert all(torch.equal(saved.weights[name], loaded.weights[name]) for name in ("a", "n"))
    assert {"vidcache", "torch"} == set(loaded.versions)


def test_every_flipped_bit_is_found(path: Path) -> None:
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


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("/tmp/vidcache-was-here",))


def test_code_in_a_checkpoint_does_not_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({**FORMAT, "weights": _Evil()}, path)
    with pytest.raises(MismatchError, match=r"x\.pt: cannot be read safely \(unsupported GLOBAL posix.mkdir"):
        Checkpoint.load(path)

    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(MismatchError, match=r"x\.pt: File is not a zip file"):
        Checkpoint.load(path)
    assert not Path("/tmp/vidcache-was-here").exists()


def test_a_file_that_inflates_or_is_too_large_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MAX_BYTES", 100)
    with pytest.raises(MismatchError, match=r"x\.pt: more than 100 bytes, expected a checkpoint of R3D-18"):
        Checkpoint.load(path)

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(10**6))
    with pytest.raises(MismatchError, match=r"x\.pt: has compressed members, expected none"):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"No such file or directory\. Train first: vidtrain CACHE"),
        (b"PK\x03\x04 cut", "File is not a zip file: damaged, or no vidcache checkpoint"),
        (b"data.pk\xff", "codec can't decode.*: damaged, or no vidcache checkpoint"),
        ({"a": torch.zeros(2)}, "no vidcache checkpoint. Train one: vidtrain CACHE"),
        ([1, 2], "no vidcache checkpoint"),
        ({**FORMAT, "format_version": 7}, "checkpoint version 7, but this vidcache reads version 1"),
        ({**FORMAT, "format_version": 1, "spec": {}}, "incomplete checkpoint"),
    ],
)
def test_other_content_is_refused(path: Path, content: object, message: str) -> None:
    if content is None:
        path.unlink()
    elif not isinstance(content, bytes):
        torch.save(content, path)
    elif content.startswith(b"PK"):
        path.write_bytes(content)
    else:  # the name of a member
        path.write_bytes(path.read_bytes().replace(b"data.pkl", content))

    with pytest.raises(MismatchError, match=rf"x\.pt: .*{message}"):
        Checkpoint.load(path)


@pytest.mark.parametrize("limit", [0, 3000, 100_000])
def test_a_full_disk_is_an_error_that_names_the_file(path: Path, limit: int) -> None:
    """At the first byte, in the middle, and in torch's own clean-up."""
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(OSError, match="File too large") as raised:
            make_checkpoint(weights={"w": torch.zeros(50_000)}).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert str(path) == raised.value.filename
    assert before == path.read_bytes()
    assert [path] == list(path.parent.iterdir())
