"""The commands as a user types them: output, JSON, exit codes, messages."""

import csv
import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from matplotlib.image import imread

from tests.helpers import TOOLS, make_cache, make_raw, make_video, tiny_models
from vidcache import cli
from vidcache.cache.lock import build_folder
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.cli import COMMANDS, echo_json
from vidcache.eval.cli import main as videval
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.preprocess.demo import CLASSES
from vidcache.preprocess.video.decode import DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import SubprocessGroup
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

QUICK = ("--weights", "none", "--epochs", "2", "--batch-size", "8", "--amp", "off", "--lr", "1e-2", "--device", "cpu")


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def vidcache(*arguments: object) -> Result:
    return call(cli.main, *arguments)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 3 classes x 6 videos, and one failed video."""
    folder = tmp_path_factory.mktemp("built")
    raw = make_raw(folder / "raw", {"fall": 6, "jump": 6, "rise <b>[red]": 6})
    (raw / "jump" / "broken.mp4").write_bytes(b"broken" * 50)
    result = vidcache("build", raw, folder / "cache.h5", "--num-frames", 8, "--size", "32x48", "--workers", 2)
    assert 0 == result.exit_code, result.stderr
    return folder / "cache.h5"


@pytest.fixture(scope="module")
def checkpoint(built: Path) -> Path:
    """A checkpoint of a run on that cache, with 4 of the 8 frames."""
    path = built.parent / "best.pt"
    with tiny_models():
        result = call(vidtrain, built, *QUICK, "--num-frames", 4, "--out", path)
    assert 0 == result.exit_code, result.stderr
    return path


# --- vidcache ---------------------------------------------------------------------------------


def test_help_lists_every_command_without_importing_it() -> None:
    code = "import sys; from vidcache.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", said, re.M)
    assert not {"torch", "numpy", "h5py", "vidcache.preprocess", "vidcache.cache"} & set(said.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_sub_command_has_help_with_an_example(command: str) -> None:
    result = vidcache(command, "--help")

    assert 0 == result.exit_code
    assert re.search(rf"\n  vid(cache )?{command} ", result.stdout)


# --- build ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "code"), [("0", 3), ("1", 0), ("5%", 3), ("6%", 0)])
def test_more_failures_than_a_count_or_a_percentage_are_exit_3(
    built: Path, tmp_path: Path, allowed: str, code: int
) -> None:
    options = ("--num-frames", 2, "--size", 16, "--max-failures", allowed)
    result = vidcache("build", built.parent / "raw", tmp_path / "c.h5", *options)

    assert code == result.exit_code, result.stderr
    assert "" == result.stdout
    assert re.search(r"failed +│ unreadable +│ 1", result.stderr)
    assert ("c.h5: finished, but 1 of 19 videos failed, more than the" in result.stderr) == (code == 3)
    assert (tmp_path / "c.h5").exists()


def test_build_json_is_one_object(built: Path, tmp_path: Path) -> None:
    result = vidcache("build", built.parent / "raw", tmp_path / "c.h5", "--num-frames", 8, "--size", "32x48", "--json")

    said = json.loads(result.stdout)
    with CacheReader(built) as reader:
        fingerprint = reader.fingerprint
    assert said.pop("seconds") > 0
    assert {
        "cache": str(tmp_path / "c.h5"),
        "fingerprint": fingerprint,
        "num_videos": 19,
        "num_clips": 18,
        "num_failed": 1,
        "num_damaged": 0,
        "num_decoded": 19,
        "num_reused": 0,
        "classes": {"fall": 6, "jump": 6, "rise <b>[red]": 6},
        "splits": {"train": 12, "val": 3, "test": 3, "unused": 0},
        "notes": [],
    } == said


def test_dry_run_writes_nothing(built: Path, tmp_path: Path) -> None:
    raw = built.parent / "raw"

    text = vidcache("build", raw, tmp_path / "c.h5", "--dry-run")
    said = json.loads(vidcache("build", raw, tmp_path / "c.h5", "--dry-run", "--json", "--num-frames", 32).stdout)

    assert 0 == text.exit_code
    assert "19 videos, 3 classes" in text.stdout
    assert "rise <b>[red]" in text.stdout
    num_bytes = sum(file.stat().st_size for file in raw.rglob("*") if file.is_file())
    expected = {"num_videos": 19, "num_bytes": num_bytes, "cache_bytes": 19 * 32 * 112 * 112 * 3}
    assert {**expected, "classes": {"fall": 6, "jump": 7, "rise <b>[red]": 6}, "notes": []} == said
    assert [] == list(tmp_path.iterdir())


USAGE = {
    "vidcache build RAW OUT": (
        ("--size big", "size 'big' is neither one number nor HEIGHTxWIDTH"),
        ("--size 8", "height: 8, expected 16 to 1024"),
        ("--num-frames 1", "1 is not in the range 2<=x<=1024"),
        ("--split 70/30", "split '70/30': not train/val/test percentages"),
        ("--max-failures few", "max-failures 'few' is neither a count nor a percentage"),
        ("--max-failures -1", "max-failures '-1' is neither a count nor a percentage"),
        ("--max-failures 101%", "max-failures '101%' is neither a count nor a percentage"),
        ("--max-failures 1.5", "max-failures '1.5' is neither a count nor a percentage"),
        ("--workers 0", "0 is not in the range x>=1"),
        ("--timeout 0", "0 is not in the range x>0"),
        ("--timeout nan", "nan is not"),
        ("--ffmpeg-dir /nonexistent", "ffprobe: is no working ffmpeg (No such file or directory)"),
    ),
    "vidtrain CACHE --weights none --out OUT": (
        ("--device cuda", "sees no GPU"),
        ("--device toaster", "Expected one of cpu, cuda"),
        ("--balance some", "'some' is not one of 'both', 'sampler', 'loss', 'none'"),
        ("--lr 0", "0 is not in the range x>0"),
        ("--hue 0.6", "0.6 is not in the range 0<=x<=0.5"),
        ("--grad-accum-steps 0", "0 is not in the range x>=1"),
        ("--num-frames 9", "--num-frames 9: a clip has 8 frames"),
        ("--init CKPT", "--weights cannot be combined with --init"),
        ("--cache-features 0", "0 is not in the range 1<=x<=10000"),
        ("--cache-features 2", "--cache-features: needs frozen stages. Leave it out, or use --freeze stem or more"),
        ("--amp bf16-prefix", "--amp bf16-prefix: needs frozen stages. Leave it out"),
    ),
    "videval CACHE --ckpt CKPT": (("--device cuda", "sees no GPU"), ("--device toaster", "Expected one of cpu, cuda")),
    "vidpredict RAW --ckpt CKPT": (("--device cuda", "sees no GPU"), ("--device toaster", "Expected one of cpu, cuda")),
}


@pytest.mark.parametrize(
    ("command", "options", "message"), [(command, *case) for command, cases in USAGE.items() for case in cases]
)
def test_bad_options_are_usage_errors(
    built: Path, checkpoint: Path, tmp_path: Path, command: str, options: str, message: str
) -> None:
    names = {"RAW": built.parent / "raw", "CACHE": built, "CKPT": checkpoint, "OUT": tmp_path / "new"}
    program, *words = f"{command} {options}".split()
    programs = {"vidcache": cli.main, "vidtrain": vidtrain, "videval": videval, "vidpredict": vidpredict}

    result = call(programs[program], *(names.get(word, word) for word in words))

    assert 2 == result.exit_code
    assert message in " ".join(result.stderr.split())


def test_errors_are_one_line_and_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = vidcache("build", tmp_path / "none", tmp_path / "c.h5")
    assert 2 == result.exit_code
    assert f"Error: {tmp_path}/none: No such file or directory. Name a folder of videos\n" == result.stderr

    monkeypatch.setenv("VIDCACHE_DEBUG", "1")
    result = vidcache("build", tmp_path / "none", tmp_path / "c.h5")
    assert 2 == result.exit_code
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert f"Error: {tmp_path}/none: No such file" in result.stderr


def test_the_environment_is_weaker_than_the_command_line(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDCACHE_NUM_FRAMES", "4")
    monkeypatch.setenv("VIDCACHE_FFMPEG_DIR", "/nonexistent")
    raw = built.parent / "raw"

    assert 2 == vidcache("build", raw, tmp_path / "c.h5").exit_code
    monkeypatch.delenv("VIDCACHE_FFMPEG_DIR")
    said = [
        json.loads(vidcache("build", raw, "c.h5", "--dry-run", "--json", *more).stdout)
        for more in ((), ("--num-frames", 2))
    ]
    assert [4, 2] == [entry["cache_bytes"] // (19 * 112 * 112 * 3) for entry in said]


def test_a_full_disk_is_a_message(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))

    result = vidcache("build", built.parent / "raw", tmp_path / "c.h5")

    assert 1 == result.exit_code
    assert re.search(r"c\.h5: needs [\d,]+ bytes, but its disk has 0 free", result.stderr)


def _journal_bytes(output: Path) -> int:
    return sum(path.stat().st_size for path in build_folder(output).glob("*/journal"))


@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        ("writer", "CacheWriter.finish", "build raw c.h5 --num-frames 4 --size 16"),
        ("validate", "check_attributes", "info old.h5"),  # where whatever is raised means that the cache is damaged
    ],
)
def test_an_interruption_that_becomes_another_error_is_exit_code_130(
    raw_dir: Path, cache_file: Path, tmp_path: Path, module: str, name: str, command: str
) -> None:
    """NumPy makes a TypeError of a KeyboardInterrupt, a lock that is being taken a RuntimeError."""
    (tmp_path / "raw").symlink_to(raw_dir)
    (tmp_path / "old.h5").symlink_to(cache_file)
    code = f"""
