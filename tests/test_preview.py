"""`vidcache preview`: clips before and after augmentation, as training sees them."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import make_cache
from vidcache.cache.reader import CacheReader
from vidcache.cli import main
from vidcache.eval.inference import to_input
from vidcache.spec import Spec
from vidcache.train.augment import Strength
from vidcache.train.callbacks import augmented_strips, to_pictures

pytestmark = pytest.mark.pictures


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "c.h5", {"a": 8, "b": 8}, spec=Spec(6, 24, 32), learnable=True)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["preview", *map(str, arguments)])


def test_pictures_are_the_clips_again() -> None:
    clips = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)

    assert (clips.numpy() == to_pictures(to_input(clips))).all()


def test_strips_show_what_training_does(cache: Path) -> None:
    with CacheReader(cache) as reader:
        rows = reader.rows("train")[:3]
        strips = augmented_strips(
            reader, rows, "linear", Strength(flip=1, brightness=0, contrast=0, saturation=0, hue=0)
        )
        clips = reader.read(rows)

    for strip, clip in zip(strips, clips, strict=True):
        (first, before), (second, after) = strip.lines
        assert ("before", "after") == (first, second)
        assert (8, 24, 32, 3) == before.shape
        assert (clip[[0, 5]] == before[[0, 7]]).all()
        assert (np.abs(before[:, :, ::-1].astype(int) - after) <= 1).all()
        assert "mirrored, brightness x1.00, contrast x1.00, saturation x1.00, hue +0.00" in strip.title


def test_the_command_writes_a_picture(cache: Path) -> None:
    result = call(cache, "--num-clips", 2, "--num-frames", 5)

    assert 0 == result.exit_code, result.stderr
    path = cache.with_name("c.preview.png")
    assert f"{path}: 2 clips before and after --augment linear\n" == result.stdout
    height, width, _ = matplotlib.image.imread(path).shape
    assert 600 < width < 900
    assert 350 < height < 700


def test_every_option_changes_the_picture(cache: Path, tmp_path: Path) -> None:
    def picture(*arguments: object) -> bytes:
        assert 0 == call(cache, "--out", tmp_path / "x.png", "--num-clips", 2, *arguments).exit_code
        return (tmp_path / "x.png").read_bytes()

    plain = picture()
    assert plain == picture()
    for arguments in (
        ("--augment", "exact"), ("--augment", "none"), ("--flip", 0), ("--brightness", 0.9), ("--contrast", 0.9),
        ("--saturation", 0.9), ("--hue", 0.5), ("--split", "val"), ("--num-frames", 3), ("--num-clips", 1),
        ("--seed", 5), ("--epoch", 2),
    ):  # fmt: skip
        assert plain != picture(*arguments), arguments


def test_a_split_without_clips_is_an_error(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c.h5", {"a": 2, "b": 2}, spec=Spec(4, 16, 16))
    result = call(cache, "--split", "val")

    assert 2 == result.exit_code
    assert f"{cache}: no val clips, expected at least one. Choose another --split" in result.stderr
