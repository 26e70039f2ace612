"""`videval` beyond the plain case: comparing, views, mirror images, explaining, the run beside the checkpoint."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import make_cache, tiny_models
from vidcache.checkpoint import Checkpoint
from vidcache.eval.cli import main as videval
from vidcache.eval.report.files import RunLog, read_run_log
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

TRAIN = "--weights none --freeze none --epochs 2 --batch-size 8 --num-frames 4 --lr 1e-3 --amp off".split()


def call(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def evaluated(*arguments: object) -> dict[str, Any]:
    with tiny_models():
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
    with tiny_models():
        result = call(vidtrain, cache, *TRAIN, "--seed", seed, "--out", cache.with_name(name))
    assert 0 == result.exit_code, result.stderr
    return cache.with_name(name)


def predicted(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_has_its_interval_and_few_clips_are_marked(cache: Path, first: Path, tmp_path: Path) -> None:
    said = evaluated(cache, "--ckpt", first, "--out", tmp_path / "e")
    with tiny_models():
        text = call(videval, cache, "--ckpt", first, "--out", tmp_path / "e").stdout

    for name, number in (
        ("accuracy", "accuracy"),
        ("balanced", "balanced_accuracy"),
        ("macro_f1", "macro_f1"),
    ):
        assert said[f"{name}_low"] <= said[number] <= said[f"{name}_high"], name
    assert (1, None, None) == (said["top5_accuracy"], said["top5_low"], said["top5_high"])  # of 3 classes
    assert "top-5" not in text
    few = [entry["class"] for entry in said["per_class"] if entry["num_clips"] < 5]
    assert few == [entry["class"] for entry in said["per_class"] if entry["too_few_to_claim"]]
    assert len(few) == text.count("too few to claim")
    for name in ("accuracy", "balanced"):
        number = said[{"accuracy": "accuracy", "balanced": "balanced_accuracy"}[name]]
        assert f"{name:11} {number:.1%} ({said[f'{name}_low']:.1%} to {said[f'{name}_high']:.1%})" in text
    assert f"macro F1    {said['macro_f1']:.3f} ({said['macro_f1_low']:.3f} to {said['macro_f1_high']:.3f})" in text
    assert re.search(r"calibration mean confidence \d+.\d%, accuracy \d+.\d%, ECE 0.\d\d\d \(", text)
    assert f"confusions  {'; '.join(said['top_mistakes'][:3])}" in text
    assert re.fullmatch(r". -> .: \d+ of \d+ clips?", said["top_mistakes"][0])
    assert said["num_clips"] == sum(b["num_clips"] for b in said["calibration"]["bins"])


def test_the_seed_moves_the_bootstrap_and_nothing_else(cache: Path, first: Path, tmp_path: Path) -> None:
    one, again, other = (
        evaluated(cache, "--ckpt", first, "--split", "train", "--seed", seed, "--out", tmp_path / "e")
        for seed in (0, 0, 1)
    )

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


def test_more_views_than_there_are_is_an_error(cache: Path, first: Path, tmp_path: Path) -> None:
    with tiny_models():
        result = call(videval, cache, "--ckpt", first, "--views", 9, "--out", tmp_path / "e")

    assert 2 == result.exit_code
    assert re.search(
        r"--views: 9 views of 4 of 9 frames, expected at most \d: the others are the same \(\S*first.pt\). ",
        result.stderr,
    )
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_a_huge_number_of_views_is_refused_at_once_also_for_the_other_checkpoint(
    cache: Path, first: Path, tmp_path: Path
) -> None:
    loaded = Checkpoint.load(first)
    dataclasses.replace(loaded, num_frames_used=9).save(tmp_path / "all.pt")

    with tiny_models():
        many = call(videval, cache, "--ckpt", first, "--views", 10**6, "--out", tmp_path / "e")
        other = call(
            videval, cache, "--ckpt", first, "--compare", tmp_path / "all.pt", "--views", 2, "--out", tmp_path / "e"
        )

    assert (2, 2) == (many.exit_code, other.exit_code)
    assert "1000000 views of 4 of 9 frames, expected at most " in many.stderr
    assert f"2 views of 9 of 9 frames, expected at most 1: the others are the same ({tmp_path}/all.pt)" in other.stderr
    assert not (tmp_path / "e").exists()


def test_a_model_that_says_nothing_finite_is_an_error(cache: Path, first: Path, tmp_path: Path) -> None:
    loaded = Checkpoint.load(first)
    weights = {**loaded.weights, "fc.weight": torch.full_like(loaded.weights["fc.weight"], 3e38)}
    dataclasses.replace(loaded, weights=weights).save(tmp_path / "nan.pt")

    with tiny_models():
        result = call(videval, cache, "--ckpt", tmp_path / "nan.pt")

    assert 5 == result.exit_code
    assert re.search(
        r"nan.pt: NaN or inf outputs for (\d+) of \1 clips. Its weights have diverged or are "
        "damaged: train again",
        result.stderr,
    )
    assert not (tmp_path / "nan.eval").exists()


def test_the_most_probable_class_is_the_same_in_every_file_also_where_all_are_equal(
    cache: Path, first: Path, tmp_path: Path
) -> None:
    loaded = Checkpoint.load(first)
    dataclasses.replace(loaded, weights={k: v * 0 for k, v in loaded.weights.items()}).save(tmp_path / "zero.pt")

    said = evaluated(cache, "--ckpt", tmp_path / "zero.pt", "--out", tmp_path / "e")

    assert {"a"} == {row["class1"] for row in predicted(tmp_path / "e")}
    assert said["num_correct"] == sum(row["true"] == "a" for row in predicted(tmp_path / "e"))


@pytest.mark.slow
def test_two_checkpoints_are_compared_clip_by_clip(cache: Path, first: Path, second: Path, tmp_path: Path) -> None:
    said = evaluated(cache, "--ckpt", first, "--compare", second, "--split", "train", "--out", tmp_path / "a")
    evaluated(cache, "--ckpt", second, "--split", "train", "--out", tmp_path / "b")
    with tiny_models():
        text = call(
            videval, cache, "--ckpt", first, "--compare", second, "--split", "train", "--out", tmp_path / "a"
        ).stdout

    one, two = predicted(tmp_path / "a"), predicted(tmp_path / "b")
    right = np.array([[row["true"] == row["class1"] for row in rows] for rows in (one, two)])
    found = said["comparison"]
    assert (int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())) == (
        found["num_only_first"],
        found["num_only_second"],
    )
    with (tmp_path / "a" / "changed.csv").open(newline="") as file:
        changed = list(csv.DictReader(file))
    assert {a["path"] for a, b in zip(one, two, strict=True) if a["class1"] != b["class1"]} == {
        row["path"] for row in changed
    }
    assert found["num_changed"] == len(changed) > 0
    assert f"compared    {found['conclusion']}" in text
    assert found["second_accuracy"] == right[1].mean()
    assert f"other       second.pt: {found['second_accuracy']:.1%} ({found['second_low']:.1%} to" in text
    assert "may have been trained" not in found["conclusion"]
    assert "first.pt" in found["conclusion"]
    assert "Compared with second.pt" in (tmp_path / "a" / "report.html").read_text()

    evaluated(cache, "--ckpt", first, "--split", "train", "--out", tmp_path / "a")
    assert not (tmp_path / "a" / "changed.csv").exists()


def test_checkpoints_of_one_name_are_told_apart_by_their_folders(cache: Path, first: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "first.pt"
    copy.write_bytes(first.read_bytes())

    said = evaluated(cache, "--ckpt", first, "--compare", copy, "--out", tmp_path / "e")["comparison"]

    assert (str(first), str(copy)) == (said["first"], said["second"])
    assert f"{first} and {copy} are correct on the same" in said["conclusion"]


@pytest.mark.slow
def test_a_checkpoint_of_another_cache_is_not_compared(cache: Path, first: Path, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "o.h5", dict.fromkeys("abc", 21), spec=Spec(9, 16, 16))
    stranger = trained(other, "stranger.pt", 0)

    with tiny_models():
        result = call(videval, cache, "--ckpt", first, "--compare", stranger, "--out", tmp_path / "e")
        allowed = call(
            videval, cache, "--ckpt", first, "--compare", stranger, "--allow-mismatch", "--out", tmp_path / "e"
        )

    assert 5 == result.exit_code
    assert f"{stranger}: trained on cache " in result.stderr
    assert 0 == allowed.exit_code
    assert "But stranger.pt may have been trained on these clips." in allowed.stdout
    with tiny_models():
        turned = call(
            videval, cache, "--ckpt", stranger, "--compare", first, "--allow-mismatch", "--out", tmp_path / "e"
        )
    assert "But stranger.pt may have been trained on these clips." in turned.stdout
    page = (tmp_path / "e" / "report.html").read_text()
    assert 2 == page.count("The checkpoint was trained on another cache or split, about which nothing is known here.")
    assert "Within this cache: No evaluated clip" in page
    assert "Training clips per class" not in page


@pytest.mark.slow
def test_explain_draws_into_the_report(cache: Path, tmp_path: Path) -> None:
    """With the real model: the tiny one has no layer4."""
    with torch.random.fork_rng():
        assert 0 == call(vidtrain, cache, *TRAIN, "--epochs", 1, "--out", tmp_path / "real.pt").exit_code
    pages = []
    for options in ([], ["--explain"]):
        result = call(videval, cache, "--ckpt", tmp_path / "real.pt", "--out", tmp_path / "e", *options)
        assert 0 == result.exit_code, result.stderr
        pages.append((tmp_path / "e" / "report.html").read_text())

    assert "Grad-CAM" not in pages[0]
    assert "Grad-CAM of layer4" in pages[1]
    assert pages[1].count("data:image/png") > pages[0].count("data:image/png")


def test_the_report_tells_of_the_run_beside_the_checkpoint(cache: Path, first: Path, tmp_path: Path) -> None:
    said = evaluated(cache, "--ckpt", first, "--out", tmp_path / "e")

    page = " ".join((tmp_path / "e" / "report.html").read_text().split())
    best = Checkpoint.load(first).epoch
    assert f"The weights are those of epoch {best} of 2. The run ended because all 2 epochs are done." in page
    assert re.search(
        r"main \S*/cache.h5 --weights none --freeze none --epochs 2 .* --out \S*/first.pt main \S*/cache", page
    )
    assert best == said["epoch"]


def test_the_run_of_another_checkpoint_is_not_believed(first: Path, second: Path, tmp_path: Path) -> None:
    mine, other = Checkpoint.load(first), Checkpoint.load(second)
    assert 2 == len(read_run_log(first, mine).epochs)

    assert RunLog() == read_run_log(first, other)
    assert RunLog() == read_run_log(tmp_path / "lonely.pt", mine)

    folder = tmp_path / "x.run"
    folder.mkdir()
    whole = (first.with_suffix(".run") / "metrics.csv").read_text()
    lines = whole.splitlines()
    without = "\n".join(",".join(line.split(",")[:3]) for line in lines)
    no_number = "\n".join([lines[0], ",".join([lines[1].split(",")[0], "nan", *lines[1].split(",")[2:]]), *lines[2:]])
    for text in ("epoch,val_loss\n1,what\n", without, no_number, whole + "\x00" * 3, '"' + "x" * 200_000):
        (folder / "metrics.csv").write_text(text)
        assert RunLog() == read_run_log(tmp_path / "x.pt", mine), text[:100]
    (folder / "metrics.csv").write_bytes((first.with_suffix(".run") / "metrics.csv").read_bytes())
    (folder / "config.json").write_text("[]")
    (folder / "result.json").write_text("{")
    assert ("", "") == (
        read_run_log(tmp_path / "x.pt", mine).command,
        read_run_log(tmp_path / "x.pt", mine).stopped_because,
    )