import signal
from vidcache.cache import {module}
from vidcache.cli import main

def interrupt(*_):
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise TypeError("not an interruption")

{module}.{name} = interrupt
main()
"""
    words = [sys.executable, "-c", code, *command.split()]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert 130 == ended.returncode, ended.stderr
    assert "Error: interrupted" in ended.stderr
    assert ("; what is done is kept" in ended.stderr) == command.startswith("build")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done_and_exits_130(tmp_path: Path, number: int) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 3})
    slow = tmp_path / "slow"
    slow.mkdir()
    script = f'#!/bin/sh\ncase "$*" in *-version*) ;; *) sleep 0.4;; esac\nexec {TOOLS.ffmpeg} "$@"\n'
    (slow / "ffmpeg").write_text(script)
    (slow / "ffmpeg").chmod(0o755)
    (slow / "ffprobe").symlink_to(TOOLS.ffprobe)
    for index in range(9):
        make_video(raw / "a" / f"more_{index}.mkv", 5)
    options = ["--workers", "1", "--num-frames", "4", "--size", "16", "--ffmpeg-dir", str(slow)]
    command = [sys.executable, "-c", "from vidcache.cli import main; main()", "build", str(raw), str(tmp_path / "c.h5")]
    # A shell starts background jobs with SIGINT ignored, and that is inherited: not what is tested here.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, preexec_fn=heed) as child:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _journal_bytes(tmp_path / "c.h5"):
            time.sleep(0.05)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert 130 == child.returncode, said
    assert "Error: interrupted; what is done is kept: run the same command again to go on\n" in said

    again = subprocess.run([*command, *options, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["num_reused"] >= 1


@pytest.mark.parametrize("program", ["vidcache.cli", "vidcache.train.cli"])
def test_ctrl_c_before_the_work_ends_the_process(program: str) -> None:
    """While the command is imported or its options are read: 130 of a shell, not click's 1."""
    code = f"import signal, click; from {program} import main\n"
    code += "click.Context.__init__ = lambda *_, **settings: signal.raise_signal(signal.SIGINT)\nmain()"
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)

    ended = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, preexec_fn=heed)

    assert -signal.SIGINT == ended.returncode, ended.stderr


