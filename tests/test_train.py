"""Training: what is frozen stays, the best epoch is kept, the same seed is the same run."""

import csv
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import vidcache.train
from tests.helpers import make_cache, tiny_models
from vidcache import model as model_module
from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import Batch, stream_batches
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, MismatchError, VidcacheError
from vidcache.eval.inference import load_model, predict
from vidcache.model import R3D18, build_model
from vidcache.train import loop
from vidcache.train.augment import Strength
from vidcache.train.callbacks import Callback, EpochResult, RunningMetrics, RunResult, batch_strips, to_pictures
from vidcache.train.cli import main as vidtrain
from vidcache.train.config import TrainConfig
from vidcache.train.data import TrainingData
from vidcache.train.distributed import choose_precision, oom_hint, torch_flags
from vidcache.train.loop import Trainer, train
from vidcache.train.run import run_training

TINY = TrainConfig(weights="none", freeze="none", epochs=2, batch_size=4, amp="off", lr=1e-2, seed=3)


Trained = tuple[RunResult, list[Checkpoint]]


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    """The loop around a model that costs nothing."""
    with tiny_models():
        yield


@pytest.fixture
def learnable(learnable_cache: Path) -> Path:
    return learnable_cache


def run(path: Path, config: TrainConfig = TINY, **changes: Any) -> Trained:
    """Train; also the checkpoint of every epoch."""
    saved: list[Checkpoint] = []
    with CacheReader(path) as reader:
        callback = Callback(on_epoch=lambda _result, _metrics, checkpoint: saved.append(checkpoint(True)))
        return train(reader, dataclasses.replace(config, **changes), [callback]), saved


def are_equal(one: Checkpoint, other: Checkpoint) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


@pytest.fixture(scope="module")
def trained(learnable_cache: Path) -> Trained:
    with tiny_models():
        return run(learnable_cache, epochs=4)


@pytest.mark.slow
def test_r3d_18_learns_and_what_is_frozen_stays_bit_identical(learnable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "build_model", build_model)
    config = dataclasses.replace(TINY, epochs=3, freeze="layer2", lr=1e-3, balance="none")
    torch.manual_seed(config.seed)
    before = {name: tensor.clone() for name, tensor in build_model(2, "none", "layer2").state_dict().items()}

    result, saved = run(learnable, config)

    assert result.epochs[-1].train_accuracy > 0.65
    frozen = [name for name in before if name.split(".")[0] in ("stem", "layer1", "layer2")]
    assert 60 == len(frozen)
    assert 10 == sum(name.endswith("running_mean") for name in frozen)
    for name, tensor in saved[-1].weights.items():
        assert (name in frozen) == torch.equal(before[name], tensor), name


def test_the_same_seed_is_the_same_run_and_threads_change_nothing(learnable: Path, trained: Trained) -> None:
    again = run(learnable, reader_threads=1)[1]

    for one, two in zip(trained[1], again, strict=False):
        assert are_equal(one, two)
        assert one.metrics["train_loss"] == two.metrics["train_loss"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4}, {"lr": 2e-3}, {"weight_decay": 0.1}, {"batch_size": 8}, {"accumulate": 2}, {"balance": "none"},
        {"augment": "none"}, {"augment": "exact"}, {"strength": Strength(flip=0)}, {"num_frames_used": 2},
        {"freeze": "stem"}, {"shuffle_labels": True}, {"label_smoothing": 0.3}, {"clip_norm": 1e-4},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_run(learnable: Path, trained: Trained, change: dict[str, object]) -> None:
    checkpoint = run(learnable, epochs=1, **change)[1][0]

    assert not are_equal(trained[1][0], checkpoint)
    assert (change.get("num_frames_used", 4), 4) == (checkpoint.num_frames_used, checkpoint.spec.num_frames)


