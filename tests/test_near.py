"""Near-duplicates: which clips look alike, and which do not."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vidcache.near_duplicates import NEAR, clip_distance, find_near_pairs, perceptual_hash
from vidcache.preprocess.split.groups import merge_groups

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


def small(seed: int, size: int = 24) -> Clip:
    """A hash of a scene that takes little time."""
    return perceptual_hash(scene(seed, num_frames=16, size=size))


def hashes_of(clips: Iterable[Clip]) -> Clip:
    return np.stack([perceptual_hash(clip) for clip in clips])


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


def test_of_many_scenes_just_the_copies_are_found_in_any_order(rng: np.random.Generator) -> None:
    scenes = [scene(seed) for seed in range(len(COPIES))]
    copies = [COPIES[name](clip) for name, clip in zip(COPIES, scenes, strict=True)]
    hashes = np.concatenate([hashes_of(scenes), [small(seed, 48) for seed in range(9, 60)], hashes_of(copies)])
    order = rng.permutation(len(hashes))

    found = find_near_pairs(hashes)
    turned = find_near_pairs(hashes[order])

    assert [[place, 60 + place] for place in range(len(COPIES))] == found.rows.tolist()
    assert found.rows.tolist() == sorted(sorted(pair) for pair in order[turned.rows].tolist())
    assert (found.distances <= NEAR).all()
    for (row, copy), distance in zip(found.rows.tolist(), found.distances, strict=True):
        assert pytest.approx(distance, abs=1e-6) == clip_distance(hashes[row], hashes[copy])
        assert clip_distance(hashes[row], hashes[copy]) == clip_distance(hashes[copy], hashes[row])
        assert clip_distance(hashes[row - 1], hashes[copy]) > 10 * NEAR


def test_the_threshold_says_what_counts() -> None:
    clip = scene(3)
    hashes = hashes_of([clip, COPIES["noise"](clip), COPIES["5 % off each side"](clip)])

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
    hashes = hashes_of([room, mostly_empty, mostly_full])

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
    hashes = np.stack([small(9), *[small(10)] * 300])

    found = find_near_pairs(hashes)

    assert 0 == len(found.rows)
    assert [0, *[1] * 300] == found.same.tolist()
    assert [[1, row] for row in range(2, 301)] == found.edges.tolist()


# --- the hash ----------------------------------------------------------------------------------


def assert_mean_of_cells(clip: Clip) -> None:
    """The hash of the first frame is its grey, in 12 x 12 cells: nothing is cut off."""
    height, width = clip.shape[1:3]
    grey = clip[0].astype(float) @ [77 / 256, 150 / 256, 29 / 256]
    fine = grey.repeat(12, axis=0).repeat(12, axis=1)  # every cell is a block of height x width of these
    cells = fine.reshape(12, height, 12, width).mean(axis=(1, 3))
    assert np.abs(cells - perceptual_hash(clip)[0]).max() <= 0.501


@given(st.integers(1, 40), st.integers(4, 70), st.integers(4, 70), st.integers(0, 2**32))
def test_the_hash_is_the_mean_of_cells(frames: int, height: int, width: int, seed: int) -> None:
    clip = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)

    assert ((16, 12, 12), np.uint8) == (perceptual_hash(clip).shape, perceptual_hash(clip).dtype)
    assert_mean_of_cells(clip)


def noisy(clip: Clip, count: int, seed: int) -> Clip:
    """Hashes that differ from one by noise."""
    noise = np.random.default_rng(seed).integers(-1, 2, (count, *clip.shape))
    copies: Clip = (clip.astype(int) + noise).clip(0, 255).astype(np.uint8)
    return copies


def groups_of(hashes: Clip) -> list[int]:
    return merge_groups(np.arange(len(hashes)), find_near_pairs(hashes).edges).tolist()


@pytest.mark.parametrize("count", [25, 100])
@pytest.mark.parametrize("seed", range(30, 33))
def test_two_crowds_of_copies_are_one_group_though_each_is_nearer_to_its_own(seed: int, count: int) -> None:
    clip = scene(seed, num_frames=16, size=96)
    first, second = hashes_of([clip, COPIES["5 % off each side"](clip)])
    assert 0.0004 < clip_distance(first, second) <= NEAR
    others = np.stack([small(900 + other, 48) for other in range(5)])

    groups = groups_of(np.concatenate([noisy(first, count, seed), others, noisy(second, count, seed + 1)]))

    assert [*[0] * count, 1, 2, 3, 4, 5, *[0] * count] == groups


def test_of_very_many_look_alikes_not_all_pairs_come_back_but_all_are_connected(rng: np.random.Generator) -> None:
    hashes = noisy(perceptual_hash(scene(35)), 400, 0)

    found = find_near_pairs(hashes)

    assert {0} == set(merge_groups(np.arange(400), found.edges).tolist())
    assert 400 * 32 / 2 <= len(found.rows) < 400 * 399 / 2 * 0.6


def test_of_very_many_look_alikes_each_is_paired_with_one_of_every_split() -> None:
    """Row 399 is in test, and so is a copy of row 200; row 398 is in val. The others are in train."""
    hashes = noisy(perceptual_hash(scene(36)), 400, 0)
    hashes[397] = hashes[200]
    splits = np.zeros(400, np.uint8)
    splits[[397, 399]], splits[398] = 2, 1

    found = find_near_pairs(hashes, splits=splits)

    for row in set(range(400)) - {397}:
        near = {*found.rows[found.rows[:, 0] == row, 1].tolist(), *found.rows[found.rows[:, 1] == row, 0].tolist()}
        assert near & {200, 399}
        assert row == 398 or 398 in near
    assert 200 == found.same[397]


@pytest.mark.slow
def test_all_pairs_whose_means_are_near_are_compared(rng: np.random.Generator) -> None:
    """Clips of one room, whose pairs lie on both sides of every limit: as many as a comparison of all pairs finds."""
    room = perceptual_hash(scene(37)).astype(float)
    others = np.stack([small(seed) for seed in range(1000, 1040)])
    part = rng.permutation(np.linspace(0.02, 0.25, 40))[:, None, None, None]
    hashes = (room * (1 - part) + others * part).round().astype(np.uint8)

    found = {tuple(pair) for pair in find_near_pairs(hashes).rows.tolist()}

    distances = {(a, b): clip_distance(hashes[a], hashes[b]) for b in range(40) for a in range(b)}
    surely, perhaps = (
        {pair for pair, distance in distances.items() if distance <= NEAR + margin} for margin in (-1e-4, 1e-4)
    )
    assert 20 < len(surely) < 700
    assert surely <= found <= perhaps


# --- what lies over a picture, and beside it -----------------------------------------------------


def textured(seed: int) -> Clip:
    """A scene with enough in every corner."""
    fine = np.random.default_rng(seed).integers(-40, 40, (1, 28, 28, 1)).repeat(4, axis=1).repeat(4, axis=2)
    clip: Clip = (scene(seed).astype(int) + fine).clip(0, 255).astype(np.uint8)
    return clip


def framed(clip: Clip, top: int, left: int, colour: tuple[int, int, int]) -> Clip:
    """Lay a clip into a larger picture, with noise as compression leaves it."""
    frames, height, width, _ = clip.shape
    noise = np.random.default_rng(2).integers(-3, 4, (frames, height + 2 * top, width + 2 * left, 3))
    around = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
    around[:, top : top + height, left : left + width] = clip
    return around


def stamped(clip: Clip, top: float, left: float, height: float, width: float) -> Clip:
    """Draw a black box over a part of the picture, with white letters that change."""
    copy = COPIES["noise"](clip)
    y, x, h, w = (round(part * size) for part, size in zip((top, left, height, width), (112,) * 4, strict=True))
    copy[:, y : y + h, x : x + w] = 0
    letters = np.random.default_rng(3).random((len(copy), h // 3, w)) < 0.4
    copy[:, y + h // 3 : y + h // 3 + h // 3, x : x + w][letters] = 255
    return copy


def with_logo(clip: Clip, top: float, left: float) -> Clip:
    copy = COPIES["noise"](clip)
    copy[:, round(top * 112) :][:, :11, round(left * 112) :][:, :, :11] = 250
    return copy


OVERLAYS = {
    "time stamp, upper left": lambda clip: stamped(clip, 0, 0, 0.09, 0.45),
    "time stamp, lower right": lambda clip: stamped(clip, 0.91, 0.55, 0.09, 0.45),
    "subtitles in a box": lambda clip: stamped(clip, 0.85, 0, 0.15, 1),
    "subtitles in a narrow box": lambda clip: stamped(clip, 0.8, 0.15, 0.15, 0.7),
    "logo, upper right": lambda clip: with_logo(clip, 0.04, 0.86),
    "logo, lower left": lambda clip: with_logo(clip, 0.86, 0.04),
    "mirrored, with a logo": lambda clip: with_logo(clip[:, :, ::-1], 0.86, 0.86),
}


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_copies_under_a_stamp_a_subtitle_or_a_logo_are_found_and_others_are_not(overlay: str) -> None:
    clips = [textured(seed) for seed in range(40, 46)]

    found = find_near_pairs(hashes_of([*clips, *map(OVERLAYS[overlay], clips)]))

    assert [[row, row + 6] for row in range(6)] == found.rows.tolist()


BARS = {
    "black bars above and below": (14, 0, (0, 0, 0)),
    "white bars at the sides": (0, 17, (255, 255, 255)),
    "an upright film in a wide frame": (0, 110, (0, 0, 0)),
    "a coloured border of 5 %": (6, 6, (200, 40, 30)),
    "a blue border of 10 %": (14, 14, (20, 60, 250)),
}


@pytest.mark.parametrize("bars", BARS)
def test_bars_do_not_change_what_a_clip_looks_like(bars: str) -> None:
    clip = textured(50)

    assert (perceptual_hash(framed(clip, *BARS[bars])) == perceptual_hash(clip)).all()


@pytest.mark.slow
def test_equal_bars_do_not_make_films_alike() -> None:
    hashes = hashes_of(framed(textured(seed), 0, 80, (0, 0, 0)) for seed in range(60, 72))

    assert 0 == len(find_near_pairs(hashes).rows)
    assert min(clip_distance(hashes[0], other) for other in hashes[1:]) > 10 * NEAR


@given(
    st.integers(1, 20),
    st.integers(8, 40),
    st.integers(8, 40),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 2**32),
)
def test_a_border_of_one_colour_is_cut_off_whatever_the_size(
    frames: int, height: int, width: int, top: int, left: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    clip = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
    clip[:, [0, -1]], clip[:, :, [0, -1]] = 255, 255  # no picture ends by chance in what could be a bar
    clip[:, [0, -1], ::3], clip[:, ::3, [0, -1]] = 150, 150
    assume(3 * top <= height or 3 * left <= width)  # else corners are most of every edge
    around = np.zeros((frames, height + 2 * top, width + 2 * left, 3), np.uint8)
    around[:, top : top + height, left : left + width] = clip

    assert (perceptual_hash(around) == perceptual_hash(clip)).all()


def test_what_is_no_bar_stays() -> None:
    """A picture that is empty at one side, one that darkens towards it, and letters in a box."""
    empty = np.full((16, 48, 48, 3), 30, np.uint8)
    empty[:, 20:30, 20:30] = 220
    dark = (np.arange(112) * 2)[:, None, None].repeat(48, axis=1).repeat(3, axis=2).astype(np.uint8)[None].repeat(16, 0)
    box = stamped(textured(51), 0.85, 0.2, 0.15, 0.5)

    for clip in (empty, dark, box):
        assert_mean_of_cells(clip)


@pytest.mark.parametrize("size", range(1, 12))
def test_the_smallest_clips_have_a_hash(size: int) -> None:
    clip = np.zeros((2, size, size, 3), np.uint8)
    clip[:, size // 2] = 255

    assert perceptual_hash(clip).max() > 0


def test_a_picture_between_bars_of_unequal_colour_is_all_that_counts() -> None:
    clip = textured(52)
    above = np.full((64, 10, 112, 3), 255, np.uint8)
    below = np.zeros((64, 20, 112, 3), np.uint8)

    assert (perceptual_hash(np.concatenate([above, clip, below], axis=1)) == perceptual_hash(clip)).all()


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
