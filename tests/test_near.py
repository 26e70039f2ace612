"""The leak guard's arithmetic: which clips look alike, and which do not."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache import near
from vidcache.near import NEAR, clip_distance, find_near_pairs
from vidcache.perceptual import perceptual_hash

Clip = npt.NDArray[np.uint8]


def scene(seed: int, *, num_frames: int = 64, size: int = 112) -> Clip:
    """A smooth background, and a bright disc that crosses it on a way of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 220, (6, 6, 3))
    grid = np.linspace(0, 4.999, size)
    low, part = grid.astype(int), grid % 1
    rows = coarse[low] * (1 - part)[:, None, None] + coarse[low + 1] * part[:, None, None]
    background = rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]
    start, end = rng.uniform(0.2, 0.8, (2, 2)) * size
    y, x = np.mgrid[:size, :size]
    clip = np.empty((num_frames, size, size, 3), np.uint8)
    for frame in range(num_frames):
        centre = start + (end - start) * frame / num_frames
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (size / 7) ** 2
        clip[frame] = np.where(disc[:, :, None], 255 - background, background)
    return clip


def cropped(clip: Clip, top: float, bottom: float, left: float, right: float) -> Clip:
    """Cut off fractions of height and width, then scale back by nearest pixels."""
    height, width = clip.shape[1:3]
    ys = np.linspace(top * height, (1 - bottom) * height - 1, height).round().astype(int)
    xs = np.linspace(left * width, (1 - right) * width - 1, width).round().astype(int)
    return np.ascontiguousarray(clip[:, ys][:, :, xs])


