"""Training: what is frozen stays, the best epoch is kept, the same seed is the same run."""

import csv
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from tests.helpers import make_cache, tiny_models
from vidcache import model as model_module
from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import Batch, stream_batches
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, MismatchError, VidcacheError
from vidcache.eval.inference import load_model, predict
from vidcache.model import R3D18, build_model
from vidcache.spec import Spec
from vidcache.train import loop, precision
from vidcache.train.augment import Strength
from vidcache.train.backbone import Forward
from vidcache.train.callbacks import Callbacks, EpochProgress, EpochResult, RunResult, batch_strips, to_pictures
from vidcache.train.cli import main as vidtrain
from vidcache.train.config import TrainConfig
from vidcache.train.data import TrainingData
from vidcache.train.loop import Loss, Stepper, train
from vidcache.train.precision import choose_precision
from vidcache.train.run import run_training

TINY = TrainConfig(weights="none", freeze="none", epochs=2, batch_size=4, amp="off", lr=1e-2, seed=3)


@pytest.fixture
def tiny() -> Iterator[None]:
    """The loop around a model that costs nothing."""
    with tiny_models():
        yield


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 clips of 2 classes that differ in where a stripe moves."""
    path = tmp_path_factory.mktemp("learn") / "c.h5"
    return make_cache(path, {"a": 16, "b": 16}, spec=Spec(4, 16, 16), learnable=True)


def run(path: Path, config: TrainConfig = TINY) -> tuple[RunResult, list[Checkpoint]]:
    saved: list[Checkpoint] = []
    with CacheReader(path) as reader:
        hooks = Callbacks(on_epoch=lambda _, checkpoint: saved.append(checkpoint(True)))
        return train(reader, config, hooks), saved


@pytest.fixture(scope="module")
def trained(learnable: Path) -> tuple[RunResult, list[Checkpoint]]:
    with tiny_models():
        return run(learnable, dataclasses.replace(TINY, epochs=4))


def test_r3d_18_learns_and_what_is_frozen_stays_bit_identical(learnable: Path) -> None:
    config = dataclasses.replace(TINY, epochs=3, freeze="layer2", lr=1e-3, balance="none")
    torch.manual_seed(config.seed)
    before = {name: tensor.clone() for name, tensor in build_model(2, "none", "layer2").state_dict().items()}

    with CacheReader(learnable) as reader:
        saved: list[Checkpoint] = []
        keep_last = Callbacks(on_epoch=lambda r, checkpoint: saved.append(checkpoint(False)) if r.epoch == 3 else None)
        result = train(reader, config, keep_last)

    assert result.epochs[-1].train_accuracy > 0.65
    frozen = [name for name in before if name.split(".")[0] in ("stem", "layer1", "layer2")]
    assert 60 == len(frozen)
    assert 10 == sum(name.endswith("running_mean") for name in frozen)
    for name, tensor in saved[0].weights.items():
        assert (name in frozen) == torch.equal(before[name], tensor), name


@pytest.mark.usefixtures("tiny")
def test_the_same_seed_is_the_same_run_and_threads_change_nothing(
    learnable: Path, trained: tuple[RunResult, list[Checkpoint]]
) -> None:
    again = run(learnable, dataclasses.replace(TINY, epochs=2, reader_threads=1))[1]

    for one, two in zip(trained[1], again, strict=False):
        assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
        assert one.metrics["train_loss"] == two.metrics["train_loss"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"lr": 2e-3},
        {"weight_decay": 0.1},
        {"batch_size": 8},
        {"accumulate": 2},
        {"balance": "none"},
        {"augment": "none"},
        {"augment": "exact"},
        {"strength": Strength(flip=0)},
        {"num_frames_used": 2},
        {"freeze": "stem"},
        {"shuffle_labels": True},
    ],
)
@pytest.mark.usefixtures("tiny")
def test_every_setting_changes_the_run(
    learnable: Path, trained: tuple[RunResult, list[Checkpoint]], change: dict[str, object]
) -> None:
    _, (other,) = run(learnable, dataclasses.replace(TINY, epochs=1, **change))  # type: ignore[arg-type]

    assert any(not torch.equal(trained[1][0].weights[name], other.weights[name]) for name in other.weights)


@pytest.mark.usefixtures("tiny")
def test_validation_loss_is_exact_whatever_the_batch_size(
    learnable: Path, trained: tuple[RunResult, list[Checkpoint]]
) -> None:
    checkpoint = trained[1][-1]
    with CacheReader(learnable) as reader:
        model = load_model(checkpoint, "x", "cpu")
        rows = reader.rows("val")
        losses = [predict(model, stream_batches(reader, rows, size)).mean_loss for size in (1, 3, len(rows))]
        single = [
            float(nn.functional.cross_entropy(torch.log(torch.tensor(p.probabilities)), torch.tensor(p.labels)))
            for p in (predict(model, stream_batches(reader, np.array([row]), 1)) for row in rows)
        ]
    assert pytest.approx([np.mean(single)] * 3, abs=1e-5) == losses
    assert pytest.approx(checkpoint.metrics["val_loss"], abs=1e-5) == losses[0]


@pytest.mark.usefixtures("tiny")
def test_fewer_frames_are_used_in_training_and_stored(learnable: Path) -> None:
    _, (checkpoint,) = run(learnable, dataclasses.replace(TINY, epochs=1, num_frames_used=2))

    assert (2, 4) == (checkpoint.num_frames_used, checkpoint.spec.num_frames)
    with pytest.raises(InputError, match="num_frames_used 5, expected 1 to 4, the frames of a clip"):
        run(learnable, dataclasses.replace(TINY, num_frames_used=5))


@pytest.mark.usefixtures("tiny")
def test_a_loss_that_is_no_number_stops_with_step_and_learning_rate(tmp_path: Path, learnable: Path) -> None:
    message = r"train: loss became (nan|inf) at step \d+ \(epoch 1, learning rate 1e\+30\), expected a finite number"

    with pytest.raises(VidcacheError, match=message):
        run_training([learnable], tmp_path / "best.pt", dataclasses.replace(TINY, lr=1e30), Callbacks())

    assert {"best.run"} == {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "last.pt", "train_batch.png"} == {file.name for file in (tmp_path / "best.run").iterdir()}


@pytest.mark.usefixtures("tiny")
def test_a_validation_loss_that_is_no_number_stops_with_epoch_and_learning_rate(learnable: Path) -> None:
    message = r"train: validation loss became (nan|inf) in epoch 1 \(learning rate 1e\+30\), expected .* Lower --lr"

    with pytest.raises(VidcacheError, match=message):  # one step: its own loss is from before it
        run(learnable, dataclasses.replace(TINY, lr=1e30, batch_size=32))


@pytest.mark.usefixtures("tiny")
def test_fp16_is_refused_on_a_cpu(learnable: Path) -> None:
    with pytest.raises(InputError, match=r"--amp fp16: not on a CPU, expected a GPU\. Use --amp auto"):
        run(learnable, dataclasses.replace(TINY, amp="fp16"))


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="no clips to evaluate, expected at least one"):
        predict(lambda clips: clips, [])


@pytest.mark.usefixtures("tiny")
def test_a_cache_without_validation_clips_is_refused(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", {"a": 2})

    with pytest.raises(InputError, match=r"c\.h5: no val clips, expected at least one"):
        run(path)


def scripted(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validation say these losses; everything else is real."""
    real = loop.predict
    remaining = iter(losses)

    def said(*arguments: Any) -> object:
        predicted = real(*arguments)
        return dataclasses.replace(predicted, losses=np.full(len(predicted.rows), next(remaining)))

    monkeypatch.setattr(loop, "predict", said)


