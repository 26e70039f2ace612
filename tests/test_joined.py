"""Several caches as one, and a cache as a torch data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader

from tests.helpers import damage_clip, make_cache, tiny_models
from vidcache.cache.dataset import ClipDataset
from vidcache.cache.reader import CacheReader, ConcatReader, open_caches
from vidcache.cache.stream import rank_slice, stream_batches
from vidcache.errors import CacheError
from vidcache.eval.cli import main as videval
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

SPEC = Spec(6, 16, 16)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two caches of the same classes; paths of different lengths, one failed video each."""
    return [
        make_cache(tmp_path / "one.h5", {"a": 8, "b": 9}, spec=SPEC, failed=(3,), learnable=True),
        make_cache(
            tmp_path / "two.h5", {"a": 6, "b": 7}, spec=SPEC, failed=(0,), seed=1, prefix="longer", learnable=True
        ),
    ]


# --- joined ----------------------------------------------------------------------------------


def test_two_caches_are_one(pair: list[Path]) -> None:
    with CacheReader(pair[0]) as one, CacheReader(pair[1]) as two, open_caches(pair) as both:
        assert isinstance(both, ConcatReader)
        assert (30, SPEC, ("a", "b")) == (len(both), both.spec, both.classes)
        assert [*one.labels, *two.labels] == both.labels.tolist()
        for split in ("train", "val", "test", None):
            assert [*one.rows(split), *(two.rows(split) + 17)] == both.rows(split).tolist()
        assert both.path_of(17 + 5) == two.path_of(5)
        order = np.random.default_rng(0).permutation(both.rows())
        for frames in (None, [4, 1]):
            found = both.read(order, frames)
            for clip, row in zip(found, order.tolist(), strict=True):
                assert (clip == (one.read([row], frames) if row < 17 else two.read([row - 17], frames))).all()
        assert f"{one.name} + {two.name}" == both.name


def test_names_of_the_content_depend_on_both_and_their_order(pair: list[Path]) -> None:
    with open_caches(pair) as both, open_caches(pair[::-1]) as other, open_caches(pair[:1]) as one:
        assert 3 == len({both.fingerprint, other.fingerprint, one.fingerprint})
        assert 3 == len({both.split_hash, other.split_hash, one.split_hash})


def test_impossible_requests_name_the_joined_row(pair: list[Path]) -> None:
    with open_caches(pair) as both:
        with pytest.raises(ValueError, match=r"row 17 has no clip \(a/longer_0000.mp4 failed\)"):
            both.read([17])
        with pytest.raises(ValueError, match="row 30, expected 0 to 29"):
            both.read([30])


@pytest.mark.parametrize(
    ("counts", "spec", "message"),
    [
        (
            {"a": 4, "b": 4},
            Spec(6, 16, 32),
            r"other.h5: clips are Spec\(.*width=32.*, but Spec\(.*width=16.* in .*one.h5",
        ),
        ({"a": 4, "c": 4}, SPEC, r"other.h5: has other classes than .*one.h5 \(new: c; missing: b\)"),
    ],
)
def test_caches_that_do_not_belong_together(
    pair: list[Path], tmp_path: Path, counts: dict[str, int], spec: Spec, message: str
) -> None:
    other = make_cache(tmp_path / "other.h5", counts, spec=spec)

    with pytest.raises(CacheError, match=message):
        open_caches([pair[0], other])
    result = CliRunner().invoke(vidtrain, [str(pair[0]), str(other)])
    assert 4 == result.exit_code
    assert "Build both with the same options" in result.stderr


def test_training_and_evaluation_take_several(pair: list[Path], tmp_path: Path) -> None:
    both, out = [str(path) for path in pair], str(tmp_path / "best.pt")
    with tiny_models():
        trained = CliRunner().invoke(
            vidtrain, [*both, "--weights", "none", "--epochs", "1", "--out", out, "--amp", "off"]
        )
        assert 0 == trained.exit_code, trained.stderr
        evaluated = CliRunner().invoke(videval, [*both, "--ckpt", out, "--json"])
        assert 0 == evaluated.exit_code, evaluated.stderr
        half = CliRunner().invoke(videval, [both[0], "--ckpt", out])

    with open_caches(pair) as reader:
        assert len(reader.rows("test")) == json.loads(evaluated.stdout)["num_clips"]
    assert 5 == half.exit_code  # trained on more than that


# --- hash check while reading ------------------------------------------------------------------


