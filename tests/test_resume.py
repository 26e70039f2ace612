"""A run that is stopped or killed and resumed is the run that was not: the same weights, bit for bit."""

import csv
import dataclasses
import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import make_cache, tiny_models
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, InterruptedRunError, MismatchError
from vidcache.train.callbacks import Callback, EpochResult, RunResult
from vidcache.train.cli import main as vidtrain
from vidcache.train.config import TrainConfig
from vidcache.train.loop import train
from vidcache.train.run import RunFiles, resumed_config, run_training
from vidcache.train.shutdown import GracefulShutdown

# 22 training clips: 3 epochs of 4 steps, the last of which is short.
CONFIG = TrainConfig(
    weights="none", freeze="none", epochs=3, batch_size=6, amp="off", lr=1e-2, seed=3, lr_schedule="cosine",
    warmup_epochs=1.5, min_epochs=3,
)  # fmt: skip
FLAGS = (
    "--weights none --epochs 3 --batch-size 6 --amp off --lr 1e-2 --seed 3 --lr-schedule cosine --warmup-epochs 1.5 "
    "--min-epochs 3 --device cpu"
).split()
STEPS = 12
CHECKOUT = Path(__file__).parents[1]
CLOCK = ("seconds", "clips_per_second", "data_wait_fraction")


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny_models():
        yield


@pytest.fixture(scope="module")
def cache(learnable_cache: Path) -> Path:
    return learnable_cache


