"""The feature cache: the same training as without it, in a file that is whole or not there."""

import dataclasses
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from tests.helpers import make_cache, tiny_models
from vidcache.cache.reader import CacheReader
from vidcache.errors import CacheError, InputError, InterruptedRunError, LockedError, VidcacheError
from vidcache.model import build_model
from vidcache.train import feature_cache, loop
from vidcache.train.augment import Strength
from vidcache.train.callbacks import Callback, RunResult
from vidcache.train.config import TrainConfig
from vidcache.train.loop import train
from vidcache.train.run import resumed_config, run_training
from vidcache.train.run_dir import feature_path

CONFIG = TrainConfig(
    weights="none", freeze="stem", epochs=3, batch_size=6, amp="off", lr=1e-3, seed=3, feature_views=2, patience=9
)


@pytest.fixture
def cache(learnable_cache: Path, tmp_path: Path) -> Path:
    """A copy: features are written beside it."""
    return Path(shutil.copy(learnable_cache, tmp_path / "c.h5"))


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny_models():
        yield


class Seen(NamedTuple):
    result: RunResult
    losses: list[float]  # the mean loss after every step
    notes: list[str]
    progress: list[tuple[int, int]]  # of computing features


def run(cache: Path, config: TrainConfig = CONFIG, **changes: Any) -> Seen:
    losses: list[float] = []
    notes: list[str] = []
    progress: list[tuple[int, int]] = []
    callback = Callback(
        on_step=lambda _epoch, _n, sums: losses.append(sums.mean_loss),
        on_note=lambda text, _: notes.append(text),
        on_features=lambda *numbers: progress.append(numbers),
    )
    with CacheReader(cache) as reader:
        return Seen(train(reader, dataclasses.replace(config, **changes), [callback]), losses, notes, progress)


