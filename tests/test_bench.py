"""`vidcache bench`: steps with real data beside steps on a fixed batch; what bounds them."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.helpers import make_cache, tiny_models
from vidcache import cli
from vidcache.cache.reader import CacheReader

KEYS = (
    "cache fingerprint num_train_clips clip_bytes num_frames_used size device batch_size accumulate freeze augment amp compile "
    "reader_threads precision device_name torch_threads num_cpus versions loop compute_ms stages bound_by sentences"
).split()


def call(*arguments: object) -> Result:
    with tiny_models():
        return CliRunner().invoke(cli.main, ["bench", "--device", "cpu", "--repeats", "3", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert 0 == result.exit_code, (result.stderr, result.exception)
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_everything_is_timed_and_nothing_written(learnable_cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in learnable_cache.parent.iterdir()}

    found = report(learnable_cache)

    assert set(KEYS) == set(found)
    assert (2, 4, "layer2", "linear", "off") == tuple(
        found[name] for name in ("batch_size", "num_frames_used", "freeze", "augment", "precision")
    )
    for times in (found["loop"], *found["stages"].values()):
        assert 0 < times["min_ms"] <= times["ms_per_step"] <= times["max_ms"]
        assert pytest.approx(times["ms_per_step"] / 2) == times["ms_per_clip"]
        assert 3 == times["n"]
    assert {"fixed", "read_warm", "augment"} == set(found["stages"])
    assert found["compute_ms"] == found["stages"]["fixed"]["ms_per_step"]
    assert pytest.approx(2000 / found["loop"]["ms_per_step"]) == found["loop"]["clips_per_second"]
    assert 0 <= found["loop"]["data_wait_fraction"] <= 1
    assert before == {path: path.stat().st_mtime_ns for path in learnable_cache.parent.iterdir()}


def test_the_table_and_the_sentence(learnable_cache: Path) -> None:
    result = call(learnable_cache, "--num-frames", 2, "--batch-size", 3, "--seconds", 0, "--repeats", 9)

    assert 0 == result.exit_code, result.stderr
    first, *_ = result.stdout.splitlines()
    assert first.startswith(f"{learnable_cache}: 3 clips per step, 2 frames of 16x16, frozen: layer2, precision: off; ")
    for row in ("step, real data", "step, fixed batch", "reading, from memory", "augmentation"):
        assert row in result.stdout
    assert 4 == sum(line.endswith("│ 3 │") for line in result.stdout.splitlines()), "3 times, whatever the time limit"
    assert "bound: a step with real data takes x" in result.stdout.splitlines()[-1]


def test_slow_reading_is_data_bound_and_slow_steps_are_not(
    learnable_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidcache.train.loop import Trainer

    def slowed(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def slow(*arguments: Any, **settings: Any) -> Any:
            time.sleep(0.05)
            return inner(*arguments, **settings)

        monkeypatch.setattr(owner, name, slow)

    slowed(CacheReader, "read")
    found = report(learnable_cache, "--num-workers", 1)
    monkeypatch.undo()
    slowed(Trainer, "train_step")
    slow_steps = report(learnable_cache)

    assert "reading" == found["bound_by"]
    assert found["stages"]["read_warm"]["ms_per_step"] > 20
    assert found["loop"]["data_wait_fraction"] > 0.2
    assert found["sentences"][0].startswith("Data bound: a step with real data takes x")
    assert "--num-workers" in found["sentences"][0]
    assert "compute" == slow_steps["bound_by"]
    assert slow_steps["compute_ms"] > 50
    assert slow_steps["sentences"][0].startswith("Compute bound: a step with real data takes x")


def test_a_checkpoint_gives_the_options_of_its_run_unless_they_are_given(trained_folder: Path, tmp_path: Path) -> None:
    from vidcache.checkpoint import Checkpoint

    cache, ckpt = trained_folder / "cache.h5", trained_folder / "best.pt"
    loaded = Checkpoint.load(ckpt)
    dataclasses.replace(loaded, config={**loaded.config, "optimism": 1}).save(tmp_path / "odd.pt")

    found = report(cache, "--ckpt", ckpt, "--batch-size", 4)
    given = report(cache, "--ckpt", ckpt, "--augment", "none", "--grad-accum-steps", 2, "--freeze", "stem")

    assert ("none", 4, 1, "linear") == tuple(found[name] for name in ("freeze", "batch_size", "accumulate", "augment"))
    refused = call(cache, "--ckpt", tmp_path / "odd.pt")
    assert 5 == refused.exit_code
    assert "odd.pt: options of another version of vidcache (" in refused.stderr
    assert ("stem", 2, 2, "none") == tuple(given[name] for name in ("freeze", "batch_size", "accumulate", "augment"))


def test_small_caches_and_those_without_training_clips(tmp_path: Path) -> None:
    small = make_cache(tmp_path / "small.h5", {"a": 4, "b": 4})
    empty = make_cache(tmp_path / "empty.h5", {"a": 1}, failed=(0,))
    with CacheReader(small) as reader:
        num_train_clips = len(reader.rows("train"))

    assert num_train_clips == report(small, "--batch-size", 100)["batch_size"]
    refused = call(empty)
    assert 2 == refused.exit_code
    assert f"{empty}: no train clips" in refused.stderr
    frames = call(small, "--num-frames", 5)
    assert 2 == frames.exit_code
    assert "--num-frames" in frames.stderr
