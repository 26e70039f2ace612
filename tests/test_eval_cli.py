"""`videval` beyond the plain case: comparing, views, mirror images, explaining, the run beside the checkpoint."""

import csv
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import make_cache, tiny_models
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.cli import main as videval
from vidcache.eval.report.files import RunLog, read_run_log
from vidcache.model import R3D18
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

TRAIN = "--weights none --freeze none --epochs 2 --batch-size 8 --num-frames 4 --lr 1e-3 --amp off".split()


def call(command: Any, *arguments: object) -> Result:
    with tiny_models():
        return CliRunner().invoke(command, [str(argument) for argument in arguments])


def evaluated(*arguments: object) -> dict[str, Any]:
    result = call(videval, *arguments, "--json")
    assert 0 == result.exit_code, result.stderr
    said: dict[str, Any] = json.loads(result.stdout)
    return said


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clips of 3 classes, 9 frames."""
    return make_cache(tmp_path_factory.mktemp("e") / "cache.h5", dict.fromkeys("abc", 20), spec=Spec(9, 16, 16))


@pytest.fixture(scope="module")
def first(cache: Path) -> Path:
    return trained(cache, "first.pt", 0)


@pytest.fixture(scope="module")
def second(cache: Path) -> Path:
    return trained(cache, "second.pt", 1)


def trained(cache: Path, name: str, seed: int) -> Path:
    result = call(vidtrain, cache, *TRAIN, "--seed", seed, "--out", cache.with_name(name))
    assert 0 == result.exit_code, result.stderr
    return cache.with_name(name)


def changed_weights(path: Path, ckpt: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a checkpoint with other weights of its last layer."""
    loaded = Checkpoint.load(ckpt)
    weights = {**loaded.weights, "fc.weight": change(loaded.weights["fc.weight"])}
    dataclasses.replace(loaded, weights=weights).save(path)
    return path


