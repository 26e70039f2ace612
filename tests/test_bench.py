# ruff: noqa: E402
"""`vidcache bench`: what is timed is what trains, and what is said follows from what was measured."""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest

pytest.skip("vidcache bench is being rewritten around the new training loop", allow_module_level=True)
import torch
from click.testing import CliRunner, Result

from tests.helpers import make_cache, tiny_models
from tests.tiny_model import TinyModel
from vidcache import cli
from vidcache.cache.format import Split
from vidcache.cache.reader import CacheReader, ConcatReader, Reader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, VidcacheError
from vidcache.model import state_on_cpu
from vidcache.spec import Spec
from vidcache.train import bench, loop
from vidcache.train import bench as bench_reading
from vidcache.train import bench as bottleneck
from vidcache.train.backbone import Forward
from vidcache.train.bench import (
    COMPUTE,
    NAMES,
    Limit,
    Measured,
    Pair,
    Steps,
    Stopwatch,
    Times,
    drop_pages,
    judge,
    measure,
    memory_bytes,
)
from vidcache.train.config import TrainConfig
from vidcache.train.data import ClipLoader, TrainingData, epoch_rows
from vidcache.train.loop import RunningMetrics
from vidcache.train.precision import Choice

SPEC = Spec(8, 64, 64)  # 98,304 bytes: whole pages, so that they can be dropped
CONFIG = TrainConfig(weights="none", batch_size=4, amp="off")
FEW = Limit(repeats=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips, 16 of them to train on."""
    return make_cache(tmp_path_factory.mktemp("bench") / "c.h5", {"a": 12, "b": 12}, spec=SPEC)


@contextlib.contextmanager
def tiny() -> Iterator[None]:
    """Measure `TinyModel` instead of R3D-18."""
    with tiny_models(), mock.patch.object(bench, "build_model", lambda num, _, freeze: TinyModel(num, freeze)):
        yield


@pytest.fixture
def tiny_model() -> Iterator[None]:
    with tiny():
        yield


def save_checkpoint(path: Path, cache: Path, **changes: Any) -> Path:
    """A checkpoint of a run that used 4 of the 8 frames."""
    config = dataclasses.asdict(dataclasses.replace(CONFIG, augment="exact", freeze="none", batch_size=8))
    with CacheReader(cache) as reader:
        checkpoint = Checkpoint(
            weights=state_on_cpu(TinyModel(len(reader.classes))),
            classes=reader.classes,
            spec=reader.spec,
            num_frames_used=4,
            fingerprint=reader.fingerprint,
            split_hash=reader.split_hash,
            config=config,
            epoch=1,
            metrics={},
        )
    dataclasses.replace(checkpoint, **changes).save(path)
    return path


def call(*arguments: object) -> Result:
    with tiny():
        return CliRunner().invoke(cli.main, ["bench", *map(str, arguments), "--device", "cpu", "--repeats", "3"])


def facts_of(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert 0 == result.exit_code, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


# --- what is measured -------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_model")
def test_every_stage_is_timed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MAX_SLOWDOWN", math.inf)  # of clips as small as these bf16 may be slow anywhere
    phases: list[str] = []
    with CacheReader(cache) as reader:
        found = measure(reader, CONFIG, FEW, on_phase=phases.append)

    assert set(NAMES) == set(found.times)
    for name, times in found.times.items():
        if name == "copy":  # nothing is copied to a CPU
            assert 0 == times.count
        elif name != "read_cold" or not found.cold_note:
            assert times.count >= 3, name
            assert 0 < times.low <= times.median <= times.high, name
    assert 3 == found.step.count
    assert 0 <= found.waited_fraction < 1
    assert pytest.approx(1) == sum(found.shares.values())
    assert (4, SPEC.clip_bytes, 16) == (found.batch_size, SPEC.clip_bytes, found.num_train_clips)
    assert 20 * SPEC.clip_bytes <= found.epoch_bytes < 24 * SPEC.clip_bytes  # training and validation clips
    assert found.augmented.other.count == found.augmented.now.count == 3
    assert found.frozen.other.count == found.frozen.now.count == 3
    assert ["reading", "the choice of the precision", "the stages of a step"] == phases[:3]


def test_the_real_model_can_be_measured(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", {"a": 4, "b": 4}, spec=Spec(4, 16, 16))
    with CacheReader(path) as reader:
        found = measure(reader, dataclasses.replace(CONFIG, batch_size=2, augment="none"), Limit(1))

    assert all(found.stages[name].median > 0 for name in COMPUTE if name != "copy")
    assert not found.augmented  # there is no other way to do nothing
    assert judge(found).bound_by == "compute"


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize("is_timed", [False, True])
def test_what_is_timed_is_what_trains(cache: Path, is_timed: bool) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, lr=1e-2, accumulate=2, clip_norm=1.0)
    trained: list[Checkpoint] = []
    hooks = dataclasses.replace(loop.SILENT, on_epoch=lambda _, checkpoint: trained.append(checkpoint(False)))
    with CacheReader(cache) as reader:
        loop.train(reader, config, hooks)
        steps = Steps(TrainingData.of(reader, config, "cpu"), FEW)
        plans = steps.plans(4)
        order = epoch_rows(reader.rows("train"), reader.labels[reader.rows("train")], "both", 0, 1)
        assert order.tolist() == np.concatenate([part for plan in plans for part in plan.parts]).tolist()
        if is_timed:
            steps._watch.start()
        with contextlib.closing(steps._inputs.stream([part for plan in plans for part in plan.parts], 1)) as stream:
            steps._stepper.epoch(1, plans, stream, RunningMetrics(), lambda _: steps._watch.end_step(), lambda: False)

    assert trained[0].weights.keys() == steps.model.state_dict().keys()
    for name, tensor in steps.model.state_dict().items():
        assert torch.equal(trained[0].weights[name], tensor), name
    assert steps._watch.is_on == is_timed
    assert all((step["backward"] > 0) == is_timed for step in steps._watch.steps)


@pytest.mark.usefixtures("tiny_model")
def test_given_weights_are_those_that_are_measured(cache: Path) -> None:
    weights = TinyModel(2).state_dict()
    with CacheReader(cache) as reader:
        steps = Steps(TrainingData.of(reader, CONFIG, "cpu"), FEW, weights)

    assert all(torch.equal(tensor, weights[name]) for name, tensor in steps.model.state_dict().items())


def test_a_gpu_is_waited_for_on_both_sides_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: calls.append(str(device)))
    watch = Stopwatch(torch.device("cuda:1"))

    with watch.lap("augment"):
        calls.append("not timed")
    watch.start()
    with watch.lap("augment"):
        calls.append("augment")
    watch.end_step()

    assert ["not timed", "cuda:1", "cuda:1", "augment", "cuda:1", "cuda:1"] == calls
    assert watch.steps[0]["augment"] > 0 == watch.steps[0]["frozen"]


@pytest.mark.usefixtures("tiny_model")
def test_clips_are_copied_to_what_is_no_cpu(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    with CacheReader(cache) as reader:
        steps = Steps(TrainingData.of(reader, CONFIG, "cpu"), FEW)
        steps._device = torch.device("meta")
        assert 3 == steps.copy().count

    assert 8 == len(waited)  # a warm-up and 3 times, before and after


def test_repeats_are_cut_short_by_time_but_not_below_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    limit = Limit(repeats=7, seconds=10)

    assert [False, False, True] == [limit.is_over(count, 95) for count in (3, 6, 7)]
    assert [False, True] == [limit.is_over(count, 90) for count in (2, 3)]
    assert Limit(repeats=1).is_over(1, 100)


@pytest.mark.usefixtures("tiny_model")
def test_fewer_clips_than_a_batch_are_all_of_them(cache: Path) -> None:
    with CacheReader(cache) as reader:
        assert 16 == measure(reader, dataclasses.replace(CONFIG, batch_size=50), Limit(1)).batch_size


@pytest.mark.usefixtures("tiny_model")
def test_bf16_is_not_measured_where_it_crawls(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MAX_SLOWDOWN", 0)
    with CacheReader(cache) as reader:
        found = measure(reader, CONFIG, Limit(1))

    assert not found.frozen
    assert "2 frames of a clip take" in found.no_bf16
    assert found.no_bf16.endswith("times as long in it")


# --- cold reading -----------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot drop pages")
def test_the_pages_of_the_clips_are_dropped_in_each_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Spec(5, 16, 16)  # 3,840 bytes: clips share pages
    paths = [make_cache(tmp_path / f"{name}.h5", {"a": 4}, spec=odd, prefix=name) for name in "xy"]
    dropped: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, start, size, _: dropped.append((fd, start, size)))
    with ConcatReader(paths) as reader:
        assert drop_pages(reader, np.array([5, 0]))
        first, second = reader.readers

    page = os.sysconf("SC_PAGE_SIZE")
    assert [first.path, second.path] == paths
    assert 2 == len({fd for fd, _, _ in dropped})
    starts = [first.header.clips_offset, second.header.clips_offset + odd.clip_bytes]
    for (_, start, size), clip in zip(dropped, starts, strict=True):
        assert start % page == 0 == size % page
        assert start <= clip < clip + odd.clip_bytes <= start + size


def no_numbers(found: Measured) -> bool:
    return not found.cold and "cold" in judge(found).sentences[-1]


@pytest.mark.usefixtures("tiny_model")
def test_what_cannot_be_read_cold_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CacheReader(cache) as reader:
        monkeypatch.setattr(bench_reading, "bytes_from_disk", lambda: None)
        unseen = measure(reader, CONFIG, Limit(1))
        monkeypatch.setattr(bench_reading, "bytes_from_disk", lambda: 7)
        kept = measure(reader, CONFIG, Limit(1))
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
        impossible = measure(reader, CONFIG, Limit(1))

    if hasattr(os, "posix_fadvise"):
        assert unseen.cold
        assert "whether the clips had been dropped from memory cannot be seen here" == unseen.cold_note
        assert "100% of it still came from memory, after it was asked to drop the clips" == kept.cold_note
        assert no_numbers(kept)
    assert "the system cannot drop a file's pages from memory" == impossible.cold_note
    assert no_numbers(impossible)
    assert f"was not measured cold ({impossible.cold_note}), memory" in judge(impossible).sentences[-1]


def test_a_container_may_have_less_memory_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_reading, "CONTAINER_LIMIT", tmp_path / "memory.max")
    whole = memory_bytes()
    if whole is None:
        pytest.skip("this system does not say")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes() > 1 << 20  # type: ignore[operator]
    (tmp_path / "memory.max").write_text("1048576\n")
    assert 1 << 20 == memory_bytes()
    monkeypatch.setattr(Path, "read_text", mock.Mock(side_effect=OSError))
    assert memory_bytes() is None
    assert bench_reading.bytes_from_disk() is None


# --- what it means ----------------------------------------------------------------------------


def test_durations_have_three_digits() -> None:
    said = [bottleneck.in_time(seconds) for seconds in (123, 12.34, 1.5, 0.9999, 0.1234, 0.0123, 0.002, 0.00004)]

    assert ["123 s", "12.3 s", "1.50 s", "1.00 s", "123 ms", "12.3 ms", "2.00 ms", "0.04 ms"] == said
    assert ["7,123 MB/s", "0.46 MB/s"] == [bottleneck.in_mb(rate) for rate in (7123.4, 0.456)]


def times(*seconds: float) -> Times:
    return Times(seconds)


def measured(stages: dict[str, float] | None = None, **changes: Any) -> Measured:
    """A step of 4 clips of 1 MB, 1 s of work, read in 2 ms; `stages` and `changes` on top."""
    seconds = dict(zip(COMPUTE, (0.0, 0.05, 0.4, 0.15, 0.3, 0.08, 0.02), strict=True)) | (stages or {})
    return dataclasses.replace(
        Measured(
            batch_size=4,
            clip_bytes=1_000_000,
            num_train_clips=200,
            epoch_bytes=250_000_000,
            memory_bytes=10_000_000_000,
            load=0.5,
            num_cpus=2,
            reader_threads=2,
            freeze="layer2",
            augment="linear",
            amp="auto",
            precision="off",
            reason="made up",
            is_untrained=False,
            warm=Pair(times(0.002), times(0.002)),
            cold=Pair(times(0.02), times(0.02)),
            cold_note="",
            stages={name: times(value) for name, value in seconds.items()},
            step=times(1.0, 1.1, 1.2),
            waited_fraction=0.001,
            augmented=Pair(),
            frozen=Pair(),
            no_bf16="it crawls",
        ),
        **changes,
    )


def test_the_shares_are_of_reading_and_computing() -> None:
    shares = measured().shares

    assert pytest.approx(1) == sum(shares.values())
    assert pytest.approx(0.4 / 1.002) == shares["frozen"]
    assert pytest.approx(0.002 / 1.002) == shares["read_warm"]
    assert "read_cold" not in shares


@pytest.mark.parametrize("name", COMPUTE)
def test_the_longest_stage_is_the_bottleneck(name: str) -> None:
    verdict = judge(measured({name: 2.0}))

    assert ("compute", name) == (verdict.bound_by, verdict.bottleneck)
    assert verdict.sentences[0].startswith("Bound by compute: the work of a step takes ")
    assert f"Bottleneck: {NAMES[name]}, " in verdict.sentences[1]
    assert set(verdict.knobs) <= set(verdict.sentences)
    assert verdict.knobs


def test_frozen_stages_lead_to_bf16_and_a_feature_cache() -> None:
    frozen = Pair(times(0.5, 0.4, 0.6), times(0.25, 0.2, 0.3))

    auto = judge(measured(frozen=frozen, is_untrained=True)).knobs
    asked = judge(measured(frozen=frozen, amp="off")).knobs

    gain = (
        "the frozen stages in bf16 were measured x2.00 as fast (250 ms instead of 500 ms, n = 3), which would make the work "
        "of a step x1.25 as fast"
    )
    assert auto[0] == (
        f"To gain by bf16: {gain}; but --amp auto chose float32: made up. These weights are random: ask again with --ckpt, or "
        "--weights kinetics400."
    )
    assert asked[0] == f"Turn --amp auto, which takes bf16 where gradients stay right: {gain}."
    assert auto[1] == (
        "Give vidtrain --cache-features K: augmentation and frozen stages, measured 450 ms of 1.00 s, are computed once "
        "for K views of each clip and not in every epoch; without them a step is x1.82 as fast, less what reading their result costs. Each "
        "view of the 200 training clips takes 22.5 s to compute."
    )
    assert auto[2] == "Try fewer --num-frames (not measured): less is computed, and less can be learned."


def test_bf16_that_is_no_faster_is_said_to_be_none() -> None:
    slow = judge(measured(frozen=Pair(times(0.5), times(0.6)))).knobs[0]
    crawling = judge(measured()).knobs[0]

    assert slow == (
        "bf16 does not help: the frozen stages in it were measured x0.83 as fast (600 ms instead of 500 ms, n = 1)."
    )
    assert "bf16 does not help: it crawls." == crawling


def test_bf16_is_no_knob_where_it_is_turned_already() -> None:
    knobs = judge(measured(precision="bf16")).knobs

    assert "--cache-features" in knobs[0]
    prefix = judge(measured({"backward": 2.0}, precision="bf16-prefix", freeze="layer2")).knobs[0]
    assert "--amp auto chose bf16-prefix: made up." == prefix
    assert (
        "--amp auto (not measured)"
        in judge(measured({"backward": 2.0}, precision="bf16-prefix", amp="bf16-prefix")).knobs[0]
    )


@pytest.mark.parametrize(("freeze", "more"), [("none", "stem"), ("layer2", "layer3"), ("layer4", None), ("all", None)])
def test_training_less_is_something_to_try(freeze: str, more: str | None) -> None:
    knobs = judge(measured({"backward": 2.0, "frozen": 0.0 if freeze == "none" else 0.5}, freeze=freeze)).knobs

    assert (f"or --freeze {more} (not measured)" in knobs[-1]) == (more is not None)
    assert ("--cache-features" in " ".join(knobs)) == (freeze != "none")


def test_a_feature_cache_that_saves_nothing_is_not_named() -> None:
    knobs = judge(measured({"augment": 0.01, "frozen": 0.01, "backward": 2.0})).knobs

    assert "--cache-features" not in " ".join(knobs)


def test_augmentation_leads_to_linear_only_if_that_is_faster() -> None:
    faster = judge(measured({"augment": 2.0}, augment="exact", augmented=Pair(times(2.0), times(0.5)))).knobs
    no_faster = judge(measured({"augment": 2.0}, augment="exact", augmented=Pair(times(2.0), times(2.0)))).knobs
    is_linear = judge(measured({"augment": 2.0}, augmented=Pair(times(2.0), times(0.5)))).knobs

    assert "Turn --augment linear: measured x4.00 as fast (500 ms instead of 2.00 s, n = 1)." == faster[0]
    assert "--augment" not in " ".join([*no_faster, *is_linear])
    assert "--cache-features" in is_linear[0]


def test_what_is_done_once_a_step_leads_to_larger_batches() -> None:
    for name in ("optimizer", "other"):
        assert judge(measured({name: 2.0})).knobs == (
            f"Turn --batch-size 8: {NAMES[name]} is done once a step, measured 2.00 s (n = 1), 500 ms a clip; with twice the "
            "clips half of that.",
        )


def test_copying_leads_to_fewer_bytes() -> None:
    knob = judge(measured({"copy": 2.0})).knobs[0]

    assert "Try fewer --num-frames, or a cache of smaller pictures (vidcache build --size), both not measured" in knob


def test_slow_memory_leads_to_threads_if_they_help() -> None:
    helped = judge(measured(warm=Pair(times(4.0), times(2.0))))
    in_vain = judge(measured(warm=Pair(times(4.0), times(4.0))))

    assert ("reading", "read_warm") == (helped.bound_by, helped.bottleneck)
    assert helped.sentences[:2] == (
        "Bound by reading: the 4 clips of a step take 4.00 s to be read from memory, the work on them 1.00 s.",
        "Bottleneck: read from memory.",
    )
    assert "Turn --num-workers 4: measured x2.00 as fast (2.00 s instead of 4.00 s, n = 1)." == helped.knobs[0]
    assert in_vain.knobs == (
        "More --num-workers do not help: with 4, measured x1.00 as fast (4.00 s instead of 4.00 s, n = 1).",
        "Try fewer --num-frames (not measured): less of each clip is read.",
    )


def test_a_slow_disk_bounds_every_epoch_of_what_does_not_fit_into_memory() -> None:
    slow = Pair(times(4.0), times(3.0))

    large = judge(measured(cold=slow, memory_bytes=100_000_000))
    small = judge(measured(cold=slow))
    unknown = judge(measured(cold=slow, memory_bytes=None))

    assert ("reading", "read_cold") == (large.bound_by, large.bottleneck)
    assert "Turn --num-workers 4: measured x1.33 as fast" in large.knobs[0]
    assert large.knobs[1] == (
        "Give it more memory, or put the cache on a faster disk: from memory, measured x2000.0 as fast (2.00 ms, n = 1). The "
        "clips of an epoch need 0.25 GB, 0.10 GB are there."
    )
    assert "first epoch" not in " ".join(large.sentences)
    assert ("compute", "compute") == (small.bound_by, unknown.bound_by)
    first = "The first epoch is bound by reading: the clips of a step take 4.00 s to be read from the disk. Later ones are not,"
    assert f"{first} as the 0.25 GB of an epoch fit into memory (10.00 GB are there)." in small.sentences
    assert f"{first} if the 0.25 GB of an epoch fit into memory." in unknown.sentences
    ends = [found.sentences[-1].split("storage; ")[1] for found in (large, small, unknown)]
    assert ends == [
        "this disk gave 1 MB/s cold, memory 2,000 MB/s: not enough.",
        "this disk gave 1 MB/s cold, memory 2,000 MB/s: not enough for the first epoch, enough from memory.",
        "this disk gave 1 MB/s cold, memory 2,000 MB/s: not enough for the first epoch, enough from memory, if the clips of an "
        "epoch fit there.",
    ]


def test_the_storage_that_is_needed_is_that_of_the_fastest_step() -> None:
    by_stages, by_loop = judge(measured()).storage, judge(measured(step=times(0.5, 0.5))).storage

    assert pytest.approx((4, 4.0, 2000, 200)) == dataclasses.astuple(by_stages)[:4]
    assert (True, True) == (by_stages.is_enough, by_stages.is_enough_from_memory)
    assert pytest.approx((8, 8.0)) == (by_loop.clips_per_second, by_loop.needed_mb_per_second)
    assert judge(measured()).sentences[-1] == (
        "The device takes 4 clips/s, which needs 4 MB/s of storage; this disk gave 200 MB/s cold, memory 2,000 MB/s: enough."
    )
    unknown = judge(measured(cold=Pair(), cold_note="why"))
    assert (None, None) == (unknown.storage.cold_mb_per_second, unknown.storage.is_enough)
    assert unknown.sentences[-1].endswith("was not measured cold (why), memory 2,000 MB/s: enough from memory.")
    slow = Pair(times(4.0), times(4.0))
    assert judge(measured(cold=Pair(), warm=slow)).sentences[-1].endswith("memory 1 MB/s: not enough.")


def test_the_loop_is_compared_with_its_stages() -> None:
    assert judge(measured()).sentences[-2] == (
        "The loop as it trains took 1.10 s a step (1.00 s to 1.20 s, n = 3), 0.1% of it waiting for clips; its stages, one "
        "after the other, take 1.00 s."
    )


def test_a_machine_with_other_work_is_named() -> None:
    stages = dict(measured().stages)
    vary, tiny_one = {**stages, "frozen": times(0.3, 0.4, 0.6)}, {**stages, "other": times(0.01, 0.02, 0.5)}
    why = (
        "something else takes the machine's time (load 9.5 on 2 CPUs before this began). Measure again when it is idle."
    )

    steps = judge(measured(step=times(0.8, 2.0), load=9.5)).sentences[-2]
    stage = judge(dataclasses.replace(measured(load=9.5), stages=vary))
    loop_alone = judge(measured(step=times(3.0, 3.0), load=None)).sentences[-2]

    assert f"Equal work took up to x2.5 as long: {why}" == steps
    assert f"Equal work took up to x2.0 as long: {why}" == stage.sentences[-2]
    assert loop_alone == (
        "Without waiting, the loop took x3.0 as long as its stages: something else takes the machine's time. Measure again "
        "when it is idle."
    )
    assert "Measure again" not in " ".join(judge(dataclasses.replace(measured(), stages=tiny_one)).sentences)
    assert "Measure again" not in " ".join(judge(measured(step=times(3.0, 3.0), waited_fraction=0.7)).sentences)


# --- a reader that is slow --------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_model")
def test_a_slow_reader_is_the_bottleneck(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = CacheReader._read_clip

    def crawl(self: Reader, row: int, frames: Any, out: npt.NDArray[np.uint8], verify: bool) -> None:
        time.sleep(0.03)
        read(self, row, frames, out, verify)  # type: ignore[arg-type]

    monkeypatch.setattr(CacheReader, "_read_clip", crawl)
    with CacheReader(cache) as reader:
        found = measure(reader, dataclasses.replace(CONFIG, reader_threads=1), FEW)

    verdict = judge(found)
    assert ("reading", "read_warm") == (verdict.bound_by, verdict.bottleneck)
    assert found.waited_fraction > 0.5
    assert found.shares["read_warm"] > 0.5
    assert "Turn --num-workers 2: measured x" in verdict.knobs[0]
    assert not verdict.storage.is_enough_from_memory
    assert verdict.sentences[-1].endswith(": not enough.")


# --- errors -----------------------------------------------------------------------------------


def test_a_cache_without_training_clips_is_refused(cache: Path) -> None:
    with CacheReader(cache) as reader:
        reader.columns["split"][:] = Split.TEST
        with pytest.raises(
            InputError, match=r"c\.h5: no train clips, expected at least one\. Build it with --split 70/15/15"
        ):
            measure(reader, CONFIG, FEW)


@pytest.mark.usefixtures("tiny_model")
def test_full_memory_names_what_to_try(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forward, "rest", mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    message = r"out of memory with 4 clips of 8 frames at once \(CUDA out of memory\).*Try --batch-size 2, or --grad-accum-steps 2"
    with CacheReader(cache) as reader, pytest.raises(VidcacheError, match=message):
        measure(reader, CONFIG, FEW)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--num-frames", 9), 2, "c.h5: num_frames_used 9, expected 1 to 8, the frames of a clip"),
        (("--amp", "fp16"), 2, "--amp fp16: not on a CPU, expected a GPU"),
        (
            ("--amp", "bf16-prefix", "--freeze", "none"),
            2,
            "--amp bf16-prefix: nothing is frozen, expected --freeze stem",
        ),
        (("--device", "cuda"), 2, "sees no GPU"),
        (("--ckpt", "no.pt", "--weights", "none"), 2, "--weights: means nothing with --ckpt; choose one of them"),
        (("--ckpt", "no.pt"), 5, "no.pt: No such file or directory"),
    ],
)
def test_what_cannot_be_measured_is_said(cache: Path, arguments: tuple[object, ...], code: int, message: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with tiny():
        result = CliRunner().invoke(cli.main, ["bench", str(cache), *map(str, arguments)])

    assert code == result.exit_code
    assert message in " ".join(result.stderr.split())


def test_a_checkpoint_of_another_shape_is_refused(cache: Path, tmp_path: Path) -> None:
    ckpt = save_checkpoint(tmp_path / "best.pt", cache, spec=Spec(8, 32, 32))

    result = call(cache, "--ckpt", ckpt)

    assert 5 == result.exit_code
    assert f"{ckpt}: trained on 8 frames of 32x32, but {cache} has 8 frames of 64x64" in result.stderr


def test_options_of_another_version_are_refused(cache: Path, tmp_path: Path) -> None:
    ckpt = save_checkpoint(tmp_path / "best.pt", cache, config={"speed": "ludicrous"})

    result = call(cache, "--ckpt", ckpt)

    assert 5 == result.exit_code
    assert (
        f"{ckpt}: options of another version of vidcache ('speed' is not known), expected those of this one"
        in result.stderr
    )
    assert "or measure without --ckpt" in result.stderr


# --- the command ------------------------------------------------------------------------------


def test_the_table_and_the_sentences(cache: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in cache.parent.iterdir()}

    result = call(cache, "--batch-size", 4, "--amp", "off")

    assert 0 == result.exit_code, result.stderr
    said = result.stdout
    assert (
        f"{cache}: 4 clips a step, 8 frames of 64x64, R3D-18, frozen: layer2, weights: none, float32 (as asked)" in said
    )
    assert f"torch {torch.__version__}, Python" in said
    assert f"{torch.get_num_threads()} thread" in said
    assert "2 reader threads" in said
    for name in NAMES.values():
        assert f"│ {name} " in said
    for piece in ("augmentation (linear)", "the loop itself", "Bottleneck: ", "Bound by ", "clips/s, which needs "):
        assert piece in said
    assert "" == result.stderr
    assert before == {path: path.read_bytes() for path in cache.parent.iterdir()}


def test_json_is_one_object_with_everything(cache: Path) -> None:
    facts = facts_of(cache, "--amp", "off")

    assert set(NAMES) == set(facts["stages"])
    assert pytest.approx(1) == sum(stage["share"] or 0 for stage in facts["stages"].values())
    assert {"ms_per_step", "ms_per_clip", "min_ms", "max_ms", "n", "share"} == set(facts["stages"]["backward"])
    backward = facts["stages"]["backward"]
    assert pytest.approx(backward["ms_per_step"]) == backward["ms_per_clip"] * facts["batch_size"]
    assert 2 == facts["batch_size"]  # on a CPU
    assert "cpu" == facts["device"]
    assert facts["device_name"]
    assert {"vidcache", "torch", "python"} == set(facts["versions"])
    assert facts["bound_by"] in ("compute", "reading")
    assert facts["bottleneck"] in NAMES
    assert set(facts["knobs"]) <= set(facts["sentences"])
    assert pytest.approx(2000 / facts["loop"]["ms_per_step"]) == facts["loop"]["clips_per_second"]
    assert {"clips_per_second", "needed_mb_per_second", "warm_mb_per_second", "is_enough"} < set(facts["storage"])
    assert {"augment", "frozen_bf16"} < set(facts["other_ways"])


def test_options_change_what_is_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[tuple[int, ...]] = set()
    methods: list[str] = []
    pixels = ClipLoader.pixels

    def watch(self: ClipLoader, batch: Any, epoch: int | None) -> torch.Tensor:
        shapes.add(tuple(batch.clips.shape[:2]))
        methods.append(self._task.config.augment)
        return pixels(self, batch, epoch)

    monkeypatch.setattr(ClipLoader, "pixels", watch)
    monkeypatch.setattr(bench, "MAX_SLOWDOWN", math.inf)
    monkeypatch.setattr(
        bench,
        "try_precision",
        lambda task, *_: Choice("off" if task.config.amp == "off" else "bf16-prefix", task.config.amp),
    )
    plain = facts_of(cache, "--amp", "off")
    assert {(2, 8)} == shapes
    assert methods.count("linear") > methods.count("exact") > 0
    shapes.clear()
    methods.clear()
    other = facts_of(
        *(cache, "--batch-size", 6, "--grad-accum-steps", 3, "--num-frames", 4, "--freeze", "none", "--amp", "auto"),
        *("--augment", "exact", "--num-workers", 3, "--weights", "none"),
    )

    assert {(2, 4)} == shapes  # 6 clips in 3 parts
    assert methods.count("exact") > methods.count("linear") > 0
    changed = {
        "batch_size": (2, 6),
        "accumulate": (1, 3),
        "num_frames_used": (8, 4),
        "clip_bytes": (SPEC.clip_bytes, SPEC.clip_bytes // 2),
        "freeze": ("layer2", "none"),
        "amp": ("off", "auto"),
        "precision": ("off", "bf16-prefix"),
        "precision_reason": ("off", "auto"),
        "augment": ("linear", "exact"),
        "reader_threads": (2, 3),
    }
    assert changed == {name: (plain[name], other[name]) for name in changed}
    frozen, whole = (facts["stages"]["frozen"]["min_ms"] / facts["batch_size"] for facts in (plain, other))
    assert whole < frozen / 2  # what is frozen with --freeze layer2 is part of the rest with none
    assert plain["other_ways"]["frozen_bf16"]["n"] == 3
    assert other["other_ways"]["frozen_bf16"]["n"] == 0
    assert plain["other_ways"]["augment"]["n"] == other["other_ways"]["augment"]["n"] == 3


def test_weights_are_those_that_are_asked_for(cache: Path) -> None:
    asked: list[str] = []

    def build(num_classes: int, weights: str, freeze: str) -> TinyModel:
        asked.append(weights)
        return TinyModel(num_classes, freeze)

    with tiny(), mock.patch.object(bench, "build_model", build):
        for weights in ("none", "kinetics400"):
            arguments = ["bench", str(cache), "--weights", weights, "--repeats", "1", "--device", "cpu", "--json"]
            result = CliRunner().invoke(cli.main, arguments)
            assert weights == json.loads(result.stdout)["weights"]

    assert ["none", "kinetics400"] == asked


def test_compile_hands_the_model_to_torch_compile(cache: Path) -> None:
    compiled: list[object] = []
    with mock.patch.object(torch, "compile", lambda model: compiled.append(model) or model):
        assert not facts_of(cache, "--amp", "off")["compile"]
        assert [] == compiled
        assert facts_of(cache, "--amp", "off", "--compile")["compile"]

    assert 2 == len(compiled)


def test_repeats_and_seconds_bound_the_work(cache: Path) -> None:
    with tiny():
        counts = [
            json.loads(
                CliRunner()
                .invoke(cli.main, ["bench", str(cache), "--amp", "off", "--device", "cpu", "--json", *more])
                .stdout
            )["loop"]["n"]
            for more in (["--repeats", "5"], ["--repeats", "5", "--seconds", "0"])
        ]

    assert [5, 3] == counts


def test_a_checkpoint_brings_its_options_and_the_command_line_comes_first(cache: Path, tmp_path: Path) -> None:
    ckpt = save_checkpoint(tmp_path / "best.pt", cache, fingerprint="of other clips")

    its_own, changed = facts_of(cache, "--ckpt", ckpt), facts_of(cache, "--ckpt", ckpt, "--freeze", "layer2")

    assert (4, "none", "exact") == tuple(its_own[name] for name in ("num_frames_used", "freeze", "augment"))
    assert (str(ckpt), 2) == (its_own["weights"], its_own["batch_size"])
    assert (4, "layer2", "exact") == tuple(changed[name] for name in ("num_frames_used", "freeze", "augment"))


def test_several_caches_are_measured_as_one(tmp_path: Path) -> None:
    paths = [make_cache(tmp_path / f"{name}.h5", {"a": 8}, spec=SPEC, prefix=name) for name in "xy"]

    facts = facts_of(*paths, "--amp", "off")

    assert f"{paths[0]} + {paths[1]}" == facts["cache"]
    with ConcatReader(paths) as reader:
        assert len(reader.rows("train")) == facts["num_train_clips"]


def test_help_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from vidcache.cli import main; main(['bench', '--help'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "vidcache bench cache.h5 --ckpt best.pt" in said
