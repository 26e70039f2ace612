"""Augmentation: one draw per clip, the same for its frames, equal to torchvision where it says so."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from vidcache.pixels import MEAN, STD, normalize
from vidcache.train.augment import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    METHODS,
    NUM_OPS,
    SATURATION,
    Draws,
    Strength,
    augment,
    draw,
    jitter_maps,
)  # fmt: skip

NOTHING = Strength(0, 0, 0, 0, 0)


def clips_of(num_clips: int = 5, num_frames: int = 3, size: int = 16, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_clips, num_frames, size, size, 3), dtype=torch.uint8, generator=generator)


def means_of(clips: torch.Tensor) -> np.ndarray[object, np.dtype[np.float32]]:
    return clips.reshape(len(clips), -1, 3).float().mean(1).numpy()


def draws_of(count: int, strength: Strength = Strength(), *, seed: int = 0, epoch: int = 1) -> Draws:
    return draw(np.arange(count), strength, seed, epoch)


def normalised(clips: torch.Tensor) -> torch.Tensor:
    """The formula, in double precision: (B, 3, T, H, W)."""
    return ((clips.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_output_is_normalised_channels_last_and_the_input_is_left_alone(method: str) -> None:
    clips = clips_of()
    before = clips.clone()

    found = augment(clips, draws_of(5, NOTHING), method, means_of(clips))

    assert torch.allclose(normalised(clips), found.double(), atol=1e-5)
    assert ((5, 3, 3, 16, 16), torch.float32) == (found.shape, found.dtype)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    augment(clips, draws_of(5, Strength(flip=1)), method, means_of(clips))
    assert torch.equal(before, clips)


@pytest.mark.parametrize("method", ["linear", "exact"])
def test_identical_frames_stay_identical_and_different_clips_differ(method: str) -> None:
    clips = clips_of(1, 1).expand(6, 4, -1, -1, -1).contiguous()

    found = augment(clips, draws_of(6), method, means_of(clips))

    assert torch.equal(found, found[:, :, :1].expand_as(found))
    for one, two in itertools.combinations(range(6), 2):
        assert not torch.allclose(found[one], found[two], atol=1e-3)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.integers(0, 2**62), st.integers(1, 100))
def test_a_draw_depends_on_seed_epoch_and_row_only(rows: list[int], seed: int, epoch: int) -> None:
    together = draw(np.array(rows), Strength(), seed, epoch)

    for index, row in enumerate(rows):
        alone = draw(np.array([row]), Strength(), seed, epoch)
        assert alone.flip[0] == together.flip[index]
        assert (alone.factors[0] == together.factors[index]).all()
        assert (alone.order[0] == together.order[index]).all()


def splitmix64(state: int) -> tuple[int, int]:
    """The published algorithm (Vigna's C), in Python's whole numbers: the next state and number."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return state, z ^ (z >> 31)


def test_draws_are_the_numbers_of_splitmix64() -> None:
    """Runs of other versions and machines draw the same: a run goes on with what it began with."""
    rows, seed, epoch = [0, 7, 2**40], 3, 2
    found = draw(np.array(rows), Strength(0.5, 0.2, 0.4, 1.5, 0.1), seed, epoch)

    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    for index, row in enumerate(rows):
        start = splitmix64((row ^ key) - 0x9E3779B97F4A7C15)[1]
        numbers = []
        for _ in range(9):
            start, number = splitmix64(start)
            numbers.append((number >> 11) / 2**53)
        assert (numbers[0] < 0.5) == found.flip[index]
        low, high = np.array([0.8, 0.6, 0, -0.1]), np.array([1.2, 1.4, 2.5, 0.1])
        assert pytest.approx((low + (high - low) * numbers[1:5]).tolist()) == found.factors[index].tolist()
        assert np.argsort(numbers[5:]).tolist() == found.order[index].tolist()


def test_draws_are_spread_as_promised() -> None:
    draws = draw(np.arange(40_000), Strength(flip=0.3, brightness=0.2, contrast=0.4, saturation=1.5, hue=0.1), 3, 4)

    assert pytest.approx(0.3, abs=0.01) == draws.flip.mean()
    for op, (low, high) in {
        BRIGHTNESS: (0.8, 1.2),
        CONTRAST: (0.6, 1.4),
        SATURATION: (0, 2.5),
        HUE: (-0.1, 0.1),
    }.items():
        values = draws.factors[:, op]
        assert low <= values.min() < values.max() <= high
        assert pytest.approx((low + high) / 2, abs=0.02) == values.mean()
        assert pytest.approx((high - low) / np.sqrt(12), abs=0.01) == values.std()
    assert np.abs(np.corrcoef(draws.factors.T) - np.eye(4)).max() < 0.02
    orders, counts = np.unique(draws.order, axis=0, return_counts=True)
    assert 24 == len(orders)
    assert counts.min() > 40_000 / 24 * 0.9


def test_a_flip_mirrors_whole_clips() -> None:
    clips, flip = clips_of(), np.array([True, False, True, True, False])

    found = augment(clips, Draws(flip, draws_of(5, NOTHING).factors, draws_of(5).order), "none", means_of(clips))

    for index, plain in enumerate(normalize(clips)):
        assert torch.equal(plain.flip(-1) if flip[index] else plain, found[index])
    assert not draws_of(1000, Strength(flip=0)).flip.any()
    assert draws_of(1000, Strength(flip=1)).flip.all()


@pytest.mark.parametrize("method", ["linear", "exact"])
def test_a_flip_and_a_jitter_are_independent(method: str) -> None:
    clips = clips_of()
    draws = draws_of(5)
    mirrored, plain = (Draws(np.full(5, flip), draws.factors, draws.order) for flip in (True, False))

    found = augment(clips, mirrored, method, means_of(clips))

    assert torch.allclose(augment(clips, plain, method, means_of(clips)).flip(-1), found, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 3, 2), (4, 6, 8)])