def predicted(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_has_its_interval_and_few_clips_are_marked(cache: Path, first: Path, tmp_path: Path) -> None:
    said = evaluated(cache, "--ckpt", first, "--out", tmp_path / "e")
    text = call(videval, cache, "--ckpt", first, "--out", tmp_path / "e").stdout

    for name, key, number in (
        ("accuracy", "accuracy", "accuracy"),
        ("balanced", "balanced", "balanced_accuracy"),
        ("macro F1", "macro_f1", "macro_f1"),
    ):
        values = said[number], said[f"{key}_low"], said[f"{key}_high"]
        assert values[1] <= values[0] <= values[2], name
        form = "{:.3f} ({:.3f} to {:.3f})" if name == "macro F1" else "{:.1%} ({:.1%} to {:.1%})"
        assert f"{name:11} {form.format(*values)}" in text
    assert (1, None, None) == (said["top5_accuracy"], said["top5_low"], said["top5_high"])  # of 3 classes
    assert "top-5" not in text
    few = [entry["class"] for entry in said["per_class"] if entry["num_clips"] < 5]
    assert few == [entry["class"] for entry in said["per_class"] if entry["too_few_to_claim"]]
    assert len(few) == text.count("too few to claim")
    assert re.search(r"calibration mean confidence \d+.\d%, accuracy \d+.\d%, ECE 0.\d\d\d \(", text)
    assert f"confusions  {'; '.join(said['top_mistakes'][:3])}" in text
    assert said["num_clips"] == sum(b["num_clips"] for b in said["calibration"]["bins"])


def test_the_seed_moves_the_bootstrap_and_nothing_else(cache: Path, first: Path, tmp_path: Path) -> None:
    arguments = cache, "--ckpt", first, "--split", "train", "--out", tmp_path / "e", "--seed"
    one, again, other = (evaluated(*arguments, seed) for seed in (0, 0, 1))

    def drawn(said: dict[str, Any]) -> list[float]:
        ends = [said[f"{name}_{end}"] for name in ("balanced", "macro_f1") for end in ("low", "high")]
        return [*ends, said["calibration"]["error_by_chance"]]

    assert drawn(one) == drawn(again)
    assert drawn(one) != drawn(other)
    assert one["balanced_accuracy"] == other["balanced_accuracy"]


@pytest.mark.slow
def test_flip_and_views_average_and_depend_on_nothing_else(cache: Path, first: Path, tmp_path: Path) -> None:
    found = {}
    for name, options in {
        "plain": [],
        "flip": ["--tta", "flip"],
        "views": ["--views", 2],
        "batch": ["--views", 2, "--batch-size", 3],
    }.items():
        said = evaluated(cache, "--ckpt", first, "--out", tmp_path / name, *options)
        assert (name == "flip", 1 if name in ("plain", "flip") else 2) == (said["flip"], said["num_views"])
        found[name] = {row["path"]: float(row["probability1"]) for row in predicted(tmp_path / name)}
        page = (tmp_path / name / "report.html").read_text()
        assert ("each with its mirror image" in page) == (name == "flip")
    assert found["plain"] != found["flip"]
    assert found["plain"] != found["views"]
    assert pytest.approx(found["views"], abs=1e-5) == found["batch"]


def test_more_views_than_there_are_is_an_error_at_once_also_for_the_other_checkpoint(
    cache: Path, first: Path, tmp_path: Path
) -> None:
    dataclasses.replace(Checkpoint.load(first), num_frames_used=9).save(tmp_path / "all.pt")
    arguments = cache, "--ckpt", first, "--out", tmp_path / "e"

    many = call(videval, *arguments, "--views", 10**4)
    other = call(videval, *arguments, "--compare", tmp_path / "all.pt", "--views", 2)

    assert (2, 2) == (many.exit_code, other.exit_code)
    assert re.search(r"--views: 10000 views of 4 of 9 frames, expected at most \d: the others are", many.stderr)
    assert f"2 views of 9 of 9 frames, expected at most 1: the others are the same ({tmp_path}/all.pt)" in other.stderr
    assert not (tmp_path / "e").exists()


def test_a_model_that_says_nothing_finite_is_an_error(cache: Path, first: Path, tmp_path: Path) -> None:
    nan = changed_weights(tmp_path / "nan.pt", first, lambda weights: torch.full_like(weights, 3e38))

    result = call(videval, cache, "--ckpt", nan)

    assert 5 == result.exit_code
    assert re.search(r"nan.pt: NaN or inf outputs for (\d+) of \1 clips. Its weights have diverged", result.stderr)
    assert not (tmp_path / "nan.eval").exists()


def test_the_most_probable_class_is_the_same_in_every_file_also_where_all_are_equal(
    cache: Path, first: Path, tmp_path: Path
) -> None:
    zero = changed_weights(tmp_path / "zero.pt", first, torch.zeros_like)
    loaded = Checkpoint.load(zero)
    dataclasses.replace(loaded, weights={**loaded.weights, "fc.bias": torch.zeros(3)}).save(zero)

    said = evaluated(cache, "--ckpt", zero, "--out", tmp_path / "e")

    assert {"a"} == {row["class1"] for row in predicted(tmp_path / "e")}
    assert said["num_correct"] == sum(row["true"] == "a" for row in predicted(tmp_path / "e"))


@pytest.mark.slow
def test_two_checkpoints_are_compared_clip_by_clip(cache: Path, first: Path, second: Path, tmp_path: Path) -> None:
    arguments = cache, "--ckpt", first, "--split", "train", "--out", tmp_path / "a"
    said = evaluated(*arguments, "--compare", second)
    evaluated(cache, "--ckpt", second, "--split", "train", "--out", tmp_path / "b")
    text = call(videval, *arguments, "--compare", second).stdout

    one, two = predicted(tmp_path / "a"), predicted(tmp_path / "b")
    right = np.array([[row["true"] == row["class1"] for row in rows] for rows in (one, two)])
    found = said["comparison"]
    counts = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert counts == (found["num_only_first"], found["num_only_second"])
    changed = predicted(tmp_path / "a", "changed.csv")
    others = {a["path"] for a, b in zip(one, two, strict=True) if a["class1"] != b["class1"]}
    assert others == {row["path"] for row in changed}
    assert found["num_changed"] == len(changed) > 0
    assert f"compared    {found['conclusion']}" in text
    assert found["second_accuracy"] == right[1].mean()
    assert f"other       {second}: {found['second_accuracy']:.1%} ({found['second_low']:.1%} to" in text
    assert "may have been trained" not in found["conclusion"]
    assert (str(first), str(second)) == (found["first"], found["second"])
    assert f"Compared with {second}" in (tmp_path / "a" / "report.html").read_text()

    evaluated(*arguments)
    assert not (tmp_path / "a" / "changed.csv").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_cache_is_not_compared(cache: Path, first: Path, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "o.h5", dict.fromkeys("abc", 21), spec=Spec(9, 16, 16))
    stranger = trained(other, "stranger.pt", 0)
    arguments = cache, "--out", tmp_path / "e", "--ckpt"

    refused = call(videval, *arguments, first, "--compare", stranger)
    allowed = call(videval, *arguments, first, "--compare", stranger, "--allow-mismatch")
    turned = call(videval, *arguments, stranger, "--compare", first, "--allow-mismatch")

    assert 5 == refused.exit_code
    assert f"{stranger}: trained on cache " in refused.stderr
    for result in (allowed, turned):
        assert 0 == result.exit_code
        assert f"But {stranger} may have been trained on these clips." in result.stdout
    page = (tmp_path / "e" / "report.html").read_text()
    assert 2 == page.count("The checkpoint was trained on another cache or split, about which nothing is known here.")
    assert "Within this cache: No evaluated clip" in page
    assert "Training clips per class" not in page


@pytest.mark.slow
def test_explain_draws_into_the_report(cache: Path, tmp_path: Path) -> None:
    """With the real model: the tiny one has no layer4."""
    checkpoint = Path(tmp_path, "real.pt")
    with torch.random.fork_rng(), CacheReader(cache) as reader:
        facts = reader.classes, reader.spec, 4, reader.fingerprint, reader.split_hash
        Checkpoint(R3D18(3).state_dict(), *facts, {}, 1, {}).save(checkpoint)
    pages = []
    for options in ([], ["--explain"]):
        result = CliRunner().invoke(videval, [str(cache), "--ckpt", str(checkpoint), "--device", "cpu", *options])
        assert 0 == result.exit_code, result.stderr
        pages.append((tmp_path / "real.eval" / "report.html").read_text())

    assert "Grad-CAM" not in pages[0]
    assert "Grad-CAM of layer4" in pages[1]
    assert pages[1].count("data:image/png") > pages[0].count("data:image/png")


def test_the_report_tells_of_the_run_beside_the_checkpoint(cache: Path, first: Path, tmp_path: Path) -> None:
    said = evaluated(cache, "--ckpt", first, "--out", tmp_path / "e")

    page = " ".join((tmp_path / "e" / "report.html").read_text().split())
    best = Checkpoint.load(first).epoch
    assert f"The weights are those of epoch {best} of 2. The run ended because all 2 epochs are done." in page
    assert re.search(r"main \S*/cache.h5 --weights none .* --out \S*/first.pt main \S*/cache", page)
    assert "Loss and accuracy of training and validation by epoch" in page
    assert best == said["epoch"]


def test_the_run_of_another_checkpoint_is_not_believed(first: Path, second: Path, tmp_path: Path) -> None:
    mine, other = Checkpoint.load(first), Checkpoint.load(second)
    assert 2 == read_run_log(first, mine).num_epochs

    assert RunLog() == read_run_log(first, other)
    assert RunLog() == read_run_log(tmp_path / "lonely.pt", mine)

    folder = tmp_path / "x.run"
    folder.mkdir()
    whole = (first.with_suffix(".run") / "metrics.csv").read_text()
    without = "\n".join(",".join(line.split(",")[:3]) for line in whole.splitlines())
    for text in ("epoch,val_loss\n1,what\n", without, whole + "\x00" * 3, '"' + "x" * 200_000):
        (folder / "metrics.csv").write_text(text)
        assert RunLog() == read_run_log(tmp_path / "x.pt", mine), text[:100]
    (folder / "metrics.csv").write_text(whole)
    for name, text in {"config.json": "[]", "result.json": "{", "curves.png": "no picture"}.items():
        (folder / name).write_text(text)
    assert RunLog(2) == read_run_log(tmp_path / "x.pt", mine)