def test_validation_loss_is_exact_whatever_the_batch_size(learnable: Path, trained: Trained) -> None:
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


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_frames_used": 5}, InputError, "--num-frames 5: a clip has 4 frames"),
        ({"amp": "fp16"}, InputError, r"--amp fp16: not available on cpu\. Use --amp auto"),
        ({"amp": "half"}, ValueError, "amp 'half', expected one of auto, off, bf16, fp16, bf16-prefix"),
        # One step: its own loss is from before it.
        ({"lr": 1e30, "batch_size": 32}, VidcacheError, r"train: validation loss is (nan|inf) in epoch 1 \(learning"),
        ({"lr": 1e30}, VidcacheError, r"loss is (nan|inf) at step \d+ of epoch 1 \(learning rate 1e\+30\). Lower --lr"),
    ],
)
def test_what_a_run_refuses(learnable: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(learnable, **changes)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="no clips to evaluate, expected at least one"):
        predict(lambda clips: clips, [])


def test_a_cache_without_validation_clips_is_refused(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", {"a": 2})

    with pytest.raises(InputError, match=r"c\.h5: no val clips. Split it again"):
        run(path)


def test_the_run_on_disk(tmp_path: Path, learnable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, real = iter([0.875, 0.5, 0.75, 0.625, 0.8125, 0.375]), loop.predict

    def scripted(*arguments: Any) -> object:
        predicted = real(*arguments)
        return dataclasses.replace(predicted, losses=np.full(len(predicted.rows), next(losses)))

    monkeypatch.setattr(loop, "predict", scripted)
    seen: list[EpochResult] = []
    config = dataclasses.replace(TINY, epochs=6, min_epochs=5, patience=3)

    result = run_training(
        [learnable], tmp_path / "out" / "best.pt", config, [Callback(on_epoch=lambda r, *_: seen.append(r))]
    )

    assert (2, 5) == (result.best_epoch, len(result.epochs))
    assert "early stopping: no improvement > 0.01 for 3 epochs" == result.stopped_because
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
    written = json.loads((folder / "config.json").read_text())
    assert dataclasses.asdict(config) == written["config"]
    with CacheReader(learnable) as reader:
        assert (reader.fingerprint, reader.split_hash) == (written["fingerprint"], written["split_hash"])
        assert (reader.fingerprint, reader.classes, reader.spec) == (best.fingerprint, best.classes, best.spec)


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


@pytest.mark.slow
def test_kinetics_weights_are_fine_tuned(learnable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(9)
    torch.save(R3D18(400).state_dict(), tmp_path / "w.pth")
    found = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(model_module, "KINETICS_SHA256", found)
    monkeypatch.setattr(loop, "build_model", build_model)
    pretrained = torch.load(tmp_path / "w.pth", weights_only=True)

    _, (after,) = run(learnable, epochs=1, weights=str(tmp_path / "w.pth"), freeze="layer2")

    assert torch.equal(pretrained["layer2.1.conv2.1.running_var"], after.weights["layer2.1.conv2.1.running_var"])
    assert not torch.equal(pretrained["layer4.1.conv2.0.weight"], after.weights["layer4.1.conv2.0.weight"])
    assert (2, 512) == after.weights["fc.weight"].shape


# --- device and precision ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [("cpu", True, "off"), ("mps", True, "off"), ("cuda", True, "bf16"), ("cuda:1", False, "fp16")],
)
def test_the_precision_of_a_device(device: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )

    assert expected == choose_precision("auto", torch.device(device))
    for amp in ("off", "bf16", "bf16-prefix"):
        assert amp == choose_precision(amp, torch.device(device))


@pytest.mark.parametrize(
    ("amp", "frozen_dtype", "trained_dtype"),
    [
        ("off", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("bf16-prefix", torch.bfloat16, torch.float32),
    ],
)
def test_each_part_computes_in_its_precision(
    learnable: Path, amp: str, frozen_dtype: torch.dtype, trained_dtype: torch.dtype
) -> None:
    with CacheReader(learnable) as reader:
        config = dataclasses.replace(TINY, amp=amp, freeze="stem")
        trainer = Trainer(TrainingData.of(reader, config, "cpu"))
        dtypes: list[torch.dtype] = []
        for module in (trainer.model.stem[0], trainer.model.fc):  # type: ignore[union-attr,index]
            module.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))  # type: ignore[union-attr]
        trainer.run()

    assert {(frozen_dtype, trained_dtype)} == set(zip(dtypes[::2], dtypes[1::2], strict=True))


def test_compile_hands_both_parts_to_torch_and_the_losses_stay(learnable: Path) -> None:
    compiled: list[nn.Module] = []
    plain, _ = run(learnable)

    with mock.patch.object(torch, "compile", lambda model: compiled.append(model) or model):
        result, _ = run(learnable, compile=True)

    assert 2 == len(compiled)
    assert [epoch.train_loss for epoch in plain.epochs] == [epoch.train_loss for epoch in result.epochs]


@pytest.mark.parametrize("deterministic", [False, True])
def test_flags_are_set_and_restored(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def flags() -> tuple[object, ...]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = flags()
    with pytest.raises(RuntimeError), torch_flags(deterministic=deterministic):
        assert (not deterministic, True, True, deterministic) == flags()
        assert (":4096:8" if deterministic else None) == os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        raise RuntimeError
    assert before == flags()


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world_size", "at_once", "advice"),
    [
        (16, 2, 1, 8, "Try --batch-size 8, or the same with --grad-accum-steps 4"),
        (16, 1, 2, 8, "Try --batch-size 8, or the same with --grad-accum-steps 2"),
        (1, 1, 1, 1, "Try fewer --num-frames, or a cache of smaller frames"),
    ],
)
def test_full_memory_names_what_to_try(
    batch_size: int, accumulate: int, world_size: int, at_once: int, advice: str
) -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate")):
        with pytest.raises(VidcacheError) as raised, oom_hint(batch_size, accumulate, world_size, 64):
            raise error
        assert str(raised.value).startswith(f"train: out of memory with {at_once} clips of 64 frames at once (")
        assert str(raised.value).endswith(advice)
    with pytest.raises(RuntimeError, match="size mismatch"), oom_hint(4, 1, 1, 8):
        raise RuntimeError("size mismatch")


def test_full_memory_in_a_step_is_reported(learnable: Path) -> None:
    with (
        mock.patch.object(Trainer, "run_frozen", side_effect=torch.OutOfMemoryError("CUDA out of memory")),
        pytest.raises(VidcacheError, match=r"with 4 clips of 4 frames at once \(CUDA out .*Try --batch-size 2"),
    ):
        run(learnable)


# --- steps ----------------------------------------------------------------------------------------------


@pytest.mark.pictures
def test_the_first_batch_is_drawn(learnable: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    seen: list[tuple[torch.Tensor, Batch]] = []
    taken: list[torch.Tensor] = []
    callback = Callback(on_first_batch=lambda inputs, batch: seen.append((inputs, batch)))
    inner = Trainer.run_frozen

    def run_frozen(self: Trainer, inputs: torch.Tensor) -> torch.Tensor:
        taken.append(inputs.clone())
        return inner(self, inputs)

    with mock.patch.object(Trainer, "run_frozen", run_frozen):
        run_training([learnable], tmp_path / "best.pt", dataclasses.replace(TINY, num_frames_used=2), [callback])

    ((inputs, batch),) = seen
    assert torch.equal(taken[0], inputs)
    assert (4, 3, 2, 16, 16) == tuple(inputs.shape)
    picture = imread(tmp_path / "best.run" / "train_batch.png")
    assert picture.shape[0] > picture.shape[1]  # 4 clips under each other, 2 frames wide
    with CacheReader(learnable) as reader:
        for index, strip in enumerate(batch_strips(reader, batch, inputs)):
            ((name, frames),) = strip.lines
            assert name == ("a", "b")[int(batch.labels[index])]
            assert (to_pictures(inputs)[index] == frames).all()


def test_gradients_are_no_longer_than_the_norm(learnable: Path) -> None:
    """And a norm that they never reach changes nothing."""
    norms: list[float] = []
    inner = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *arguments: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))))
        return inner(self, *arguments)  # type: ignore[arg-type]

    with mock.patch.object(torch.optim.Adam, "step", step):
        run(learnable, clip_norm=0.01)

    assert 0 < max(norms) <= 0.01 * 1.001
    assert are_equal(run(learnable)[1][-1], run(learnable, clip_norm=1e6)[1][-1])


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
    changes = {"batch_size": 6, **changes}
    with mock.patch.object(loop, "build_model", lambda num_classes, *_: NormFree(num_classes)):
        _, whole = run(learnable, **changes)
        for accumulate in (2, 3, 100):
            _, parts = run(learnable, **changes, accumulate=accumulate)
            for name, tensor in whole[-1].weights.items():
                assert torch.allclose(tensor, parts[-1].weights[name], atol=1e-5), name
            assert pytest.approx(whole[-1].metrics["train_loss"], rel=1e-5) == parts[-1].metrics["train_loss"]


