"""Classes that are told apart by left and right: what is found, what is not, and who says so."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from tests.helpers import make_cache, tiny_models
from vidcache.cache.format import Split
from vidcache.cache.leakage import MirrorPair, describe_mirror_pairs, find_mirror_pairs, named_pairs, proven_pairs
from vidcache.cache.reader import CacheReader
from vidcache.near_duplicates import perceptual_hash
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

Clip = npt.NDArray[np.uint8]
SIDE, FRAMES = 36, 16


def draw(kind: str, rng: np.random.Generator) -> Clip:
    """A disc on a background of its own that does what its class says: (16, 36, 36, 3)."""
    y, x = np.meshgrid(*2 * [(np.arange(SIDE) + 0.5) / SIDE], indexing="ij")
    corner = rng.uniform(0.1, 0.5, 3)
    ground = corner[0] + (corner[1] - corner[0]) * x + (corner[2] - corner[0]) * y
    time, radius = np.linspace(0, 1, FRAMES), np.full(FRAMES, rng.uniform(0.08, 0.15))
    across, down = np.full(FRAMES, rng.uniform(0.35, 0.65)), np.full(FRAMES, rng.uniform(0.35, 0.65))
    path = rng.uniform(0.1, 0.3) + rng.uniform(0.35, 0.6) * time ** rng.uniform(0.7, 1.4)
    angle = rng.uniform(0, 6) + rng.uniform(3, 5) * time
    side = np.full(FRAMES, rng.uniform(0.1, 0.35))
    if kind in ("goes_left", "goes_right"):
        across = path if kind == "goes_right" else 1 - path
    elif kind in ("goes_up", "goes_down"):
        down = path if kind == "goes_down" else 1 - path
    elif kind in ("lies_left", "lies_right"):
        across = side if kind == "lies_left" else 1 - side
    elif kind in ("turns_cw", "turns_ccw"):
        turn = 1 if kind == "turns_cw" else -1
        across, down = 0.5 + 0.25 * np.cos(angle * turn), 0.5 + 0.25 * np.sin(angle * turn)
    elif kind in ("grows", "shrinks"):
        radius = radius * (0.5 + 1.5 * (time if kind == "grows" else 1 - time))
    disc = np.hypot(x - across[:, None, None], y - down[:, None, None]) < radius[:, None, None]
    frames = ground + disc * rng.choice([-0.4, 0.4]) + rng.normal(0, 0.02, (FRAMES, SIDE, SIDE))
    return np.repeat((np.clip(frames, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def hashes(kinds: list[str], count: int, seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    clips = [perceptual_hash(draw(kind, rng)) for kind in kinds for _ in range(count)]
    return np.stack(clips), np.repeat(np.arange(len(kinds)), count)


def cache_of(path: Path, kinds: list[str], names: list[str], count: int = 20) -> Path:
    """A cache whose classes, named otherwise perhaps, do what `kinds` say."""

    def make(spec: Spec, row: int, seed: int, label: int | None) -> Clip:
        assert (FRAMES, SIDE, SIDE) == spec.clip_shape[:3]
        return draw(kinds[label or 0], np.random.default_rng([seed, row]))

    counts = dict.fromkeys(names, count)
    return make_cache(path, counts, spec=Spec(FRAMES, SIDE, SIDE), learnable=True, make=make)


@pytest.mark.parametrize(
    ("kinds", "pairs"),
    [
        (["goes_left", "goes_right"], [(0, 1)]),
        (["turns_cw", "turns_ccw"], [(0, 1)]),
        (["lies_left", "lies_right"], [(0, 1)]),
        (["goes_up", "goes_left", "grows", "goes_right"], [(1, 3)]),
        (["goes_up", "goes_down"], []),
        (["grows", "shrinks", "goes_up", "goes_down"], []),
    ],
)
def test_what_mirroring_confuses_is_found_whatever_it_is_called(kinds: list[str], pairs: list[Any]) -> None:
    found = proven_pairs(*hashes(kinds, 20))

    assert pairs == [(pair.first, pair.second) for pair in found]
    assert all(pair.share is not None and pair.share > 0.7 for pair in found)


@pytest.mark.parametrize("num_classes", [2, 7])
def test_random_labels_and_classes_that_do_both_are_not_found(num_classes: int) -> None:
    both, _ = hashes(["goes_left", "goes_right"], 40)
    for seed in range(20):
        assert () == proven_pairs(both, np.random.default_rng(seed).integers(0, num_classes, len(both)))


def test_too_few_clips_prove_nothing() -> None:
    few, labels = hashes(["goes_left", "goes_right"], 4)
    assert () == proven_pairs(few, labels)
    assert () == proven_pairs(few[:0], labels[:0])
    some, labels = hashes(["goes_left", "goes_right"], 6)
    assert 1 == len(proven_pairs(some, labels))


@pytest.mark.parametrize(
    ("classes", "pairs"),
    [
        (("swipe_left", "swipe_right"), [(0, 1)]),
        (("SwipeLeft", "SwipeRight"), [(0, 1)]),
        (("left turn", "no turn", "right turn"), [(0, 2)]),
        (("left-to-right", "right-to-left"), [(0, 1)]),
        (("arm l", "arm r", "arm_lr"), [(0, 1)]),
        (("turn_clockwise", "turn_counter_clockwise"), [(0, 1)]),
        (("Anticlockwise", "clockwise"), [(0, 1)]),
        (("cw", "ccw"), [(0, 1)]),
        (("west", "east"), [(0, 1)]),
        (("links abbiegen", "rechts abbiegen"), [(0, 1)]),
        (("bright", "left", "lift", "all", "arr"), []),
        (("copyleft", "copyright", "L", "R", "eastern", "western"), []),
        (("left_up", "right_down"), []),
    ],
)
def test_names_that_become_each_other(classes: tuple[str, ...], pairs: list[Any]) -> None:
    assert pairs == named_pairs(classes)


def test_only_training_clips_are_asked(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "c.h5", ["goes_left", "goes_right"], ["a", "b"])

    with CacheReader(cache) as reader:
        train_rows = reader.rows("train")
        expected = proven_pairs(reader.columns["perceptual_hash"][train_rows], reader.labels[train_rows])
        assert 1 == len(expected)
        assert expected == find_mirror_pairs(reader)
        reader.columns["split"][train_rows] = Split.UNUSED
        assert () == find_mirror_pairs(reader)


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "warns"), [([], True), (["--flip", "0"], False), (["--augment", "none"], False)])
def test_a_run_that_mirrors_them_warns(tmp_path: Path, arguments: list[str], warns: bool) -> None:
    cache = cache_of(tmp_path / "c.h5", ["goes_left", "goes_right"], ["a", "b"])
    quick = ["--weights", "none", "--freeze", "none", "--epochs", "1", "--amp", "off", "--device", "cpu"]

    with tiny_models():
        result = CliRunner().invoke(vidtrain, [str(cache), *quick, *arguments, "--out", str(tmp_path / "best.pt")])

    assert 0 == result.exit_code, result.stderr
    warning = "Mirroring turns one class into another: a and b (100% of their mirrored clips are nearer to the other"
    assert warns == (warning in result.stderr)


def test_names_alone_are_a_hint(tmp_path: Path) -> None:
    with CacheReader(cache_of(tmp_path / "named.h5", ["goes_up", "goes_down"], ["a_l", "a_r"])) as reader:
        said = describe_mirror_pairs(find_mirror_pairs(reader), reader.classes)

    assert "Mirroring may turn one class into another: a_l and a_r (by their names)" == said


def test_many_pairs_are_counted_not_listed() -> None:
    classes = tuple(f"{name}_{side}" for name in "abcde" for side in ("left", "right"))
    pairs = tuple(MirrorPair(first, second, None) for first, second in named_pairs(classes))

    said = describe_mirror_pairs(pairs, classes)
    assert said.endswith("c_left and c_right (by their names), and 2 more pairs")
