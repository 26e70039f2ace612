"""Mirrored and shifted views of a clip: which frames, and the mean of what is said of them."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from vidcache.eval.inference import average_views, view_frames
from vidcache.pixels import normalize
from vidcache.spec import sample_indices


@given(st.integers(2, 80), st.integers(1, 80), st.integers(1, 8))
def test_views_are_shifted_evenly_and_begin_with_what_was_trained(num_frames: int, used: int, views: int) -> None:
    assume(used < num_frames)
    try:
        found = view_frames(num_frames, used, views)
    except ValueError:
        assert views > 1
        return

    assert (views, used) == found.shape
    assert sample_indices(num_frames, used).tolist() == found[0].tolist()
    assert (found >= 0).all()
    assert (found < num_frames).all()
    assert (np.diff(found, axis=1) >= 0).all()
    assert views == len({tuple(view) for view in found.tolist()})
    if used > 1:
        distance = (num_frames - 1) / (used - 1)
        wanted = np.arange(used) * distance + np.arange(views)[:, None] * distance / views
        assert (np.abs(found - np.minimum(wanted, num_frames - 1)) < 1).all()


def test_views_that_do_not_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="5 views of 16 of 31 frames, expected at most 2: the others are the same"):
        view_frames(31, 16, 5)
    with pytest.raises(ValueError, match="2 views of 8 of 8 frames, expected at most 1: the others are the same"):
        view_frames(8, 8, 2)


class Flatten(torch.nn.Module):
    """Logits that depend on every pixel and where it is."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.reshape(len(inputs), -1)
        weights = (torch.arange(flat.shape[1] * 3.0) ** 2).sin().reshape(-1, 3) * 0.05
        return flat @ weights


def clips(frames: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, frames, 6, 8, 3), dtype=torch.uint8)


def probabilities(clips_BTHWC: torch.Tensor) -> torch.Tensor:
    return Flatten()(normalize(clips_BTHWC)).softmax(1)


def test_one_view_is_the_model_itself() -> None:
    whole, frames = clips(8), torch.tensor([[0, 2, 4, 7]])

    assert torch.equal(Flatten()(normalize(whole[:, frames[0]])), average_views(Flatten(), whole, frames, flip=False))


def test_flip_is_the_mean_over_the_mirror() -> None:
    whole = clips(8)

    logits = average_views(Flatten(), whole, torch.arange(8)[None], flip=True)

    expected = (probabilities(whole) + probabilities(whole.flip(3))) / 2
    torch.testing.assert_close(expected, logits.softmax(1))
    torch.testing.assert_close(expected.log(), logits)
    assert (expected - probabilities(whole)).abs().max() > 1e-3


def test_views_are_the_mean_over_their_frames() -> None:
    whole = clips(9)

    logits = average_views(Flatten(), whole, torch.from_numpy(view_frames(9, 3, 2)), flip=True)

    chosen = [whole[:, [0, 4, 8]], whole[:, [2, 6, 8]]]
    expected = sum(probabilities(view) + probabilities(view.flip(3)) for view in chosen) / 4
    torch.testing.assert_close(expected, logits.softmax(1))


def test_a_probability_too_small_for_a_float_has_a_finite_logarithm() -> None:
    def model(inputs: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 500.0]]).expand(len(inputs), 2)

    assert pytest.approx([-500, 0]) == average_views(model, clips(8), torch.arange(8)[None], flip=True)[0].tolist()