@pytest.mark.slow
def test_r3d_18_learns_the_same_from_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the 8 bits of bfloat16, for the views that the plain path draws in its first epochs."""
    monkeypatch.setattr(loop, "build_model", build_model)
    cache = make_cache(tmp_path / "c.h5", {"a": 8, "b": 8}, learnable=True)
    config = dataclasses.replace(CONFIG, freeze="layer2", lr=1e-5, epochs=2)

    cached, plain = run(cache, config), run(cache, config, feature_views=None)

    assert pytest.approx(plain.losses, rel=2e-2) == cached.losses
    assert plain.losses != cached.losses
    val_losses = [[epoch.val_loss for epoch in seen.result.epochs] for seen in (plain, cached)]
    assert pytest.approx(val_losses[0], rel=5e-2) == val_losses[1]


@pytest.mark.parametrize("changes", [{"shuffle_labels": True}, {"augment": "exact"}, {"num_frames_used": 2}])
def test_views_are_those_of_the_first_epochs_and_come_round(cache: Path, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, lr=1e-12, weight_decay=0, epochs=4, balance="none", **changes)
    losses, expected = run(cache, config).losses, run(cache, config, feature_views=None).losses

    plain, cached = expected[3::4], losses[3::4]  # at the end of each epoch of 4 steps
    assert pytest.approx(plain[:2], rel=5e-3) == cached[:2]
    assert pytest.approx(cached[:2], rel=1e-4) == cached[2:]  # nothing moves: the third is the first again
    assert abs(plain[0] - plain[2]) > 1e-4  # where the plain path draws anew


def test_a_file_is_computed_once_for_everything_that_it_depends_on(cache: Path, tmp_path: Path) -> None:
    first, again = run(cache), run(cache)
    assert (54, 54) == first.progress[-1]  # 2 views of 22 clips, 10 others once
    assert f"features: 54 entries = 0.00 GB: computing them into {tmp_path}/c.features.h5" in first.notes[0]
    assert [f"features: 54 entries = 0.00 GB in {tmp_path}/c.features.h5, computed before"] == again.notes
    assert [] == again.progress
    assert first.losses == again.losses

    for changes in (
        {"seed": 4}, {"feature_views": 1}, {"augment": "none"}, {"strength": Strength(hue=0)}, {"num_frames_used": 3},
        {"amp": "bf16-prefix"},
    ):  # fmt: skip
        assert run(cache, epochs=1, **changes).progress, changes
    run(cache, epochs=1)
    for changes in ({"lr": 0.1}, {"label_smoothing": 0.1}, {"shuffle_labels": True}, {"accumulate": 2}):
        assert [] == run(cache, epochs=1, **changes).progress, changes


def test_other_tools_can_read_it(cache: Path, tmp_path: Path) -> None:
    run(cache)

    with h5py.File(tmp_path / "c.features.h5", "r") as file, CacheReader(cache) as reader:
        assert (54, 3, 14, 14, 4) == file["features"].shape
        rows = [*np.tile(reader.rows("train"), 2), *reader.rows("val"), *reader.rows("test")]
        assert rows == file["rows"][:].tolist()
        assert [0] * 22 + [1] * 22 + [-1] * 10 == file["views"][:].tolist()
        numbers = (file["features"][:].astype(np.uint32) << 16).view(np.float32)
    assert np.isfinite(numbers).all()
    assert numbers.std() > 0.1


def test_what_is_damaged_or_old_is_computed_again_and_what_is_foreign_is_left_alone(
    cache: Path, tmp_path: Path
) -> None:
    path, first = tmp_path / "c.features.h5", run(cache)
    whole = path.read_bytes()
    for damaged in (b"vidfeats", whole[:-1], whole[:42] + b"9" + whole[43:], b"vidfeats\1".ljust(4096, b"\1")):
        path.write_bytes(damaged)
        again = run(cache)
        assert again.progress
        assert first.losses == again.losses
        assert whole == path.read_bytes()

    path.write_bytes(b"my only copy")
    with pytest.raises(InputError, match="c.features.h5: begins with b'my only '"):
        run(cache)
    assert b"my only copy" == path.read_bytes()


def test_verify_finds_an_altered_entry(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.features.h5"
    run(cache)
    with h5py.File(path, "r+") as file:
        file["features"][3, 0, 0, 0, 0] ^= 1

    run(cache)
    with pytest.raises(CacheError, match=r"c.features.h5: entry 3 does not match its hash. Delete it"):
        run(cache, verify=True)


def test_a_file_that_is_cut_while_it_is_read_is_reported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cache)
    monkeypatch.setattr(loop.Trainer, "train_epoch", lambda *_: os.truncate(tmp_path / "c.features.h5", 6000))
    with pytest.raises(CacheError, match="features.h5: file ends .*Delete it: it is computed again"):
        run(cache)


def test_a_run_that_is_stopped_while_it_computes_begins_them_again(cache: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "best.pt", iter([False, False, True])
    with pytest.raises(
        InterruptedRunError, match="train: stopped while features were computed; they are computed again"
    ):
        run_training([cache], out, CONFIG, should_stop=lambda: next(asked))
    assert {"c.h5", "best.run"} == {path.name for path in tmp_path.iterdir()}
    done: list[int] = []
    log = Callback(on_features=lambda number, _: done.append(number))

    result = run_training([cache], out, resumed_config(out), [log], resume=True)

    assert 6 == done[0]
    whole = run_training([cache], tmp_path / "whole.pt", CONFIG)
    assert [e.val_loss for e in whole.epochs] == [e.val_loss for e in result.epochs]


def test_a_resumed_run_may_keep_its_features_elsewhere(cache: Path, tmp_path: Path) -> None:
    first, second = (dataclasses.replace(CONFIG, feature_file=str(tmp_path / name)) for name in ("1.h5", "2.h5"))
    whole = run_training([cache], tmp_path / "whole.pt", first)
    asked = iter([*[False] * 15, True])  # 10 batches of features, an epoch of 4 steps and its end, a step
    with pytest.raises(InterruptedRunError, match="in epoch 2"):
        run_training([cache], tmp_path / "best.pt", second, should_stop=lambda: next(asked))
    (tmp_path / "2.h5").unlink()

    moved = dataclasses.replace(second, feature_file=str(tmp_path / "3.h5"))
    result = run_training([cache], tmp_path / "best.pt", moved, resume=True)

    assert [e.val_loss for e in whole.epochs] == [e.val_loss for e in result.epochs]
    assert {"1.h5", "3.h5"} == {path.name for path in tmp_path.glob("?.h5") if path != cache}
    (tmp_path / "3.h5").unlink()
    run_training([cache], tmp_path / "best.pt", moved, resume=True)
    assert not (tmp_path / "3.h5").exists()  # nothing is left to do


def test_a_full_disk_leaves_nothing_behind(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
        with pytest.raises((OSError, VidcacheError), match="File too large"):
            run(cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(feature_cache, "free_bytes", lambda _: 100)
    with pytest.raises(VidcacheError, match="c.features.h5: needs 254,016 bytes, but its disk has 100 free"):
        run(cache)
    assert ["c.h5"] == [path.name for path in tmp_path.iterdir()]


def test_a_second_run_does_not_compute_the_same_file(cache: Path) -> None:
    def second(_done: int, _all: int) -> None:
        run(cache)

    with (
        CacheReader(cache) as reader,
        pytest.raises(LockedError, match="another run is computing it. Wait for that run"),
    ):
        train(reader, CONFIG, [Callback(on_features=second)])


def test_the_file_is_beside_the_cache() -> None:
    assert Path("a/c.features.h5") == feature_path(Path("a/c.h5"))
    assert Path("a/c.v2.features.h5") == feature_path(Path("a/c.v2"))


def test_without_frozen_stages_there_are_no_features(cache: Path) -> None:
    for changes, option in (
        ({}, "--cache-features"),
        ({"feature_views": None, "amp": "bf16-prefix"}, "--amp bf16-prefix"),
    ):
        with pytest.raises(InputError, match=f"{option}: needs frozen stages"):
            run(cache, freeze="none", **changes)