@pytest.mark.usefixtures("tiny")
def test_the_run_on_disk(tmp_path: Path, learnable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([0.875, 0.5, 0.75, 0.625, 0.8125, 0.375], monkeypatch)
    seen: list[EpochResult] = []
    config = dataclasses.replace(TINY, epochs=6, min_epochs=5, patience=3)

    result = run_training(
        [learnable], tmp_path / "out" / "best.pt", config, Callbacks(on_epoch=lambda r, _: seen.append(r))
    )

    assert (2, 5) == (result.best_epoch, len(result.epochs))
    assert "3 epochs in a row lowered the validation loss by no more than 0.01" == result.stopped_because
    folder = tmp_path / "out" / "best.run"
    files = {"config.json", "metrics.csv", "curves.png", "last.pt", "train_batch.png", "result.json"}
    assert files == {file.name for file in folder.iterdir()}
    best, last = Checkpoint.load(tmp_path / "out" / "best.pt"), Checkpoint.load(folder / "last.pt")
    assert (2, 5, {}) == (best.epoch, last.epoch, best.training)
    assert last.training["optimizer"]["state"]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ["0.875", "0.5", "0.75", "0.625", "0.8125"] == [row["val_loss"] for row in rows]
    assert ["1", "1", "0", "0", "0"] == [row["is_best"] for row in rows]
    assert str(best.epoch) == min(rows, key=lambda row: float(row["val_loss"]))["epoch"]
    assert [dataclasses.asdict(r) for r in result.epochs] == [dataclasses.asdict(r) for r in seen]
    for row in rows:
        assert float(row["clips_per_second"]) > 0
        assert 0 <= float(row["data_wait_fraction"]) <= 1
    written = json.loads((folder / "config.json").read_text())
    assert dataclasses.asdict(config) == written["config"]
    with CacheReader(learnable) as reader:
        assert (reader.fingerprint, reader.split_hash) == (written["fingerprint"], written["split_hash"])
        assert (reader.fingerprint, reader.classes, reader.spec) == (best.fingerprint, best.classes, best.spec)
    assert imread(folder / "curves.png").shape[2] == 4


def test_the_defaults_of_the_config_are_those_of_the_command() -> None:
    values = vidtrain.make_context("vidtrain", ["cache.h5"]).params
    fields = {**dataclasses.asdict(TrainConfig()), **dataclasses.asdict(Strength())}
    chosen = {"device", "freeze", "strength"}  # by the command

    assert {} == {
        name: (value, values[name]) for name, value in fields.items() if name not in chosen and values[name] != value
    }


def test_shuffled_labels_leave_the_test_split_alone(learnable: Path) -> None:
    with CacheReader(learnable) as reader:
        labels = TrainingData.of(reader, dataclasses.replace(TINY, shuffle_labels=True), "cpu").labels
        known = np.concatenate([reader.rows("train"), reader.rows("val")])
        test = reader.rows("test")
        assert (labels[test] == reader.labels[test]).all()
        assert sorted(labels[known]) == sorted(reader.labels[known])
        assert (labels[known] != reader.labels[known]).sum() > len(known) / 4


def test_kinetics_weights_are_fine_tuned(learnable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(9)
    torch.save(R3D18(400).state_dict(), tmp_path / "w.pth")
    found = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(model_module, "KINETICS_SHA256", found)
    pretrained = torch.load(tmp_path / "w.pth", weights_only=True)

    _, (after,) = run(learnable, dataclasses.replace(TINY, epochs=1, weights=str(tmp_path / "w.pth"), freeze="layer2"))

    assert torch.equal(pretrained["layer2.1.conv2.1.running_var"], after.weights["layer2.1.conv2.1.running_var"])
    assert not torch.equal(pretrained["layer4.1.conv2.0.weight"], after.weights["layer4.1.conv2.0.weight"])
    assert (2, 512) == after.weights["fc.weight"].shape


# --- precision --------------------------------------------------------------------------------


class _Stub(nn.Module):
    """Two linear layers, the first one frozen if asked for, whose bf16 gradient can be made wrong."""

    def __init__(self, error: float = 0.0, *, frozen: bool = False) -> None:
        super().__init__()
        self.frozen, self.layer = nn.Linear(8, 8), _Wrong(error)
        self.frozen.requires_grad_(False)
        self.parts = ((self.frozen,), (self.layer,)) if frozen else ((), (self.frozen, self.layer))

    def split(self) -> tuple[nn.Sequential, nn.Sequential]:
        return nn.Sequential(*self.parts[0]), nn.Sequential(*self.parts[1])


class _Wrong(nn.Linear):
    def __init__(self, error: float) -> None:
        super().__init__(8, 2)
        self.error = error

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = super().forward(inputs)
        if self.error and torch.is_autocast_enabled("cpu"):
            outputs.register_hook(lambda gradient: gradient * (1 + self.error))
        return outputs


def choose(
    amp: str,
    error: float,
    seconds: tuple[float, ...],
    slowdown: float,
    monkeypatch: pytest.MonkeyPatch,
    *,
    frozen: bool = False,
) -> object:
    monkeypatch.setattr(precision, "conv_slowdown", lambda _: slowdown)
    real = precision._timed_step
    remaining = iter(seconds)

    def timed(*arguments: object) -> object:
        return next(remaining), real(*arguments)[1]  # type: ignore[arg-type]

    monkeypatch.setattr(precision, "_timed_step", timed)
    return choose_precision(
        amp,
        _Stub(error, frozen=frozen),  # type: ignore[arg-type]
        nn.CrossEntropyLoss(),
        torch.randn(4, 8),
        torch.tensor([0, 1, 0, 1]),
    )


@pytest.mark.parametrize(
    ("error", "seconds", "slowdown", "name", "reason"),
    [
        (0.0, (2.0, 1.0), 0.5, "bf16", "bf16: measured x2.00 faster, gradients within"),
        (0.0, (1.0, 1.0), 0.9, "off", "bf16 is not faster here"),
        (0.5, (2.0, 1.0), 0.5, "off", r"bf16: gradients are off by 5\d% in layer"),
        (float("inf"), (2.0, 1.0), 0.5, "off", r"bf16: gradients are off by inf% in layer"),
        (0.0, (2.0, 1.0), 40.0, "off", "one bf16 convolution takes 40 times as long here"),
    ],
)
def test_auto_takes_bf16_only_when_it_is_faster_and_right(
    error: float, seconds: tuple[float, float], slowdown: float, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choose("auto", error, seconds, slowdown, monkeypatch)

    assert name == choice.name  # type: ignore[attr-defined]
    assert re.match(reason, choice.reason)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "seconds", "name", "reason"),
    [
        (0.5, (3.0, 1.0, 2.0), "bf16-prefix", r"bf16: gradients are off by 5\d% in .*; bf16 in the frozen stages alone: measured x1.50 faster"),
        (0.5, (3.0, 1.0, 3.0), "off", r"bf16: gradients are off by 5\d% in .*; bf16 in the frozen stages alone is not faster here \(x1.00\)"),
        (0.0, (3.0, 1.0, 2.0), "bf16", "bf16: measured x3.00 faster"),
        (0.0, (3.0, 3.0, 2.0), "bf16-prefix", r"bf16 is not faster here \(x1.00\); bf16 in the frozen stages alone: measured"),
    ],
)  # fmt: skip
def test_where_bf16_does_not_do_the_frozen_stages_alone_may(
    error: float, seconds: tuple[float, ...], name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choose("auto", error, seconds, 0.5, monkeypatch, frozen=True)

    assert name == choice.name  # type: ignore[attr-defined]
    assert re.match(reason, choice.reason)  # type: ignore[attr-defined]


def test_a_precision_that_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for amp in ("off", "bf16"):
        assert amp == choose(amp, 0.5, (1, 1), 99, monkeypatch).name  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="amp 'fp16' needs a GPU, expected auto, off or bf16 on a CPU"):
        choose("fp16", 0, (1, 1), 1, monkeypatch)
    with pytest.raises(ValueError, match="amp 'half', expected one of auto, off, bf16, fp16, bf16-prefix"):
        choose("half", 0, (1, 1), 1, monkeypatch)


def test_one_small_convolution_is_measured_for_real() -> None:
    assert 0 < precision.conv_slowdown(torch.device("cpu")) < math.inf


def test_the_copy_that_is_tried_does_not_change_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Stub()
    before = model.layer.weight.clone()
    monkeypatch.setattr(precision, "conv_slowdown", lambda _: 0.1)
    choose_precision(
        "auto",
        model,  # type: ignore[arg-type]
        nn.CrossEntropyLoss(),
        torch.randn(4, 8),
        torch.tensor([0, 1, 0, 1]),
    )

    assert torch.equal(before, model.layer.weight)
    assert model.layer.weight.grad is None


def test_what_the_model_sees_is_drawn(learnable: Path, tmp_path: Path) -> None:
    """What is drawn is what the model is given first."""
    seen: list[tuple[torch.Tensor, Batch]] = []
    taken: list[torch.Tensor] = []
    hooks = Callbacks(on_inputs=lambda inputs, batch: seen.append((inputs.clone(), dataclasses.replace(batch))))
    inner = Forward.prefix

    def prefix(self: Forward, inputs: torch.Tensor) -> torch.Tensor:
        taken.append(inputs.clone())
        return inner(self, inputs)

    with tiny_models(), mock.patch.object(Forward, "prefix", prefix):
        run_training([learnable], tmp_path / "best.pt", dataclasses.replace(TINY, num_frames_used=2), hooks)

    ((inputs, batch),) = seen
    assert len(taken) >= 2
    assert torch.equal(taken[0], inputs)
    assert (4, 3, 2, 16, 16) == tuple(inputs.shape)
    picture = imread(tmp_path / "best.run" / "train_batch.png")
    assert picture.shape[0] > picture.shape[1]  # 4 clips under each other, 2 frames wide
    with CacheReader(learnable) as reader:
        strips = batch_strips(reader, batch, inputs)
    assert 4 == len(strips)
    for index, strip in enumerate(strips):
        ((name, frames),) = strip.lines
        assert name == ("a", "b")[int(batch.labels[index])]
        assert (to_pictures(inputs)[index] == frames).all()


def test_label_smoothing_and_clipping_change_the_run(learnable: Path, tiny: None) -> None:
    plain, _ = run(learnable)
    smooth, _ = run(learnable, dataclasses.replace(TINY, label_smoothing=0.3))
    clipped, _ = run(learnable, dataclasses.replace(TINY, clip_norm=1e-4))
    loose, _ = run(learnable, dataclasses.replace(TINY, clip_norm=1e6))

    losses = [result.epochs[0].train_loss for result in (plain, smooth, clipped)]
    assert len(set(losses)) == 3
    assert plain.epochs[-1].val_loss == loose.epochs[-1].val_loss


def test_gradients_are_no_longer_than_the_norm(learnable: Path, tiny: None) -> None:
    norms: list[float] = []
    inner = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *arguments: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))))
        return inner(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        run(learnable, dataclasses.replace(TINY, clip_norm=0.01))

    assert norms
    assert max(norms) <= 0.01 * 1.001


class NormFree(nn.Module):
    """A model without BatchNorm: what goes through it in parts is what goes through it at once."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 4, num_classes)

    def split(self) -> tuple[nn.Sequential, nn.Sequential]:
        return nn.Sequential(), nn.Sequential(nn.AdaptiveAvgPool3d((4, 1, 1)), nn.Flatten(1), self.fc)


@pytest.mark.parametrize(
    "changes", [{}, {"balance": "both", "label_smoothing": 0.2}, {"clip_norm": 0.01}, {"batch_size": 7}]
)
def test_a_step_in_parts_is_the_step_at_once(learnable: Path, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, **{"batch_size": 6, **changes})
    with mock.patch.object(loop, "build_model", lambda num_classes, *_: NormFree(num_classes)):
        _, whole = run(learnable, config)
        for accumulate in (2, 3, 100):
            _, parts = run(learnable, dataclasses.replace(config, accumulate=accumulate))
            for name, tensor in whole[-1].weights.items():
                assert torch.allclose(tensor, parts[-1].weights[name], atol=1e-5), name
            assert pytest.approx(whole[-1].metrics["train_loss"], rel=1e-5) == parts[-1].metrics["train_loss"]


def test_parts_of_a_step_are_as_small_as_asked(learnable: Path, tiny: None) -> None:
    sizes: list[int] = []
    inner = Forward.prefix

    def prefix(self: Forward, inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        return inner(self, inputs)

    with mock.patch.object(Forward, "prefix", prefix):
        run(learnable, dataclasses.replace(TINY, batch_size=8, accumulate=3, epochs=1))

    assert 3 == max(sizes)


def test_the_weighted_smoothed_loss_is_torchs(rng: np.random.Generator) -> None:
    logits, labels = torch.randn(9, 4), torch.from_numpy(rng.integers(0, 4, 9))
    for weights in (None, torch.tensor([0.5, 1.0, 2.0, 4.0])):
        for smoothing in (0.0, 0.3):
            expected = nn.CrossEntropyLoss(weights, label_smoothing=smoothing)(logits, labels)
            total = float(len(labels) if weights is None else weights[labels].sum())
            parts = [Loss(weights, smoothing)(logits[part], labels[part], total) for part in (slice(4), slice(4, 9))]
            assert torch.allclose(expected, sum(parts, torch.zeros(())))


def test_deterministic_reaches_torch_and_changes_nothing_on_a_cpu(learnable: Path, tiny: None) -> None:
    seen: list[bool] = []
    inner = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *arguments: object) -> object:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return inner(self, *arguments)  # type: ignore[arg-type]

    with mock.patch.object(torch.optim.Adam, "step", step):
        _, plain = run(learnable)
        _, same = run(learnable, dataclasses.replace(TINY, deterministic=True))

    half = len(seen) // 2
    assert [False] * half + [True] * half == seen
    assert all(torch.equal(plain[-1].weights[name], same[-1].weights[name]) for name in plain[-1].weights)


def test_full_memory_in_a_step_names_the_batch_size_to_try(learnable: Path, tiny: None) -> None:
    def prefix(self: Forward, inputs: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.06 GiB")

    with (
        mock.patch.object(Forward, "prefix", prefix),
        pytest.raises(
            VidcacheError, match=r"with 4 clips of 4 frames at once \(CUDA out .*Try --batch-size 2, or --acc"
        ),
    ):
        run(learnable)


def test_progress_says_what_the_epoch_says_in_the_end(learnable: Path, tiny: None) -> None:
    seen: list[EpochProgress] = []
    with CacheReader(learnable) as reader:
        result = train(reader, dataclasses.replace(TINY, epochs=2), Callbacks(on_step=seen.append))

    for epoch in result.epochs:
        steps = [step for step in seen if step.epoch == epoch.epoch]
        assert list(range(1, 7)) == [step.num_done for step in steps]
        assert {6} == {step.num_steps for step in steps}
        assert epoch.train_loss == steps[-1].loss
        assert epoch.train_accuracy == steps[-1].accuracy
        assert epoch.clips_per_second == steps[-1].clips_per_second
        assert epoch.data_wait_fraction == steps[-1].data_wait_fraction


def test_on_a_gpu_losses_are_looked_at_now_and_then(learnable: Path, tiny: None) -> None:
    """Every look waits for the device."""
    seen: list[EpochProgress] = []
    inner = Stepper.__init__

    def init(self: Stepper, *arguments: Any) -> None:
        inner(self, *arguments)
        self.check_every = 4  # 25 on CUDA

    with CacheReader(learnable) as reader, mock.patch.object(Stepper, "__init__", init):
        result = train(reader, dataclasses.replace(TINY, epochs=1), Callbacks(on_step=seen.append))
        plain = run(learnable, dataclasses.replace(TINY, epochs=1))[0]

    assert [True] * 3 + [False] * 3 == [math.isnan(step.loss) for step in seen]
    assert seen[3].loss == seen[4].loss != seen[5].loss
    assert plain.epochs[0].train_loss == result.epochs[0].train_loss


# --- starting from another run -------------------------------------------------------------------


def test_a_run_can_start_from_another(learnable: Path, tmp_path: Path, tiny: None) -> None:
    run_training([learnable], tmp_path / "old.pt", dataclasses.replace(TINY, epochs=3), Callbacks())
    old = Checkpoint.load(tmp_path / "old.pt")
    said: list[str] = []
    still = dataclasses.replace(TINY, epochs=1, lr=1e-12, weight_decay=0, init=str(tmp_path / "old.pt"))

    run_training([learnable], tmp_path / "new.pt", still, Callbacks(on_init=said.append))
    new = Checkpoint.load(tmp_path / "new.pt")
    assert [f"starting from {tmp_path}/old.pt (epoch {old.epoch}), with its 2 classes"] == said
    assert all(
        torch.allclose(old.weights[name], new.weights[name], atol=1e-6) for name in ("fc.weight", "stem.0.weight")
    )

    other = make_cache(tmp_path / "o.h5", {"a": 9, "b": 9, "c": 9}, spec=Spec(4, 16, 16), learnable=True)
    run_training([other], tmp_path / "other.pt", still, Callbacks(on_init=said.append))
    found = Checkpoint.load(tmp_path / "other.pt")
    assert (
        f"starting from {tmp_path}/old.pt (epoch {old.epoch}); its 2 classes are not the 3 of this cache: the head is new"
        == said[1]
    )
    assert torch.allclose(old.weights["stem.0.weight"], found.weights["stem.0.weight"], atol=1e-6)
    assert 3 == len(found.weights["fc.weight"])


def test_a_checkpoint_to_start_from_must_be_one(learnable: Path, tmp_path: Path, tiny: None) -> None:
    config = dataclasses.replace(TINY, init=str(tmp_path / "no.pt"))
    with pytest.raises(MismatchError, match="no.pt: No such file or directory. Train first"):
        run_training([learnable], tmp_path / "new.pt", config, Callbacks())
    assert [] == list(tmp_path.iterdir())
    with pytest.raises(MismatchError, match="no.pt: No such file or directory. Train first"):
        run(learnable, config)
    _, saved = run(learnable, dataclasses.replace(TINY, epochs=1))
    strange = dataclasses.replace(saved[0], weights={"stem.0.weight": torch.zeros(1)})
    strange.save(tmp_path / "no.pt")
    with pytest.raises(InputError, match=r"no.pt: is read by this command \(.*no.pt\). Choose another name"):
        run_training([learnable], tmp_path / "no.pt", config, Callbacks())
    with pytest.raises(MismatchError, match=r"no.pt: stem.0.weight: \(1,\), expected .*: not the weights of an R3D-18"):
        run(learnable, config)