@pytest.fixture(scope="module")
def golden(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stops."""
    out = tmp_path_factory.mktemp("golden") / "best.pt"
    with tiny_models():
        run_training([cache], out, CONFIG)
    return out


class StopAfter:
    """Says so once, after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def plain(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    return [{name: value for name, value in result.items() if name not in CLOCK} for result in results]


def plain_epochs(result: RunResult) -> list[dict[str, Any]]:
    return plain(map(dataclasses.asdict, result.epochs))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(map(equal, one, other)) if isinstance(one, list) else bool(one == other)


def assert_same_run(golden: Path, out: Path) -> None:
    for path in ("best.pt", "best.run/last.pt"):
        expected, found = (Checkpoint.load(folder.parent / path) for folder in (golden, out))
        assert equal(expected.weights, found.weights), path
        assert expected.epoch == found.epoch
    for name in ("optimizer", "scaler", "stopping", "precision"):
        assert equal(expected.training[name], found.training[name]), name
    assert plain(expected.training["results"]) == plain(found.training["results"])
    assert 0 == found.training["sums"]["num_steps"]
    tables = [(folder.parent / "best.run" / "metrics.csv").read_text().splitlines() for folder in (golden, out)]
    assert plain(csv.DictReader(tables[0])) == plain(csv.DictReader(tables[1]))


@pytest.mark.parametrize("steps", [1, 4, 6, 11])
def test_a_run_stopped_after_any_step_ends_the_same(cache: Path, golden: Path, tmp_path: Path, steps: int) -> None:
    out = tmp_path / "best.pt"

    with pytest.raises(InterruptedRunError, match="train: stopped (in epoch|after epoch) [123]"):
        run_training([cache], out, CONFIG, should_stop=StopAfter(steps))
    result = run_training([cache], out, resumed_config(out), resume=True)

    assert 3 == len(result.epochs)
    assert_same_run(golden, out)


def test_a_run_stopped_after_every_step_ends_the_same(cache: Path, golden: Path, tmp_path: Path) -> None:
    out, stops = tmp_path / "best.pt", 0

    while True:
        try:
            run_training([cache], out, CONFIG, resume=stops > 0, should_stop=StopAfter(1))
        except InterruptedRunError:
            stops += 1
            continue
        break

    assert stops >= STEPS - 1
    assert_same_run(golden, out)


def test_early_stopping_and_the_best_epoch_are_remembered(cache: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=20, lr=0.05, lr_schedule="none", patience=2, min_delta=0.1)

    def run(resume: Checkpoint | None = None, stop: int = 10**9) -> tuple[RunResult | None, list[Checkpoint]]:
        saved: list[Checkpoint] = []
        keep = Callback(on_epoch=lambda _r, _m, checkpoint: saved.append(checkpoint(True)), on_stop=saved.append)
        with CacheReader(cache) as reader:
            try:
                return train(reader, config, [keep], resume=resume, should_stop=StopAfter(stop)), saved
            except InterruptedRunError:
                return None, saved

    whole, _ = run()
    assert whole
    assert len(whole.epochs) < 20
    _, saved = run(stop=4 * (len(whole.epochs) - 2) + 2 + len(whole.epochs) - 2)
    rest, _ = run(saved[-1])

    assert rest
    assert plain_epochs(whole) == plain_epochs(rest)
    assert (whole.best_epoch, whole.stopped_because) == (rest.best_epoch, rest.stopped_because)


# --- killed, by signals --------------------------------------------------------------------------

# At one place it waits: in an operation of torch that takes minutes, in which no handler of Python runs, or some seconds.
PROGRAM = """
import os, sys, time, torch
from tests.helpers import tiny_models
from vidcache.checkpoint import Checkpoint
from vidcache.train import run
from vidcache.train.cli import main
from vidcache.train.loop import Trainer
left, seconds = [int(os.environ["AFTER"])], float(os.environ["SECONDS"])
def wait():
    left[0] -= 1
    if left[0] < 0:
        print("there", flush=True)
        time.sleep(seconds) if seconds else torch.cdist(torch.ones(4000, 8000), torch.zeros(4000, 8000), p=2.5)
def waiting(inner):
    def called(*arguments, **settings):
        result = inner(*arguments, **settings)
        if WHERE != "step" or arguments[0].model.training:
            wait()
        return result
    return called
WHERE = os.environ["WHERE"]
place, name = {
    "step": (Trainer, "run_frozen"), "validation": (Trainer, "validate"), "before": (run, "find_leaks"),
    "saving": (Checkpoint, "save"),
}[WHERE]
setattr(place, name, waiting(getattr(place, name)))
with tiny_models(): main(sys.argv[1:])
"""


def start(cache: Path, out: Path, where: str, after: int, seconds: float = 0) -> "subprocess.Popen[str]":
    """Start a run, and return when it waits."""
    variables = {"WHERE": where, "AFTER": str(after), "SECONDS": str(seconds), "PYTHONPATH": str(CHECKOUT)}
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where tests run in the background
    command = [sys.executable, "-c", PROGRAM, str(cache), "--out", str(out), *FLAGS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | variables, preexec_fn=heed, **pipes)  # type: ignore[call-overload]
    assert "there" in process.stdout.readline()
    return process  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("where", "after", "seconds", "number", "place"),
    [
        ("step", 6, 300, signal.SIGKILL, ""),
        # A machine that is busy may not get through the step in time.
        pytest.param("step", 5, 0.5, signal.SIGTERM, "epoch 2, after [12] of its steps", marks=pytest.mark.slow),
        pytest.param("step", 0, 0, signal.SIGINT, "epoch 1, after 0 of its steps", marks=pytest.mark.slow),
        pytest.param("step", 6, 0, signal.SIGTERM, "epoch 2, after 2 of its steps", marks=pytest.mark.slow),
        pytest.param("validation", 1, 0, signal.SIGINT, "epoch 2, after 4 of its steps", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_or_stopped_anywhere_goes_on(
    cache: Path,
    golden: Path,
    tmp_path: Path,
    where: str,
    after: int,
    seconds: float,
    number: signal.Signals,
    place: str,
) -> None:
    out = tmp_path / "best.pt"
    with start(cache, out, where, after, seconds) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)

    if number == signal.SIGKILL:
        assert -signal.SIGKILL == process.returncode
    else:
        assert 130 == process.returncode, stderr
        assert "stopping after this step, or in the middle of a long one; Ctrl-C again stops at once" in stderr
        assert re.search(f"Error: train: stopped in {place}. Continue with: vidtrain ... --resume\n$", stderr)
        assert [] == list(tmp_path.rglob("*.tmp*"))
    last = Checkpoint.load(tmp_path / "best.run" / "last.pt")
    assert (last.epoch > 0) == bool(last.training["best"])  # the hash of best.pt, where there is one
    assert 0 == call(cache, out, "--resume").exit_code
    assert_same_run(golden, out)


@pytest.mark.slow
def test_before_there_is_a_run_the_first_signal_ends_it(cache: Path, tmp_path: Path) -> None:
    with start(cache, tmp_path / "best.pt", "before", 0) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=100)

    assert 130 == process.returncode, stderr
    assert stderr.endswith("Error: interrupted; a run that had begun can be resumed with --resume\n")
    assert "stopping" not in stderr


@pytest.mark.slow
def test_a_second_signal_stops_at_once(cache: Path, golden: Path, tmp_path: Path) -> None:
    """While the disk is slow: the last checkpoint of the first epoch is being written."""
    out = tmp_path / "best.pt"
    with start(cache, out, "saving", 2) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # at once: the same wish, passed on twice
        assert process.stderr is not None
        assert any("stopping after this step" in line for line in iter(process.stderr.readline, ""))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)  # it waits for the checkpoint
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=100)

    assert 130 == process.returncode
    assert "Error: interrupted; a run that had begun can be resumed with --resume\n" == stderr
    assert 0 == call(cache, out, "--resume").exit_code
    assert_same_run(golden, out)


