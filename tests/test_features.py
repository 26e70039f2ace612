"""The feature cache: the same training as without it, in a file that is whole or not there."""

import contextlib
import dataclasses
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import make_cache, tiny_models
from vidcache.cache import lock as place_module
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import CacheError, InputError, InterruptedRunError, LockedError, VidcacheError
from vidcache.spec import Spec
from vidcache.train import feature_cache as feature_writer
from vidcache.train.augment import Strength
from vidcache.train.callbacks import SILENT, Callbacks, RunResult
from vidcache.train.config import TrainConfig
from vidcache.train.feature_cache import FeaturePlan, FeatureReader, FeatureWriter
from vidcache.train.features import to_bytes
from vidcache.train.loop import train
from vidcache.train.run import resumed_config, run_training
from vidcache.train.run_dir import feature_path

CONFIG = TrainConfig(
    weights="none", freeze="stem", epochs=3, batch_size=6, amp="off", lr=1e-3, seed=3, feature_views=2, patience=9
)


# --- the file --------------------------------------------------------------------------------------


def make_plan(count: int = 7, shape: tuple[int, int, int, int] = (2, 3, 3, 5), **facts: str | int) -> FeaturePlan:
    return FeaturePlan({"fingerprint": "f", **facts}, np.arange(count), np.arange(count, dtype=np.int32) % 3 - 1, shape)


def make_features(plan: FeaturePlan, seed: int = 0) -> torch.Tensor:
    frames, height, width, channels = plan.shape
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(len(plan.rows), channels, frames, height, width, generator=numbers)


