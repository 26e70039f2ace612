"""Grad-CAM: against a second way to compute it, and its place in the clip."""

import numpy as np
import pytest
import torch
from torch import nn

from vidcache.eval.gradcam import STRIDES, explanation_strip, grad_cam, overlay
from vidcache.model import R3D18


@pytest.fixture(scope="module")
def model() -> R3D18:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = R3D18(3)
    made.eval()
    return made


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """2 clips of 9 frames of 33 x 17: layer4 has 2 x 3 x 2 cells for each."""
    return torch.randn(2, 3, 9, 33, 17, generator=torch.Generator().manual_seed(0))


def test_logits_heat_and_weights(model: R3D18, inputs: torch.Tensor) -> None:
    logits, heat = grad_cam(model, inputs)
    best = logits.argmax(1)
    model.requires_grad_(False)
    with torch.inference_mode():
        frozen = grad_cam(model, inputs.clone(), best)[1]
        torch.testing.assert_close(model(inputs), logits)
    model.requires_grad_(True)

    assert (2, 9, 33, 17) == tuple(heat.shape)
    assert [1, 1] == heat.amax((1, 2, 3)).tolist()
    assert heat.min() >= 0
    assert not heat.requires_grad
    assert torch.equal(frozen, heat), "the most probable class is the default, and frozen weights change nothing"
    assert not torch.equal(heat, grad_cam(model, inputs, (best + 1) % 3)[1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_at_the_centres_of_cells_it_is_what_hooks_and_backward_give(model: R3D18, inputs: torch.Tensor) -> None:
    kept = {}

    def keep(module: nn.Module, arguments: object, output: torch.Tensor) -> None:
        kept["features"] = output
        output.retain_grad()

    _, heat = grad_cam(model, inputs, torch.tensor([2, 0]))
    with model.layer4.register_forward_hook(keep):
        logits = model(inputs)
    (logits[0, 2] + logits[1, 0]).backward()
    model.zero_grad()
    features = kept["features"]
    cells = (features.grad.mean((2, 3, 4), keepdim=True) * features).sum(1).relu().detach()
    cells /= cells.amax((1, 2, 3), keepdim=True)

    time, height, width = STRIDES
    torch.testing.assert_close(cells, heat[:, ::time, ::height, ::width], rtol=1e-4, atol=1e-5)
    between = heat[:, 0, height // 2, 0]
    torch.testing.assert_close((cells[:, 0, 0, 0] + cells[:, 0, 1, 0]) / 2, between, rtol=1e-4, atol=1e-5)


def test_a_cell_is_where_its_receptive_field_has_its_centre(inputs: torch.Tensor) -> None:
    """With kernels of which only the middle is left, a cell sees one pixel: that of its centre."""
    model = R3D18(2)
    model.eval()
    nn.init.zeros_(model.fc.weight)
    assert 0 == grad_cam(model, inputs)[1].abs().sum(), "where nothing speaks for a class there is no heat"
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv3d):
                middle = [size // 2 for size in module.kernel_size]
                module.weight.zero_()
                module.weight[(..., *middle)] = 0.05
    clip = inputs[:1].abs().requires_grad_()
    features = clip
    for stage in ("stem", "layer1", "layer2", "layer3", "layer4"):
        features = getattr(model, stage)(features)

    (gradient,) = torch.autograd.grad(features[0, :, 1, 2, 1].sum(), clip)

    assert [[8 * 1, 16 * 2, 16 * 1]] == gradient[0, 0].nonzero().tolist()


def test_training_mode_and_labels_of_other_clips_are_refused(model: R3D18, inputs: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels: shape \(3,\) for 2 clips"):
        grad_cam(model, inputs, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="model: in training mode"):
        grad_cam(R3D18(2), inputs)


def test_heat_is_the_only_colour_and_a_strip_shows_the_same_frames_twice() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    heat = np.zeros((20, 4, 4), np.float32)
    heat[13, 2, 3] = 1

    (_, frames), (_, shown) = explanation_strip(clip, heat, "title").lines

    assert np.array_equal(clip[[0, 2, 5, 8, 10, 13, 16, 19]], frames)
    assert np.array_equal(overlay(clip, heat)[[0, 2, 5, 8, 10, 13, 16, 19]], shown)
    red, _, blue = shown[5, 2, 3].astype(int)
    assert red > blue + 40  # the hot end of inferno is yellow
    shown[5, 2, 3] = 0
    frames[5, 2, 3] = 0
    assert (np.ptp(shown.astype(int), axis=-1) == 0).all()
    assert (np.abs(shown[..., 0] - frames @ [0.299, 0.587, 0.114]) <= 0.5).all()
    assert 3 == len(explanation_strip(clip[:3], heat[:3], "short").lines[0][1])