def test_an_ignored_signal_stays_ignored(built: Path, tmp_path: Path) -> None:
    """As a shell's background jobs ignore SIGINT: Ctrl-C is for what runs in the foreground."""
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    code = "import os, signal; from vidcache.cli import main; from vidcache.cache import writer\n"
    code += "lock = writer.lock_output\n"
    code += "writer.lock_output = lambda output: (lock(output), signal.raise_signal(signal.SIGINT))[0]\n"
    command = [sys.executable, "-c", code + "main()", "build", built.parent / "raw", tmp_path / "c.h5"]

    ended = subprocess.run([*command, "--max-failures", "1"], capture_output=True, text=True, preexec_fn=ignore)

    assert 0 == ended.returncode, ended.stderr


# --- info and verify --------------------------------------------------------------------------


def test_info_shows_what_is_there(built: Path) -> None:
    text = vidcache("info", built)
    said = json.loads(vidcache("info", built, "--json").stdout)

    assert 0 == text.exit_code
    for piece in (
        "18 of 19 videos (1 failed, 0 damaged)",
        "8 frames of 32x48",
        said["fingerprint"],
        "1 unreadable",
        "rise <b>[red]",
    ):
        assert piece in text.stdout
    assert re.search(r"fall +│ 4 +│ 1 +│ 1 +│ 6 ", text.stdout)
    assert re.search(r"all +│ 12 +│ 3 +│ 3 +│ 18 ", text.stdout)
    assert f"{'split':16} {said['split_hash']}\n" in text.stdout
    assert f"{'padded':16} 0 clips with fewer than 8 frames\n" in text.stdout
    assert {"fall": 6, "jump": 6, "rise <b>[red]": 6} == said["classes"]
    assert {"train": {"fall": 4, "jump": 4, "rise <b>[red]": 4}} == {"train": said["splits"]["train"]}
    assert (8, 32, 48) == tuple(said["spec"][name] for name in ("num_frames", "height", "width"))
    assert {"unreadable": 1} == said["failures"]
    assert TOOLS.version == said["attributes"]["ffmpeg_version"]