def test_any_shape_of_clip_gives_the_formula(shape: tuple[int, int, int]) -> None:
    clips = torch.randint(0, 256, (3, *shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = draws_of(3)

    found = augment(clips, Draws(np.zeros(3, bool), draws.factors, draws.order), "linear", means_of(clips))

    maps = jitter_maps(draws, means_of(clips))
    ones = np.ones((*clips.shape[:4], 1))
    expected = np.einsum("bcd,bthwd->bcthw", maps, np.concatenate([clips.numpy(), ones], axis=-1))
    low, high = (np.array([(v - m) / s for m, s in zip(MEAN, STD, strict=True)])[:, None, None, None] for v in (0, 1))
    assert np.abs(expected.clip(low, high) - found.numpy()).max() < 1e-5


def torchvision_clip(clip_THWC: torch.Tensor, factors: list[float], order: list[int]) -> torch.Tensor:
    """torchvision's functional transforms on one clip, then normalisation: (3, T, H, W)."""
    video = clip_THWC.permute(0, 3, 1, 2).float() / 255
    ops = {
        BRIGHTNESS: functional.adjust_brightness,
        CONTRAST: functional.adjust_contrast,
        SATURATION: functional.adjust_saturation,
        HUE: functional.adjust_hue,
    }
    for op in order:
        video = ops[op](video, factors[op])
    return functional.normalize(video, list(MEAN), list(STD)).permute(1, 0, 2, 3)


def test_exact_equals_torchvision_in_any_order() -> None:
    orders = np.array(list(itertools.permutations(range(NUM_OPS))))
    clips, strong = clips_of(len(orders)), draws_of(len(orders), Strength(0, 0.5, 0.5, 0.5, 0.4))

    found = augment(clips, Draws(strong.flip, strong.factors, orders), "exact", means_of(clips))

    for index, order in enumerate(orders.tolist()):
        expected = torchvision_clip(clips[index], strong.factors[index].tolist(), order)
        assert torch.allclose(expected, found[index], atol=1e-5)


def test_linear_equals_exact_where_nothing_clips_and_the_hue_stays() -> None:
    """One frame per clip: torchvision mixes every frame with its own grey, linear with the clip's."""
    clips = (clips_of(8, 1).float() * 0.3 + 90).to(torch.uint8)
    draws = draws_of(8, Strength(0.5, 0.2, 0.2, 0.2, 0))

    linear = augment(clips, draws, "linear", means_of(clips))
    exact = augment(clips, draws, "exact", means_of(clips))

    assert torch.allclose(linear, exact, atol=1e-4)


def test_a_linear_change_of_hue_keeps_the_luminance_and_turns_the_chroma() -> None:
    """In the numbers of the NTSC standard, here as ITU-R BT.470 has them."""
    turns = np.array([-0.5, -0.2, 0.1, 0.25])
    factors = np.stack([np.ones(4), np.ones(4), np.ones(4), turns], axis=1)
    draws = Draws(np.zeros(4, bool), factors, np.tile(np.arange(4), (4, 1)))
    std, mean = 255 * np.array(STD), 255 * np.array(MEAN)
    undo = np.linalg.inv(np.block([[np.diag(1 / std), -(mean / std)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]))

    maps = (undo @ np.concatenate([jitter_maps(draws, np.full((4, 3), 99, np.float32)), [[[0, 0, 0, 1]]] * 4], 1))[
        :, :3
    ]

    assert np.abs(maps[:, :, 3]).max() < 1e-9
    for colour in np.eye(3):
        for turned, turn in zip(maps[:, :, :3] @ colour, turns, strict=True):
            (y, chroma), (new_y, new_chroma) = yiq(colour), yiq(turned)
            assert pytest.approx(y, abs=1e-3) == new_y
            assert abs(new_chroma - chroma * np.exp(2j * np.pi * turn)) < 2e-3


def yiq(colour: np.ndarray[object, np.dtype[np.float64]]) -> tuple[float, complex]:
    red, green, blue = colour.tolist()
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return y, complex(0.736 * (red - y) - 0.268 * (blue - y), 0.478 * (red - y) + 0.413 * (blue - y))


def test_linear_is_bounded_as_an_image_is() -> None:
    clips = clips_of(16)

    found = augment(clips, draws_of(16, Strength(0, 0.9, 0.9, 0.9, 0.5)), "linear", means_of(clips))

    for channel in range(3):
        low, high = -MEAN[channel] / STD[channel], (1 - MEAN[channel]) / STD[channel]
        values = found[:, channel]
        assert pytest.approx((low, high), abs=1e-5) == (float(values.min()), float(values.max()))


@pytest.mark.parametrize("name", ["flip", "brightness", "contrast", "saturation", "hue"])
def test_every_strength_changes_the_result(name: str) -> None:
    clips = clips_of()
    plain, changed = (
        augment(clips, draws_of(5, strength), "linear", means_of(clips))
        for strength in (NOTHING, dataclasses.replace(NOTHING, **{name: 0.5}))
    )
    assert not torch.allclose(plain, changed, atol=1e-3)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="augment 'strong', expected one of linear, exact, none"):
        augment(clips_of(), draws_of(5), "strong", means_of(clips_of()))