def test_the_loss_of_a_step_is_torchs(learnable: Path) -> None:
    """Weighted and smoothed, in parts or not: the losses of the parts add up to it."""
    seen: list[float] = []
    logits: list[torch.Tensor] = []
    config = dataclasses.replace(
        TINY, balance="both", label_smoothing=0.3, batch_size=8, accumulate=3, epochs=1, lr=1e-9
    )
    with CacheReader(learnable) as reader:
        callback = Callback(on_step=lambda _epoch, _n, sums: seen.append(sums.loss / sums.num_clips))
        trainer = Trainer(TrainingData.of(reader, config, "cpu"), [callback])
        trainer.model.fc.register_forward_hook(lambda _m, _i, output: logits.append(output.detach()))  # type: ignore[union-attr,operator]
        rows = trainer.data.order(1)[:8]
        trainer.run()
        expected = nn.CrossEntropyLoss(trainer.class_weights, label_smoothing=0.3)

    assert [3, 3, 2] == [len(part) for part in logits[:3]]
    labels = torch.from_numpy(trainer.data.labels[rows])
    assert pytest.approx(float(expected(torch.cat(logits[:3]), labels)), rel=1e-5) == seen[0]


def test_deterministic_reaches_torch_and_changes_nothing_on_a_cpu(learnable: Path) -> None:
    seen: list[bool] = []

    def forward(trainer: Trainer, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return inputs

    _, plain = run(learnable)
    with mock.patch.object(Trainer, "run_frozen", forward):
        _, same = run(learnable, deterministic=True)

    assert all(seen)
    assert are_equal(plain[-1], same[-1])


def test_progress_ends_at_the_numbers_of_the_epoch(learnable: Path) -> None:
    seen: list[tuple[int, int, RunningMetrics]] = []
    callback = Callback(
        on_step=lambda epoch, num_steps, sums: seen.append((epoch, num_steps, dataclasses.replace(sums)))
    )
    with CacheReader(learnable) as reader:
        result = train(reader, TINY, [callback])

    for epoch in result.epochs:
        steps = [sums for number, _, sums in seen if number == epoch.epoch]
        assert list(range(1, 7)) == [sums.num_steps for sums in steps]
        last = steps[-1]
        assert (epoch.train_loss, epoch.train_accuracy) == (last.mean_loss, last.accuracy)
        assert (epoch.clips_per_second, epoch.data_wait_fraction) == (last.clips_per_second, last.data_wait_fraction)


def test_on_a_gpu_losses_are_read_now_and_then(learnable: Path) -> None:
    """Reading one waits for the device."""
    seen: list[float] = []
    config = dataclasses.replace(TINY, epochs=1)
    with CacheReader(learnable) as reader:
        callback = Callback(on_step=lambda _epoch, _n, sums: seen.append(sums.mean_loss))
        trainer = Trainer(TrainingData.of(reader, config, "cpu"), [callback])
        trainer.read_every = 4  # 25 on CUDA
        result = trainer.run()
    plain, _ = run(learnable, config)

    assert [True] * 3 + [False] * 3 == [math.isnan(loss) for loss in seen]
    assert seen[3] == seen[4] == seen[5]  # the rest is read at the end of the epoch
    assert plain.epochs[0].train_loss == result.epochs[0].train_loss


def test_a_callback_has_only_methods_that_are_called() -> None:
    with pytest.raises(TypeError, match="a Callback has no method on_batch"):
        Callback(on_batch=print)


def test_the_package_is_the_function_of_the_public_api(learnable: Path, tmp_path: Path) -> None:
    result = vidcache.train(learnable, tmp_path / "best.pt", weights="none", epochs=1, flip=0, batch_size=8)

    assert 1 == result.best_epoch == len(result.epochs)
    config = Checkpoint.load(tmp_path / "best.pt").config
    assert ("none", 0, 8) == (config["freeze"], config["strength"]["flip"], config["batch_size"])
    with pytest.raises(InputError, match="best.pt: belongs to an earlier run"):
        vidcache.train(str(learnable), tmp_path / "best.pt", TINY)
    assert 2 == len(vidcache.train([learnable], tmp_path / "best.pt", TINY, overwrite=True).epochs)
    with pytest.raises(TypeError, match="speed"):
        vidcache.train(learnable, tmp_path / "best.pt", speed=2)
    with pytest.raises(TypeError, match="a config and its option lr"):
        vidcache.train(learnable, tmp_path / "best.pt", TINY, lr=1.0)


# --- starting from another run -------------------------------------------------------------------


def test_a_run_can_start_from_another(learnable: Path, tmp_path: Path) -> None:
    run_training([learnable], tmp_path / "old.pt", dataclasses.replace(TINY, epochs=3))
    other = make_cache(tmp_path / "o.h5", {"a": 9, "b": 9, "c": 9}, learnable=True)
    old = Checkpoint.load(tmp_path / "old.pt")
    still = dataclasses.replace(TINY, epochs=1, lr=1e-12, weight_decay=0, init=str(tmp_path / "old.pt"))
    start = f"starting from {tmp_path}/old.pt (epoch {old.epoch})"

    for cache, note, same in (
        (learnable, f"{start}, with its 2 classes", ("fc.weight", "stem.0.weight")),
        (other, f"{start}; it has 2 classes, this cache 3: new head", ("stem.0.weight",)),
    ):
        notes: list[str] = []
        log = Callback(on_note=lambda text, _, notes=notes: notes.append(text))
        run_training([cache], tmp_path / "new.pt", still, [log], overwrite=True)
        new = Checkpoint.load(tmp_path / "new.pt")
        assert note in notes
        assert all(torch.allclose(old.weights[name], new.weights[name], atol=1e-6) for name in same)
    assert 3 == len(new.weights["fc.weight"])


def test_a_checkpoint_to_start_from_must_be_one(learnable: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, init=str(tmp_path / "no.pt"))
    with pytest.raises(MismatchError, match="no.pt: No such file or directory. Train first"):
        run_training([learnable], tmp_path / "new.pt", config)
    assert [] == list(tmp_path.iterdir())
    _, saved = run(learnable, epochs=1)
    dataclasses.replace(saved[0], weights={"stem.0.weight": torch.zeros(1)}).save(tmp_path / "no.pt")
    with pytest.raises(InputError, match=r"no.pt: is read by this command \(.*no.pt\). Choose another name"):
        run_training([learnable], tmp_path / "no.pt", config)
    with pytest.raises(MismatchError, match=r"no.pt: .*stem.0.weight.*: not the weights of an R3D-18"):
        run(learnable, config)


# --- the two parts of a model -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["none", "layer2", "all"])
def test_the_frozen_and_the_trained_part_are_the_model(stage: str) -> None:
    model = R3D18(3, stage).train()
    inputs = torch.rand(2, 3, 4, 24, 24)
    frozen, head = model.split()
    with torch.no_grad():
        features = frozen(inputs)
    head(features).sum().backward()

    model.eval()
    assert torch.equal(model(inputs), head(frozen(inputs)))
    stages = model.frozen_stages
    assert all((parameter.grad is None) == name.startswith(stages) for name, parameter in model.named_parameters())


def test_the_mean_at_the_end_has_a_deterministic_backward() -> None:
    """Torch's adaptive pooling has none on CUDA, but to one value it is a mean."""
    seen, todo = set(), [R3D18(3)(torch.rand(2, 3, 4, 24, 24)).sum().grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    names = {type(node).__name__ for node in seen}

    assert "MeanBackward1" in names
    assert not any("Adaptive" in name for name in names)