COPIES = {
    "noise": lambda clip: (clip + np.random.default_rng(1).normal(0, 4, clip.shape)).clip(0, 255).astype(np.uint8),
    "brighter": lambda clip: (clip * 0.8 + 40).clip(0, 255).astype(np.uint8),
    "darker": lambda clip: (clip * 0.6).astype(np.uint8),
    "mirrored": lambda clip: np.ascontiguousarray(clip[:, :, ::-1]),
    "5 % off each side": lambda clip: cropped(clip, 0.05, 0.05, 0.05, 0.05),
    "5 % off two sides": lambda clip: cropped(clip, 0.05, 0, 0, 0.05),
    "later": lambda clip: clip[len(clip) // 10 :],
    "half the size": lambda clip: clip[:, ::2, ::2],
    "all at once": lambda clip: cropped(clip[len(clip) // 16 :, :, ::-1], 0.04, 0.04, 0.04, 0.04) // 2 + 60,
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_near_in_both_directions_and_others_are_not(copy: str) -> None:
    clip = scene(0)
    original, changed = perceptual_hash(clip), perceptual_hash(COPIES[copy](clip))

    assert clip_distance(original, changed) <= NEAR
    assert clip_distance(original, changed) == clip_distance(changed, original)
    assert clip_distance(perceptual_hash(scene(1)), changed) > 10 * NEAR


def test_of_many_scenes_just_the_copies_are_found() -> None:
    scenes = [scene(seed) if seed < len(COPIES) else scene(seed, num_frames=16, size=48) for seed in range(60)]
    copies = [COPIES[name](scenes[place]) for place, name in enumerate(COPIES)]
    hashes = np.stack([perceptual_hash(clip) for clip in [*scenes, *copies]])

    found = find_near_pairs(hashes)

    assert [[place, 60 + place] for place in range(len(COPIES))] == found.rows.tolist()
    assert (found.distances <= NEAR).all()
    assert pytest.approx([clip_distance(*hashes[pair]) for pair in found.rows], abs=1e-6) == found.distances


def test_the_threshold_says_what_counts() -> None:
    clip = scene(3)
    hashes = np.stack([perceptual_hash(c) for c in (clip, COPIES["noise"](clip), COPIES["5 % off each side"](clip))])

    distances = [clip_distance(hashes[0], other) for other in hashes[1:]]
    between = sum(sorted(distances)) / 2

    assert 1 == len(find_near_pairs(hashes[[0, 1 + int(np.argmin(distances))]], between).rows)
    assert 0 == len(find_near_pairs(hashes[[0, 1 + int(np.argmax(distances))]], between).rows)


def test_two_clips_of_one_still_room_are_near_when_half_of_their_frames_are() -> None:
    room, person = scene(4, num_frames=16), scene(5, num_frames=16)
    room[:] = room[0]
    mostly_empty, mostly_full = room.copy(), room.copy()
    mostly_empty[10:] = person[10:]
    mostly_full[7:] = person[7:]
    hashes = [perceptual_hash(clip) for clip in (room, mostly_empty, mostly_full)]

    assert clip_distance(hashes[0], hashes[1]) <= NEAR
    assert clip_distance(hashes[0], hashes[2]) > NEAR


def test_clips_that_show_nothing_are_near_to_none() -> None:
    black = np.zeros((16, 12, 12), np.uint8)
    grey = np.full((16, 12, 12), 128, np.uint8)
    half = perceptual_hash(scene(7))
    half[:9] = 0

    found = find_near_pairs(np.stack([black, black, grey, half, half, half // 2]))

    assert 0 == len(found.rows)
    assert [0, 1, 2, 3, 3, 5] == found.same.tolist()  # half of it is dark, but it is not blank


@pytest.mark.parametrize("count", [0, 1])
def test_there_is_nothing_to_find_among_fewer_than_two(count: int) -> None:
    found = find_near_pairs(np.repeat(perceptual_hash(scene(8))[None], count, axis=0))

    assert ((0, 2), (0,), count) == (found.rows.shape, found.distances.shape, len(found.same))
    assert (0, 2) == found.edges.shape


def test_many_equal_clips_are_paired_with_the_first_only() -> None:
    hashes = np.stack([perceptual_hash(scene(9, size=48)), *[perceptual_hash(scene(10, size=48))] * 300])

    found = find_near_pairs(hashes)

    assert 0 == len(found.rows)
    assert [0, *[1] * 300] == found.same.tolist()
    assert [[1, row] for row in range(2, 301)] == found.edges.tolist()


def test_a_search_in_cells_finds_what_a_comparison_of_all_finds(rng: np.random.Generator) -> None:
    """900 clips in 30 cells, of which 8 are looked at; half of them are noisy, some mirrored copies."""
    originals = np.stack([perceptual_hash(scene(seed, num_frames=16, size=24)) for seed in range(450)])
    noisy = (originals.astype(int) + rng.integers(-2, 3, originals.shape)).clip(0, 255).astype(np.uint8)
    noisy[::2] = noisy[::2, ..., ::-1]

    found = {tuple(pair) for pair in find_near_pairs(np.concatenate([originals, noisy])).rows.tolist()}

    wanted = [(row, 450 + row) for row in range(450) if clip_distance(originals[row], noisy[row]) <= NEAR]
    assert len(wanted) >= 445
    assert set(wanted) <= found
    assert all(clip_distance(*np.concatenate([originals, noisy])[list(pair)]) <= NEAR for pair in found - set(wanted))


def test_the_order_of_the_clips_does_not_matter(rng: np.random.Generator) -> None:
    scenes = [scene(seed, num_frames=16, size=48) for seed in range(20)]
    hashes = np.stack([perceptual_hash(clip) for clip in [*scenes, *(COPIES["noise"](clip) for clip in scenes[:7])]])
    order = rng.permutation(len(hashes))

    found = find_near_pairs(hashes[order])

    assert find_near_pairs(hashes).rows.tolist() == sorted(sorted(pair) for pair in order[found.rows].tolist())


# --- the hash ----------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
def test_the_hash_is_the_mean_of_cells(frames: int, height: int, width: int, seed: int) -> None:
    clip = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)

    hashed = perceptual_hash(clip)

    assert ((16, 12, 12), np.uint8) == (hashed.shape, hashed.dtype)
    grey = clip[0].astype(float) @ [77 / 256, 150 / 256, 29 / 256]
    fine = grey.repeat(12, axis=0).repeat(12, axis=1)  # every cell is a block of height x width of these
    cells = fine.reshape(12, height, 12, width).mean(axis=(1, 3))
    assert np.abs(cells - hashed[0]).max() <= 0.501


def test_a_hash_of_equal_frames_is_their_colour() -> None:
    assert (200 == perceptual_hash(np.full((5, 33, 47, 3), 200, np.uint8))).all()


def test_each_of_a_dozen_noisy_copies_is_paired_with_all_others(rng: np.random.Generator) -> None:
    clip = perceptual_hash(scene(11)).astype(int)
    others = [perceptual_hash(scene(seed, num_frames=16, size=24)) for seed in range(100, 140)]
    copies = [(clip + rng.integers(-2, 3, clip.shape)).clip(0, 255).astype(np.uint8) for _ in range(12)]

    found = find_near_pairs(np.stack([*others, *copies]))

    assert [[a, b] for a in range(40, 52) for b in range(a + 1, 52)] == found.rows.tolist()


def test_thousands_of_clips_that_are_almost_the_same_cost_no_more_than_others(rng: np.random.Generator) -> None:
    """All in one cell of the search: each looks at a part of it, and finds neighbours there."""
    vectors = np.repeat(np.ones((1, 8), np.float32), 3000, axis=0) / np.float32(8**0.5)
    index = near._Index(vectors)
    assert 3000 > index._part

    pairs = np.concatenate(list(index.neighbours(vectors)))

    assert set(range(3000)) == set(pairs[:, 0].tolist())
    assert (np.abs(pairs[:, 0] - pairs[:, 1]) <= index._part).all()


@pytest.mark.parametrize("num_real", [3, 16, 30])
def test_padding_does_not_count(num_real: int) -> None:
    """Two short videos that end on the same picture are not alike; in their clips it is most of the frames."""
    ends = scene(20)[0]
    clips = [scene(seed)[:num_real] for seed in (21, 22)]
    for clip in clips:
        clip[-1] = ends
    padded = [np.concatenate([clip, ends[None].repeat(64 - num_real, axis=0)]) for clip in clips]

    assert clip_distance(*map(perceptual_hash, padded)) <= NEAR
    assert clip_distance(*map(perceptual_hash, clips)) > NEAR


def test_candidates_do_not_need_more_than_the_stated_neighbours() -> None:
    """What bounds time and memory: so many pairs come back for one query, however many are alike."""
    vectors = np.ones((500, 4), np.float32) / 2
    index = near._Index(vectors)

    pairs = np.concatenate(list(index.neighbours(vectors)))

    assert np.bincount(pairs[:, 0]).max() <= 16
