"""Grad-CAM: where in a clip a class was found, and its drawing.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
"""

import matplotlib
import numpy as np
import numpy.typing as npt
import torch

from vidcache.model import R3D18, STAGES
from vidcache.plotting import Filmstrip, Pictures
from vidcache.spec import sample_indices

Heat = npt.NDArray[np.float32]

# Distance between the receptive fields' centres of neighbouring cells of layer4's output in time, height and width; the
# first centre is at 0. `interpolate` would put the cells in the middle of equal parts: 3.5 frames, 7.5 pixels too late.
STRIDES = (8, 16, 16)


def grad_cam(
    model: R3D18, inputs_BCTHW: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a model, and find where in its input a class was found.

    The channels of layer4's output are added, each weighted by the mean gradient of the class's logit; negative values
    are cut off; the rest is interpolated linearly in time, height and width. Weights get no gradients.

    Args:
        model: In evaluation mode.
        inputs_BCTHW: (B, 3, T, H, W), normalised, on the device of the model.
        labels: (B,) the class to look for in each clip; None for the most probable one.

    Returns:
        Logits (B, K) float32, and heat (B, T, H, W) float32 from 0 to 1; the maximum of each clip is 1, or 0 if nothing
        speaks for the class. Both on the device.

    Raises:
        ValueError: The model is in training mode, or there is not one label for each clip.
    """
    if model.training:
        raise ValueError("model: in training mode. Call model.eval() first")
    if labels is not None and labels.shape != (len(inputs_BCTHW),):
        raise ValueError(f"labels: shape {tuple(labels.shape)} for {len(inputs_BCTHW)} clips")
    with torch.inference_mode(False), torch.no_grad():
        features = inputs_BCTHW
        for stage in STAGES:
            features = getattr(model, stage)(features)
    with torch.inference_mode(False), torch.enable_grad():
        features = features.detach().requires_grad_()
        logits = model.fc(model.avgpool(features).flatten(1))
        chosen = logits.argmax(1) if labels is None else labels.to(logits.device)
        (gradients,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
    weights = gradients.mean((2, 3, 4))
    cells = torch.einsum("bcthw,bc->bthw", features.detach(), weights).relu().to(torch.float32)
    heat = _enlarge(cells, tuple(inputs_BCTHW.shape[2:]))
    largest = heat.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return logits.detach().to(torch.float32), heat / largest


def _enlarge(cells_BTHW: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Interpolate linearly between the centres of cells; beyond the last one, repeat it."""
    maps = []
    for length, count, stride in zip(shape, cells_BTHW.shape[1:], STRIDES, strict=True):
        position = (torch.arange(length, device=cells_BTHW.device) / stride).clamp(max=count - 1)
        distance = position[:, None] - torch.arange(count, device=cells_BTHW.device)
        maps.append((1 - distance.abs()).clamp(min=0))
    return torch.einsum("bthw,Tt,Hh,Ww->bTHW", cells_BTHW, *maps)


def overlay(clip_THWC: Pictures, heat_THW: Heat) -> Pictures:
    """Show heat as the only colour on grey frames: (T, H, W, 3) uint8 RGB and (T, H, W) from 0 to 1 to uint8 RGB."""
    grey = clip_THWC @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    colours = matplotlib.colormaps["inferno"](heat_THW)[..., :3] * 255
    opacity = 0.65 * heat_THW[..., None]
    return np.asarray((grey[..., None] * (1 - opacity) + colours * opacity).round(), np.uint8)


def explanation_strip(clip_THWC: Pictures, heat_THW: Heat, title: str) -> Filmstrip:
    """Show at most 8 evenly spaced frames of a clip, and below them where a class was found; see `overlay`."""
    frames = sample_indices(len(clip_THWC), min(8, len(clip_THWC)))
    clip, heat = clip_THWC[frames], heat_THW[frames]
    return Filmstrip(title, (("frames", clip), ("Grad-CAM", overlay(clip, heat))))