@pytest.mark.parametrize("frames", [None, [0]])
def test_verify_names_the_damaged_clip(pair: list[Path], frames: list[int] | None) -> None:
    damage_clip(pair[1], 2)
    with open_caches(pair) as both:
        rows = both.rows()
        both.read(rows, frames)  # nobody looks
        with pytest.raises(
            CacheError, match=r"two.h5: the clip of row 2 \(a/longer_0002.mp4\) does not match its hash"
        ):
            both.read(rows, frames, verify=True)
        good = rows[rows != 17 + 2]
        assert (both.read(good, frames) == both.read(good, frames, verify=True)).all()
        assert len(list(stream_batches(both, rows, 8, frames=frames))) == 4
        with pytest.raises(CacheError, match="does not match its hash"):
            list(stream_batches(both, rows, 8, frames=frames, verify=True))


@pytest.mark.slow
def test_verify_is_an_option_of_training_and_evaluation(pair: list[Path], tmp_path: Path) -> None:
    quick = [*"--weights none --epochs 1 --amp off --balance none --out".split(), str(tmp_path / "best.pt")]
    with tiny_models():
        assert 0 == CliRunner().invoke(vidtrain, [str(pair[0]), *quick, "--verify"]).exit_code
        with CacheReader(pair[0]) as reader:
            damaged = {split: int(reader.rows(split)[0]) for split in ("train", "test")}
        for split, command in (
            ("test", [videval, [str(pair[0]), "--ckpt", str(tmp_path / "best.pt")]]),
            ("train", [vidtrain, [str(pair[0]), *quick, "--overwrite"]]),
        ):
            damage_clip(pair[0], damaged[split])
            main, arguments = command
            assert 0 == CliRunner().invoke(main, arguments).exit_code
            result = CliRunner().invoke(main, [*arguments, "--verify"])
            assert 4 == result.exit_code
            assert f"the clip of row {damaged[split]}" in result.stderr
            damage_clip(pair[0], damaged[split])


# --- slices of several processes ---------------------------------------------------------------


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_ranks_take_every_clip_once(num_ranks: int) -> None:
    order = np.random.default_rng(0).permutation(50)
    slices = [rank_slice(order, rank, num_ranks) for rank in range(num_ranks)]

    assert sorted(order.tolist()) == sorted(np.concatenate(slices).tolist())
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    # A step of all together is a step of one process with the batch of all.
    batch = np.sort(np.concatenate([part[:2] for part in slices]))
    assert np.sort(order[: 2 * num_ranks]).tolist() == batch.tolist()


def test_a_rank_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2, expected 0 to 1"):
        rank_slice(np.arange(4), 2, 2)


# --- a torch data set --------------------------------------------------------------------------


def test_a_data_set_gives_clips_and_labels(pair: list[Path]) -> None:
    dataset = ClipDataset(pair, "train", num_frames_used=3)
    with open_caches(pair) as reader:
        rows = reader.rows("train")
        assert len(rows) == len(dataset)
        for index in (0, len(rows) - 1):
            clip, label = dataset[index]
            assert (reader.read([rows[index]], [0, 2, 5])[0] == clip.numpy()).all()
            assert (reader.labels[rows[index]], torch.uint8) == (label, clip.dtype)
    assert ("a", "b") == dataset.classes
    assert (ClipDataset(pair[0]).rows == CacheReader(pair[0]).rows()).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_the_same_in_any_way_they_start(pair: list[Path], method: str) -> None:
    dataset = ClipDataset(pair, "train")
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context=method)

    batches = list(loader)

    assert (torch.cat([clips for clips, _ in batches]).numpy() == np.stack([clip.numpy() for clip, _ in dataset])).all()
    assert dataset.labels.tolist() == torch.cat([labels for _, labels in batches]).tolist()


def test_a_data_set_fetches_whole_batches(pair: list[Path]) -> None:
    dataset = ClipDataset(pair, "train")
    clips = [clip for clip, _ in dataset.__getitems__([3, 1, 2])]

    assert 1 == len({clip.untyped_storage().data_ptr() for clip in clips})


def test_a_data_set_refuses_what_it_cannot_give(pair: list[Path]) -> None:
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"num_frames_used {count}, expected 1 to 6"):
            ClipDataset(pair, num_frames_used=count)
    assert 1 == len(ClipDataset(pair, num_frames_used=1)[0][0])
    with pytest.raises(ValueError, match="split 'tset', expected train, val or test"):
        ClipDataset(pair, "tset")
    damage_clip(pair[0], 1)
    dataset = ClipDataset(pair[0], verify=True)
    with pytest.raises(CacheError, match="the clip of row 1 "):
        dataset[1]