def test_the_wish_to_stop_leaves_what_is_ignored_and_interrupts_nothing() -> None:
    told: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))

    with GracefulShutdown(lambda: None, lambda _: None) as stop:
        stop.halt_with(lambda: None)
        signal.raise_signal(signal.SIGINT)
        assert not stop.is_requested()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_requested()
    assert [] == told


# --- the command -----------------------------------------------------------------------------------


def call(cache: Path, out: Path, *arguments: str) -> Result:
    command: click.Command = vidtrain
    return CliRunner().invoke(command, [str(cache), "--out", str(out), *arguments])


@pytest.fixture
def stopped(cache: Path, tmp_path: Path) -> Path:
    out = tmp_path / "best.pt"
    with pytest.raises(InterruptedRunError):
        run_training([cache], out, CONFIG, should_stop=StopAfter(6))
    return out


def test_resume_takes_the_options_of_the_run_and_refuses_others(cache: Path, golden: Path, stopped: Path) -> None:
    for option in (("--lr", "0.5"), ("--epochs", "9"), ("--augment", "exact"), ("--hue", "0.3")):
        result = call(cache, stopped, "--resume", *option)
        assert 2 == result.exit_code, result.output
        assert f"{option[0]} {option[1]}" in result.stderr
        assert "Leave it out, or begin a new run with another --out" in result.stderr.replace("\n", " ")

    result = call(cache, stopped, "--resume", "--lr", "0.01", "--num-workers", "1", "--json")

    assert 0 == result.exit_code, result.stderr
    assert 3 == json.loads(result.stdout)["num_epochs"]
    assert "precision: float32\n" in result.stderr
    assert_same_run(golden, stopped)


def test_a_run_that_is_written_through_a_link_goes_on(cache: Path, golden: Path, stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "name.pt").symlink_to(stopped.name)

    assert 0 == call(cache, tmp_path / "name.pt", "--resume").exit_code

    assert_same_run(golden, stopped)


@pytest.mark.parametrize("option", ["--lr inf", "--clip-grad-norm nan", "--min-delta inf", "--brightness nan"])
def test_a_number_that_is_not_finite_is_refused(cache: Path, tmp_path: Path, option: str) -> None:
    result = call(cache, tmp_path / "best.pt", *option.split())

    assert 2 == result.exit_code
    assert f"{option.split()[1]} is not a finite number." in result.stderr


def test_a_new_run_over_an_old_one_is_the_one_that_goes_on(cache: Path, golden: Path, tmp_path: Path) -> None:
    """Stopped in its first epoch: nothing is left that could be mistaken for one of its files."""
    out = tmp_path / "best.pt"
    run_training([cache], out, dataclasses.replace(CONFIG, seed=77))

    with pytest.raises(InterruptedRunError):
        run_training([cache], out, CONFIG, overwrite=True, should_stop=StopAfter(2))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {"best.run", *(f"best.run/{name}" for name in ("config.json", "last.pt", "train_batch.png"))} == left
    run_training([cache], out, resumed_config(out), resume=True)

    assert_same_run(golden, out)