def write(path: Path, plan: FeaturePlan, features: torch.Tensor, size: int = 3) -> None:
    with FeatureWriter(path, plan) as writer:
        part = to_bytes(features)[writer.num_done :]
        for start in range(0, len(part), size):
            writer.write(part[start : start + size])
        writer.finish()


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(2, 6)),
    picks=st.lists(st.integers(0, 8), min_size=1, max_size=12),
    size=st.integers(1, 5),
)
def test_what_is_written_is_read_rounded_to_bfloat16(
    count: int, shape: tuple[int, int, int, int], picks: list[int], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan, path = make_plan(count, shape), tmp_path_factory.mktemp("f") / "f.h5"
    features = make_features(plan)
    write(path, plan, features, size)
    chosen = [pick % count for pick in picks]

    with FeatureReader(path) as reader:
        found = torch.from_numpy(reader.read(chosen, verify=True)).view(torch.bfloat16).permute(0, 4, 1, 2, 3)
        assert (count, plan.shape, plan.key) == (len(reader), reader.shape, reader.key)
    assert torch.equal(features.to(torch.bfloat16)[chosen], found)
    assert {"f.h5", "f.h5.lock"} == {file.name for file in path.parent.iterdir()}


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    plan = make_plan(views=2)
    features = make_features(plan)
    write(tmp_path / "f.h5", plan, features)

    with h5py.File(tmp_path / "f.h5", "r") as file:
        assert file["features"].shape == (7, 2, 3, 3, 5)
        assert 0 == file["features"].id.get_offset() % 4096
        assert plan.rows.tolist() == file["rows"][:].tolist()
        assert plan.views.tolist() == file["views"][:].tolist()
        assert (b"f", 2) == (file.attrs["fingerprint"], file.attrs["views"])
        numbers = (file["features"][:].astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(features.to(torch.bfloat16).float().permute(0, 2, 3, 4, 1).numpy(), numbers)


@pytest.mark.parametrize("damage", ["a cut journal", "an altered entry", "nothing"])
def test_an_interrupted_file_goes_on_where_it_was_good(tmp_path: Path, damage: str) -> None:
    plan, path = make_plan(), tmp_path / "f.h5"
    features = make_features(plan)
    with FeatureWriter(path, plan) as writer:
        writer.write(to_bytes(features)[:4])
        offset = writer._slot(2)
    folder = tmp_path / ".f.h5.build"
    if damage == "a cut journal":
        os.truncate(folder / "journal", 3 * 16 + 5)
    elif damage == "an altered entry":
        with (folder / "data.h5").open("r+b") as file:
            file.seek(offset)
            file.write(b"\xff\xfe")
    expected = {"a cut journal": 3, "an altered entry": 2, "nothing": 4}[damage]

    with FeatureWriter(path, plan) as writer:
        assert expected == writer.num_done
    write(path, plan, features)
    with FeatureReader(path) as reader:
        assert np.array_equal(to_bytes(features), reader.read(np.arange(7), verify=True))


def test_an_interrupted_file_of_another_plan_is_begun_anew(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f.h5", make_plan()) as writer:
        writer.write(to_bytes(make_features(make_plan()))[:4])

    with FeatureWriter(tmp_path / "f.h5", make_plan(seed=9)) as writer:
        assert 0 == writer.num_done


def test_an_older_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    plan, other, path = make_plan(), make_plan(seed=9), tmp_path / "f.h5"
    write(path, plan, make_features(plan))
    with FeatureWriter(path, other) as writer:
        writer.write(to_bytes(make_features(other))[:4])
    with FeatureReader(path) as reader:
        assert plan.key == reader.key
    write(path, other, make_features(other))
    with FeatureReader(path) as reader:
        assert other.key == reader.key


def test_killed_at_any_call_it_is_whole_or_not_there(tmp_path: Path) -> None:
    """In forks of one process, one for each place."""
    plan = make_plan()
    features = make_features(plan)
    places = 0
    for place in range(200):
        path = tmp_path / str(place) / "f.h5"
        path.parent.mkdir()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                torch.set_num_threads(1)
                _write_and_die(path, plan, to_bytes(features), place)
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            assert 0 == os.WEXITSTATUS(status)
            break
        places += 1
        with contextlib.suppress(CacheError), FeatureReader(path) as reader:
            assert np.array_equal(to_bytes(features), reader.read(np.arange(7), verify=True))
        write(path, plan, features)
        with FeatureReader(path) as reader:
            assert np.array_equal(to_bytes(features), reader.read(np.arange(7), verify=True))

    assert places > 25


def _write_and_die(path: Path, plan: FeaturePlan, data: np.ndarray[Any, Any], place: int) -> None:
    left = [place]

    def deadly(inner: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), 9)
            return inner(*arguments, **more)

        return call

    for name in ("pwrite", "fdatasync", "fsync", "rename", "open", "mkdir", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))
    with FeatureWriter(path, plan) as writer:
        for start in range(0, 7, 2):
            writer.write(data[start : start + 2])
        writer.finish()
    os._exit(0)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        FeatureWriter(tmp_path / "f.h5", make_plan()),
        pytest.raises(LockedError, match=r"f\.h5: another build is writing it"),
    ):
        FeatureWriter(tmp_path / "f.h5", make_plan())


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "free_bytes", lambda _: 100)

    with pytest.raises(VidcacheError, match=r"f\.h5: needs 1,372 bytes, but its disk has 100 free"):
        FeatureWriter(tmp_path / "f.h5", make_plan())
    assert not (tmp_path / ".f.h5.build").exists()


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    plan = make_plan()
    data = to_bytes(make_features(plan))
    with FeatureWriter(tmp_path / "f.h5", plan) as writer:
        with pytest.raises(
            ValueError, match=r"features are uint8 \(7, 2, 3, 3, 9\), expected uint8 \(7, 2, 3, 3, 10\)"
        ):
            writer.write(data[..., :-1])
        writer.write(data)
        with pytest.raises(ValueError, match="entry 13, expected 0 to 6"):
            writer.write(data)
    with (
        FeatureWriter(tmp_path / "g.h5", plan) as writer,
        pytest.raises(ValueError, match="0 of 7 entries are written, expected all"),
    ):
        writer.finish()
    write(tmp_path / "f.h5", plan, make_features(plan))
    with FeatureReader(tmp_path / "f.h5") as reader, pytest.raises(ValueError, match="entry 7, expected 0 to 6"):
        reader.read([0, 7])