def test_verify_finds_a_flipped_bit(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    shutil.copy(built, path)
    assert {"ok": True, "num_checked": 18, "bad": []} == json.loads(vidcache("verify", path, "--json").stdout)
    assert "18 clips checked, 0 bad" in vidcache("verify", path).stdout
    with CacheReader(path) as reader:
        offset, name = reader.header.clips_offset + 3 * reader.spec.clip_bytes, reader.path_of(3).decode()
    with path.open("r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ 128]))

    result = vidcache("verify", path)
    as_json = vidcache("verify", path, "--json")
    said = json.loads(as_json.stdout)

    assert 4 == result.exit_code == as_json.exit_code
    assert f"row 3 ({name}): the clip does not match its hash" in result.stdout
    assert "1 of 18 clips do not match their hash" in result.stderr
    problem = {"row": 3, "path": name, "problem": "the clip does not match its hash"}
    assert {"ok": False, "num_checked": 18, "bad": [problem]} == said


def test_verify_of_something_else_is_exit_4(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"something else")

    result = vidcache("verify", tmp_path / "x.h5", "--json")

    assert 4 == result.exit_code
    said = json.loads(result.stdout)
    assert (False, 0) == (said["ok"], said["num_checked"])
    assert "not a file of vidcache" in said["bad"][0]["problem"]


# --- vidtrain ---------------------------------------------------------------------------------


def test_train_writes_a_run_and_says_what_it_did(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDCACHE_SEED", "3")
    with tiny_models():
        result = call(vidtrain, built, *QUICK, "--json")

    assert 0 == result.exit_code, result.stderr
    said = json.loads(result.stdout)
    assert {"checkpoint", "best_epoch", "num_epochs", "val_loss", "val_accuracy", "stopped_because"} == set(said)
    assert ("best.pt", 2, "all 2 epochs are done") == (said["checkpoint"], said["num_epochs"], said["stopped_because"])
    assert {"best.pt", "best.run"} == {file.name for file in tmp_path.iterdir()}
    ended = json.loads((tmp_path / "best.run" / "result.json").read_text())
    assert {"best_epoch": said["best_epoch"], "stopped_because": "all 2 epochs are done"} == ended
    config = json.loads((tmp_path / "best.run" / "config.json").read_text())
    assert 3 == config["config"]["seed"]
    assert config["command"].startswith("VIDCACHE_SEED=3 ")
    assert config["command"].endswith(f" {built} {' '.join(map(str, QUICK))} --json")
    for piece in (
        "draws/epoch",
        "rise <b>[red]",
        "precision: float32",
        "epoch   1  train loss",
        "best.pt: epoch",
    ):
        assert piece in result.stderr


def test_init_starts_from_a_checkpoint(built: Path, checkpoint: Path, tmp_path: Path) -> None:
    with tiny_models():
        quick = [word for word in QUICK if word not in ("--weights", "none")]
        result = call(vidtrain, built, *quick, "--init", checkpoint, "--out", tmp_path / "x.pt")
    assert 0 == result.exit_code, result.stderr
    assert f"starting from {checkpoint} (epoch" in result.stderr
    config = json.loads((tmp_path / "x.run" / "config.json").read_text())["config"]
    assert (str(checkpoint), "layer2") == (config["init"], config["freeze"])


def test_every_training_option_reaches_the_config(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    options = {
        "--freeze": "stem", "--num-frames": 4, "--epochs": 1, "--batch-size": 5, "--grad-accum-steps": 2, "--cache-features": 3, "--lr": 0.02, "--lr-schedule": "cosine", "--warmup-epochs": 0.5,
        "--weight-decay": 0.1, "--label-smoothing": 0.1, "--clip-grad-norm": 3.0,
        "--balance": "sampler", "--augment": "exact", "--flip": 0.25, "--brightness": 0.3, "--contrast": 0.4,
        "--saturation": 0.5, "--hue": 0.05, "--min-delta": 0.2, "--patience": 7, "--min-epochs": 3, "--amp": "off",
        "--seed": 9, "--num-workers": 1, "--device": "cpu", "--weights": "none",
    }  # fmt: skip
    with tiny_models():
        pairs = [str(word) for pair in options.items() for word in pair]
        flags = ("--shuffle-labels", "--verify", "--deterministic", "--tensorboard")
        features = tmp_path / "f.h5"
        result = call(vidtrain, built, *pairs, *flags, "--feature-file", features, "--out", tmp_path / "x.pt")
    assert 0 == result.exit_code, result.stderr

    config = json.loads((tmp_path / "x.run" / "config.json").read_text())["config"]
    flat = {**config, **config.pop("strength")}
    expected = {name.lstrip("-").replace("-", "_"): value for name, value in options.items()}
    for name, field in (
        ("cache_features", "feature_views"), ("num_frames", "num_frames_used"), ("grad_accum_steps", "accumulate"),
        ("clip_grad_norm", "clip_norm"), ("num_workers", "reader_threads"),
    ):  # fmt: skip
        expected[field] = expected.pop(name)
    expected["feature_file"] = str(features)
    expected |= {"shuffle_labels": True, "verify": True, "deterministic": True, "compile": False, "init": None}
    assert expected == {k: v for k, v in flat.items() if k != "strength"}
    assert features.exists()
    assert re.search(rf"features: \d+ entries = 0.00 GB: computing them into {features}", result.stderr)
    assert list((tmp_path / "x.run" / "tensorboard").iterdir())


def test_freeze_depends_on_the_weights_unless_asked() -> None:
    from vidcache.train.config import TrainConfig

    assert "none" == TrainConfig.from_options({"weights": "none", "freeze": None}, "cpu").freeze
    assert "layer2" == TrainConfig.from_options({"weights": "kinetics400"}, "cpu").freeze
    assert "stem" == TrainConfig.from_options({"weights": "none", "freeze": "stem"}, "cpu").freeze


# --- videval ----------------------------------------------------------------------------------


@pytest.mark.pictures
def test_eval_writes_numbers_and_pictures_that_agree(built: Path, checkpoint: Path, tmp_path: Path) -> None:
    with tiny_models():
        text = call(videval, built, "--ckpt", checkpoint, "--out", tmp_path / "x.eval")
        result = call(videval, built, "--ckpt", checkpoint, "--out", tmp_path / "x.eval", "--json")

    assert 0 == result.exit_code, result.stderr
    said = json.loads(result.stdout)
    assert ("test", 3, str(tmp_path / "x.eval" / "report.html")) == (said["split"], said["num_clips"], said["report"])
    folder = tmp_path / "x.eval"
    names = {"metrics.json", "per_class.csv", "predictions.csv", "confusion.png", "per_class.png", "report.html"}
    assert names == {file.name for file in folder.iterdir()}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert said == {name: metrics[name] for name in said}
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert pytest.approx(said["accuracy"]) == np.mean([row["true"] == row["class1"] for row in rows])
    with CacheReader(built) as reader:
        assert [reader.path_of(row).decode() for row in reader.rows("test")] == [row["path"] for row in rows]
    assert all(pytest.approx(1, abs=1e-4) == sum(float(row[f"probability{k}"]) for k in (1, 2, 3)) for row in rows)
    with (folder / "per_class.csv").open(newline="") as file:
        per_class = list(csv.DictReader(file))
    assert [entry["class"] for entry in said["per_class"]] == [row["class"] for row in per_class]
    assert sum(entry["num_correct"] for entry in said["per_class"]) == round(said["accuracy"] * 3)
    for name in ("confusion.png", "per_class.png"):
        picture = imread(folder / name)
        assert min(picture.shape[:2]) > 100
        assert picture[..., :3].std() > 0.05
    assert f"accuracy    {said['accuracy']:.1%} ({said['accuracy_low']:.1%} to" in text.stdout


def test_eval_goes_beside_the_checkpoint_and_takes_a_split(built: Path, checkpoint: Path) -> None:
    with tiny_models():
        said = {
            split: json.loads(call(videval, built, "--ckpt", checkpoint, "--split", split, "--json").stdout)
            for split in ("train", "val", "test")
        }

    assert [12, 3, 3] == [said[split]["num_clips"] for split in ("train", "val", "test")]
    assert str(checkpoint.with_suffix(".eval") / "report.html") == said["test"]["report"]
    assert (checkpoint.parent / "best.eval" / "metrics.json").exists()
    saved = Checkpoint.load(checkpoint)
    assert pytest.approx(saved.metrics["val_accuracy"]) == said["val"]["accuracy"]


def test_another_cache_is_exit_5_unless_accepted(built: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--num-frames", 8, "--size", "32x48")
    raw = tmp_path / "raw"
    shutil.copytree(built.parent / "raw", raw)
    make_video(raw / "jump" / "jump_new.mkv", 30)
    assert 0 == vidcache("build", raw, tmp_path / "clips.h5", *options).exit_code
    assert 0 == vidcache("build", built.parent / "raw", tmp_path / "split.h5", *options, "--seed", 5).exit_code
    with CacheReader(built) as one, CacheReader(tmp_path / "clips.h5") as two:
        fingerprints = (one.fingerprint, two.fingerprint)

    for name, message in (
        ("clips.h5", f"best.pt: trained on cache {fingerprints[0]}, but {tmp_path}/clips.h5 is {fingerprints[1]}"),
        ("split.h5", f"best.pt: trained on split {Checkpoint.load(checkpoint).split_hash}, but {tmp_path}/split.h5 is"),
    ):
        with tiny_models():
            refused = call(videval, tmp_path / name, "--ckpt", checkpoint)
            accepted = call(
                videval, tmp_path / name, "--ckpt", checkpoint, "--allow-mismatch", "--out", tmp_path / f"{name}.eval"
            )
        assert (5, 0) == (refused.exit_code, accepted.exit_code), accepted.stderr
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": Spec(4, 16, 16)}, "x.pt: trained on 4 frames of 16x16, but"),
        ({"classes": ("fall", "fly")}, "has 3 (new: jump, rise <b>[red]; missing: fly)"),
        ({"classes": ("jump", "fall", "rise <b>[red]")}, "the same names in another order"),
        ({"mean": (0.5, 0.5, 0.5)}, "x.pt: trained on clips with mean (0.5, 0.5, 0.5) and deviation (0.22803, "),
        ({"weights": {"fc.bias": torch.zeros(3)}}, "x.pt: weights do not fit an R3D-18"),
    ],
    ids=["spec", "classes", "order", "normalisation", "weights"],
)
def test_a_checkpoint_that_cannot_be_meant_is_never_accepted(
    built: Path, checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    dataclasses.replace(Checkpoint.load(checkpoint), **changes).save(tmp_path / "x.pt")

    for more in ((), ("--allow-mismatch",)):
        with tiny_models():
            result = call(videval, built, "--ckpt", tmp_path / "x.pt", *more)

        assert 5 == result.exit_code
        assert message in result.stderr


def test_a_missing_checkpoint_and_an_empty_split_are_errors(built: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert 5 == call(videval, built, "--ckpt", tmp_path / "none.pt").exit_code
    path = make_cache(tmp_path / "c.h5", {"fall": 1, "jump": 1, "rise <b>[red]": 1}, spec=Spec(8, 32, 48))
    with tiny_models():
        result = call(videval, path, "--ckpt", checkpoint, "--split", "val", "--allow-mismatch")

    assert 2 == result.exit_code
    assert "c.h5: no val clips. Choose another --split" in result.stderr


# --- vidpredict -------------------------------------------------------------------------------


def test_predictions_equal_those_of_the_evaluation(built: Path, checkpoint: Path, tmp_path: Path) -> None:
    with tiny_models():
        assert 0 == call(videval, built, "--ckpt", checkpoint, "--out", tmp_path / "e").exit_code
        with (tmp_path / "e" / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        videos = [built.parent / "raw" / row["path"] for row in rows]
        result = call(vidpredict, *videos, "--ckpt", checkpoint, "--json")
        text = call(vidpredict, *videos, "--ckpt", checkpoint)

    assert 0 == result.exit_code, result.stderr
    said = json.loads(result.stdout)["predictions"]
    assert [str(video) for video in videos] == [entry["video"] for entry in said]
    for row, entry in zip(rows, said, strict=True):
        assert [row[f"class{k}"] for k in (1, 2, 3)] == [guess["class"] for guess in entry["top"]]
        found = [guess["probability"] for guess in entry["top"]]
        assert pytest.approx([float(row[f"probability{k}"]) for k in (1, 2, 3)], abs=1e-5) == found
    assert f"{videos[0]}: {rows[0]['class1']} " in text.stdout


# --- demo -------------------------------------------------------------------------------------


def test_the_demo_set_has_the_same_pictures_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when all encoders have to share two CPUs: each kind of video once."""
    from vidcache.preprocess import demo

    monkeypatch.setattr(demo, "CLASSES", {"spin": 6})
    shown = []
    for workers in (1, 6):
        paths = demo.render_demo(tmp_path / str(workers), TOOLS, workers=workers)
        with SubprocessGroup() as children:
            clips = [decode_video(path, Spec(16, 32, 32), [TOOLS], children, DecodeLimits()).clip for path in paths]
        shown.append(np.stack(clips))

    assert 6 == len(shown[0])
    assert (shown[0] == shown[1]).all()


@pytest.mark.slow
def test_the_demo_set_is_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidcache.preprocess import demo

    monkeypatch.setattr(demo, "CLASSES", dict.fromkeys(CLASSES, 6))
    result = vidcache("demo", tmp_path / "raw", "--workers", 2)
    assert 0 == result.exit_code, result.stderr
    assert f"raw: 48 videos of {len(CLASSES)} classes" in result.stdout
    result = vidcache("build", tmp_path / "raw", tmp_path / "c.h5", "--size", 32)
    assert 0 == result.exit_code, result.stderr

    with CacheReader(tmp_path / "c.h5") as reader:
        columns = reader.columns
        assert tuple(sorted(CLASSES)) == reader.classes
        assert (columns["status"] == 0).all()
        assert {b"h264", b"mpeg4", b"vp8", b"mpeg2video", b"mjpeg"} == set(columns["codec"].tolist())
        assert (
            len({tuple(size) for size in zip(columns["width"].tolist(), columns["height"].tolist(), strict=True)}) >= 4
        )
        assert len(set(columns["fps"].round().tolist())) >= 4
        assert columns["num_frames"].min() < 64 < columns["num_frames"].max()
        assert [90] == [rotation for rotation in columns["rotation"].tolist() if rotation]


def test_another_seed_gives_other_videos(tmp_path: Path) -> None:
    from vidcache.preprocess.demo import draw_frames, motion

    def frames(seed: int, name: str) -> np.ndarray[object, np.dtype[np.uint8]]:
        rng = np.random.default_rng(seed)
        return draw_frames(motion(name, 10, rng), 64, 48, rng)

    for name in CLASSES:
        assert (frames(0, name) == frames(0, name)).all()
        assert (frames(0, name) != frames(1, name)).any()
        assert (frames(0, name)[0] != frames(0, name)[-1]).any()
    for one, two in (("rise", "fall"), ("grow", "shrink"), ("lights_on", "lights_off")):
        assert (frames(2, one)[::-1] == frames(2, two)).all()  # one is the other backwards


def test_an_ffmpeg_that_cannot_encode_is_reported(tmp_path: Path) -> None:
    (tmp_path / "ffmpeg").write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && exec {TOOLS.ffmpeg} -version\necho no codec >&2; exit 1\n'
    )
    (tmp_path / "ffmpeg").chmod(0o755)
    (tmp_path / "ffprobe").symlink_to(TOOLS.ffprobe)

    result = vidcache("demo", tmp_path / "raw", "--ffmpeg-dir", tmp_path, "--workers", 1)

    assert 1 == result.exit_code
    assert re.search(r"bounce_000\.mp4: ffmpeg \S+ cannot encode it \(no codec\)\. Use --ffmpeg-dir", result.stderr)


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}})

    assert {"a": [None, 1.5], "b": {"c": None}} == json.loads(capsys.readouterr().out)