def test_a_run_killed_between_its_last_files_gets_them(cache: Path, golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.pt"
    run_training([cache], out, CONFIG)
    table = tmp_path / "best.run" / "metrics.csv"
    whole = table.read_text()
    table.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    (tmp_path / "best.run" / "curves.png").unlink()

    run_training([cache], out, resumed_config(out), resume=True)

    assert whole == table.read_text()
    assert (tmp_path / "best.run" / "curves.png").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"shuffle_labels": True},
        {"balance": "none", "augment": "exact", "num_frames_used": 2},
        {"clip_norm": 0.1, "label_smoothing": 0.1, "freeze": "stem"},
        {"amp": "bf16"},
    ],
)
def test_other_options_go_on_too(cache: Path, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, epochs=2, **changes)
    stopped: list[Checkpoint] = []
    with CacheReader(cache) as reader:
        whole = train(reader, config)
        with pytest.raises(InterruptedRunError):
            train(reader, config, [Callback(on_stop=stopped.append)], should_stop=StopAfter(2))
        rest = train(reader, config, resume=stopped[0])

    assert plain_epochs(whole) == plain_epochs(rest)


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(cache: Path, stopped: Path) -> None:
    last = stopped.parent / "best.run" / "last.pt"
    before = last.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        result = call(cache, stopped, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert 1 == result.exit_code
    assert re.search(r"Error: \S+/best\.run/\S+: File too large", result.stderr)
    assert before == last.read_bytes()
    assert [] == list(stopped.parent.rglob("*.tmp"))


def test_resume_needs_the_same_clips_and_the_state_of_a_run(cache: Path, stopped: Path, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "o.h5", {"a": 16, "b": 16}, learnable=True, seed=1)
    last = stopped.parent / "best.run" / "last.pt"
    whole, best = Checkpoint.load(last), stopped.read_bytes()

    with pytest.raises(InputError, match="none.run/last.pt: missing: there is no run to resume"):
        resumed_config(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"last.pt: its run has batch_size 6, not 4. Use another --out"):
        run_training([cache], stopped, dataclasses.replace(CONFIG, batch_size=4), resume=True)
    with pytest.raises(MismatchError, match=r"last.pt: trained on cache \w+, but .*o.h5 is \w+"):
        run_training([other], stopped, CONFIG, resume=True)
    last.write_bytes(best)
    with pytest.raises(MismatchError, match=r"last.pt: not the state of a run \(optimizer is missing\). Train again"):
        run_training([cache], stopped, CONFIG, resume=True)
    dataclasses.replace(whole, config={**whole.config, "magic": 1}).save(last)
    with pytest.raises(MismatchError, match="last.pt: options of another version of vidcache .*magic"):
        resumed_config(stopped)


def cut(out: Path) -> None:
    """As a power failure leaves it."""
    os.truncate(out, out.stat().st_size // 2)


def pipe(out: Path) -> None:
    out.unlink()
    os.mkfifo(out)


def other_epoch(out: Path) -> None:
    """A whole checkpoint of the same run, but of no epoch that it said was the best."""
    dataclasses.replace(Checkpoint.load(out), epoch=7, metrics={}).save(out)


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [(Path.unlink, 2, "missing"), *((change, 5, "damaged, or another file") for change in (cut, pipe, other_epoch))],
)
def test_only_the_best_checkpoint_of_the_run_is_taken_for_it(
    cache: Path, golden: Path, stopped: Path, change: Any, code: int, what: str
) -> None:
    last = stopped.parent / "best.run" / "last.pt"
    saved = stopped.read_bytes()
    change(stopped)

    result = call(cache, stopped, "--resume")

    assert code == result.exit_code, result.stderr
    assert result.stderr.endswith(
        f"Error: {stopped}: {what}: not the checkpoint of epoch 1, the best one. Put it back; or begin a new "
        f"run with the weights of epoch 1: --init {last} --out OTHER.pt\n"
    )
    if change is cut:  # each advice works
        begun = call(cache, stopped.with_name("other.pt"), "--init", str(last), "--epochs", "1", "--device", "cpu")
        assert 0 == begun.exit_code, begun.stderr
    stopped.unlink(missing_ok=True)
    stopped.write_bytes(saved)
    assert 0 == call(cache, stopped, "--resume").exit_code
    assert_same_run(golden, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["on_stop", "_publish_best"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_run_killed_while_the_best_checkpoint_is_replaced_goes_on(
    cache: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    """After it was written and before last.pt, or after last.pt and before it takes its place."""
    out, calls, inner = tmp_path / "best.pt", [], getattr(RunFiles, moment)

    def killed(self: RunFiles, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == number + (moment == "on_stop"):  # the first call of `on_stop` begins the run
            raise SystemExit
        inner(self, *arguments)

    monkeypatch.setattr(RunFiles, moment, killed)
    with pytest.raises(SystemExit):
        run_training([cache], out, CONFIG)
    monkeypatch.undo()
    with tiny_models():
        run_training([cache], out, resumed_config(out), resume=True)

    assert_same_run(golden, out)
    assert ["best.pt", "best.run"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_best_checkpoint_that_somebody_replaces_meanwhile_is_not_called_ours(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.pt"

    def replace(result: EpochResult, *_: object) -> None:
        if result.epoch == 3:
            out.write_text("my thesis\n")

    with pytest.raises(
        MismatchError, match=r"best.pt: damaged, or another file: not the checkpoint of epoch [123], the best"
    ):
        run_training([cache], out, CONFIG, [Callback(on_epoch=replace)])
    assert "my thesis\n" == out.read_text()
    assert 3 == Checkpoint.load(tmp_path / "best.run" / "last.pt").epoch


def test_a_flipped_bit_in_the_last_checkpoint_is_found(cache: Path, stopped: Path) -> None:
    last = stopped.parent / "best.run" / "last.pt"
    data = bytearray(last.read_bytes())
    with zipfile.ZipFile(last) as archive:
        content = max((archive.read(member) for member in archive.namelist()), key=len)
    data[data.find(content) + len(content) // 2] ^= 4
    last.write_bytes(data)

    result = call(cache, stopped, "--resume")

    assert 5 == result.exit_code
    assert "is damaged (its CRC differs)" in result.stderr