def test_every_altered_byte_is_found(tmp_path: Path) -> None:
    plan, path = make_plan(), tmp_path / "f.h5"
    write(path, plan, make_features(plan))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, len(whole), 60).tolist(), 9, 4095]:
        altered = bytearray(whole)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with (
            pytest.raises(CacheError, match=r"f\.h5: .*Delete it: it is computed again"),
            FeatureReader(path) as reader,
        ):
            reader.read(np.arange(7), verify=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no vidfeats file \(it begins with b''\)"),
        (b"vidfeats", "8 bytes, expected 4096 or more"),
        (b"vidfeats".ljust(4096, b"\1"), "the header is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(CacheError, match=rf"f\.h5: {message}"):
        FeatureReader(tmp_path / "f.h5")


def test_a_file_that_is_cut_or_missing_is_refused(tmp_path: Path) -> None:
    plan, path = make_plan(), tmp_path / "f.h5"
    with pytest.raises(CacheError, match=r"f\.h5: No such file or directory, expected a file of features"):
        FeatureReader(path)
    write(path, plan, make_features(plan))
    size = path.stat().st_size
    with FeatureReader(path) as reader:
        os.truncate(path, size - 50)
        with pytest.raises(CacheError, match="it was cut while open"):
            reader.read([6])
    with pytest.raises(CacheError, match=f"{size - 50:,} bytes long, expected {size:,}"):
        FeatureReader(path)


# --- training on it --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("c") / "c.h5", {"a": 16, "b": 16}, spec=Spec(4, 16, 16), learnable=True)


@pytest.fixture
def tiny() -> Iterator[None]:
    with tiny_models():
        yield


def run(
    cache: Path, config: TrainConfig, path: Path | None, **more: Any
) -> tuple[RunResult, list[float], list[str], list[tuple[int, int]]]:
    """How it ended, the loss of every step, what was said, and what was computed."""
    losses: list[float] = []
    said: list[str] = []
    done: list[tuple[int, int]] = []
    hooks = Callbacks(
        on_step=lambda step: losses.append(step.loss),
        on_features=said.append,
        on_feature=lambda *progress: done.append(progress),
    )
    with CacheReader(cache) as reader:
        return train(reader, config, hooks, feature_file=path, **more), losses, said, done


def test_r3d_18_learns_the_same_from_features(tmp_path: Path) -> None:
    """To the 8 bits of bfloat16, for the views that the plain path draws in its first epochs."""
    cache = make_cache(tmp_path / "c.h5", {"a": 8, "b": 8}, spec=Spec(4, 16, 16), learnable=True)
    config = dataclasses.replace(CONFIG, freeze="layer2", lr=1e-5, epochs=2)

    with_file, found, _, _ = run(cache, config, tmp_path / "f.h5")
    without, expected, _, _ = run(cache, dataclasses.replace(config, feature_views=None), None)

    assert pytest.approx(expected, rel=2e-2) == found
    assert expected != found
    assert pytest.approx([e.val_loss for e in without.epochs], rel=5e-2) == [e.val_loss for e in with_file.epochs]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("changes", [{}, {"balance": "none", "augment": "exact"}, {"num_frames_used": 2}])
def test_views_are_those_of_the_first_epochs_and_come_round(
    cache: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(CONFIG, lr=1e-12, weight_decay=0, epochs=4, **{"balance": "none", **changes})
    _, found, _, _ = run(cache, config, tmp_path / "f.h5")
    _, expected, _, _ = run(cache, dataclasses.replace(config, feature_views=None), None)

    steps = len(found) // 4
    by_epoch = [[values[epoch * steps + steps - 1] for epoch in range(4)] for values in (expected, found)]
    assert pytest.approx(by_epoch[0][:2], rel=5e-3) == by_epoch[1][:2]
    assert pytest.approx(by_epoch[1][:2], rel=1e-4) == by_epoch[1][2:]  # nothing moves: the third is the first again
    assert abs(by_epoch[0][0] - by_epoch[0][2]) > 1e-4  # where the plain path draws anew


@pytest.mark.usefixtures("tiny")
def test_a_file_is_computed_once_for_everything_that_it_depends_on(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    _, losses, said, done = run(cache, CONFIG, path)
    assert (54, 54) == done[-1]  # 2 views of 22 clips, 10 others once
    assert "features: computing 54 entries of 0.00 MB = 0.00 GB into" in said[0]
    assert "2 views of each training clip, every other clip once" in said[0]

    _, same_losses, said, done = run(cache, dataclasses.replace(CONFIG, lr=1e-3, batch_size=6), path)
    assert [] == done
    assert f"in {path}, as they were computed before" in said[0]
    assert losses == same_losses

    for changes in (
        {"seed": 4},
        {"feature_views": 1},
        {"augment": "none"},
        {"strength": Strength(hue=0)},
        {"num_frames_used": 3},
        {"amp": "bf16-prefix"},
    ):
        _, _, _, done = run(cache, dataclasses.replace(CONFIG, epochs=1, **changes), path)  # type: ignore[arg-type]
        assert done, changes
    for changes in ({"lr": 0.1}, {"label_smoothing": 0.1}, {"shuffle_labels": True}, {"accumulate": 2}):
        run(cache, dataclasses.replace(CONFIG, epochs=1), path)
        _, _, _, done = run(cache, dataclasses.replace(CONFIG, epochs=1, **changes), path)  # type: ignore[arg-type]
        assert [] == done, changes


@pytest.mark.usefixtures("tiny")
def test_labels_of_a_control_run_are_shuffled_here_too(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    _, honest, _, _ = run(cache, CONFIG, path)
    _, shuffled, _, _ = run(cache, dataclasses.replace(CONFIG, shuffle_labels=True), path)
    _, expected, _, _ = run(cache, dataclasses.replace(CONFIG, shuffle_labels=True, feature_views=None), None)

    assert honest != shuffled
    assert pytest.approx(expected[:8], rel=2e-2) == shuffled[:8]


@pytest.mark.usefixtures("tiny")
def test_what_is_damaged_or_old_is_computed_again_and_what_is_foreign_is_left_alone(
    cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "f.h5"
    _, losses, _, _ = run(cache, CONFIG, path)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert losses == run(cache, CONFIG, path)[1]

    path.write_bytes(b"my only copy")
    with pytest.raises(InputError, match=r"f\.h5: no file of features, expected one or nothing. Choose another place"):
        run(cache, CONFIG, path)
    assert b"my only copy" == path.read_bytes()


@pytest.mark.usefixtures("tiny")
def test_verify_finds_an_altered_entry(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    run(cache, CONFIG, path)
    with FeatureReader(path) as reader:
        offset = reader._offset
    with path.open("r+b") as file:
        file.seek(offset + 3 * reader.entry_bytes)
        file.write(b"\x12\x34")

    run(cache, CONFIG, path)
    with pytest.raises(CacheError, match=r"f\.h5: entry 3 does not match its hash, expected what was written"):
        run(cache, dataclasses.replace(CONFIG, verify=True), path)


@pytest.mark.usefixtures("tiny")
def test_a_run_that_is_stopped_while_it_computes_goes_on(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.pt"
    whole = run_training([cache], tmp_path / "whole.pt", CONFIG, SILENT)
    (tmp_path / "c.h5").symlink_to(cache)
    asked = iter([False, False, True])
    with pytest.raises(InterruptedRunError, match="train: stopped while features were computed; those that are done"):
        run_training([tmp_path / "c.h5"], out, CONFIG, SILENT, should_stop=lambda: next(asked))
    assert (tmp_path / ".c.features.h5.build").exists()
    done: list[tuple[int, int]] = []

    result = run_training(
        [tmp_path / "c.h5"], out, resumed_config(out), Callbacks(on_feature=lambda *n: done.append(n)), resume=True
    )

    assert 18 < done[0][0] <= 24
    assert [e.val_loss for e in whole.epochs] == [e.val_loss for e in result.epochs]
    assert (tmp_path / "c.features.h5").exists()
    one, two = Checkpoint.load(tmp_path / "whole.pt"), Checkpoint.load(out)
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


@pytest.mark.usefixtures("tiny")
def test_a_resumed_run_may_keep_its_features_elsewhere(cache: Path, tmp_path: Path) -> None:
    first, second = (dataclasses.replace(CONFIG, feature_file=str(tmp_path / name)) for name in ("1.h5", "2.h5"))
    whole = run_training([cache], tmp_path / "whole.pt", first, SILENT)
    asked = iter([*[False] * 15, True])  # 10 batches of features, an epoch of 4 steps and its end, a step
    with pytest.raises(InterruptedRunError, match="in epoch 2"):
        run_training([cache], tmp_path / "best.pt", second, SILENT, should_stop=lambda: next(asked))
    (tmp_path / "2.h5").unlink()

    moved = dataclasses.replace(second, feature_file=str(tmp_path / "3.h5"))
    result = run_training([cache], tmp_path / "best.pt", moved, SILENT, resume=True)

    assert [e.val_loss for e in whole.epochs] == [e.val_loss for e in result.epochs]
    assert {"1.h5", "3.h5"} == {path.name for path in tmp_path.glob("?.h5")}
    (tmp_path / "3.h5").unlink()
    run_training([cache], tmp_path / "best.pt", moved, SILENT, resume=True)
    assert not (tmp_path / "3.h5").exists()  # nothing is left to do


@pytest.mark.usefixtures("tiny")
def test_a_full_disk_ends_it_and_a_later_run_goes_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_writer, "check_space", lambda *_: None)  # the disk is full only later
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "f.h5"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            run(cache, CONFIG, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()

    assert 3 == len(run(cache, CONFIG, path)[0].epochs)


def test_the_file_is_beside_the_cache() -> None:
    assert Path("a/c.features.h5") == feature_path(Path("a/c.h5"))
    assert Path("a/c.v2.features.h5") == feature_path(Path("a/c.v2"))


@pytest.mark.usefixtures("tiny")
def test_without_frozen_stages_there_are_no_features(cache: Path, tmp_path: Path) -> None:
    for changes, option in (({"feature_views": 1}, "--cache-features"), ({"amp": "bf16-prefix"}, "--amp bf16-prefix")):
        config = dataclasses.replace(CONFIG, freeze="none", **{"feature_views": None, **changes})  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"{option}: nothing is frozen, expected --freeze stem or more"):
            run(cache, config, tmp_path / "f.h5")
    with pytest.raises(ValueError, match="feature_file is None, expected a path: the config has feature_views"):
        run(cache, CONFIG, None)
