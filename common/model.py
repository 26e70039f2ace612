"""R3D-18: built, loaded with Kinetics-400 weights, partly frozen.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018;
architecture and weights are torchvision's.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torchvision.models.video import R3D_18_Weights, VideoResNet
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple

from vidcache.errors import InputError
from vidcache.files import open_regular
from vidcache.text import one_line, printable

KINETICS_URL = R3D_18_Weights.KINETICS400_V1.url
KINETICS_SHA256 = "b3b3357e"  # the first digits, as in the file's name
KINETICS_CLASSES = 400
# In the order of the data; `--freeze layer2` freezes everything up to and including layer2.
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class BatchNorm3d(nn.BatchNorm3d):
    """torch's, which in training refuses a single value per channel; the running statistics normalize it here.

    It happens where a part of a step is one clip, so small that the last stages have one position left.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, T, H, W)."""
        if self.training and inputs.numel() == self.num_features:
            return nn.functional.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(inputs)


class R3D18(VideoResNet):  # type: ignore[misc]  # torchvision has no types
    """R3D-18 whose first stages can be frozen: no gradients, and BatchNorm never learns either.

    The state dict has torchvision's 122 keys.

    Args:
        num_classes: Outputs of `fc` (K).
        freeze: Last stage that is frozen, one of `STAGES`; "none" or "all" (everything but `fc`).
    """

    def __init__(self, num_classes: int, freeze: str = "none") -> None:
        super().__init__(
            block=BasicBlock,
            conv_makers=[Conv3DSimple] * 4,
            layers=[2, 2, 2, 2],
            stem=BasicStem,
            num_classes=num_classes,
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.__class__ = BatchNorm3d
        self.frozen_stages = frozen_stages(freeze)
        for stage in self.frozen_stages:
            getattr(self, stage).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; frozen stages stay in evaluation mode, or their running statistics would move."""
        super().train(mode)
        for stage in self.frozen_stages:
            getattr(self, stage).train(False)
        return self

    def split(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Return the frozen stages, (B, 3, T, H, W) to (B, C, T', H', W'), and the rest, to (B, K), sharing weights."""
        first = len(self.frozen_stages)
        stages = [getattr(self, stage) for stage in STAGES]
        return nn.Sequential(*stages[:first]), nn.Sequential(*stages[first:], self.avgpool, nn.Flatten(1), self.fc)


def frozen_stages(freeze: str) -> tuple[str, ...]:
    """Return the stages that `--freeze` names: it and all before it; raises ValueError."""
    choices = ("none", *STAGES, "all")
    if freeze not in choices:
        raise ValueError(f"freeze {freeze!r}, expected none, {', '.join(STAGES)} or all")
    return STAGES[: choices.index(freeze)]


def build_model(num_classes: int, weights: str, freeze: str) -> R3D18:
    """Build a model for fine-tuning.

    Args:
        num_classes: Outputs (K).
        weights: "kinetics400", "none" (random, from torch's generator), or the path of a file
            with the state dict of a 400-class R3D-18.
        freeze: See `R3D18`.

    Raises:
        InputError: The weights are not there, cannot be downloaded, or are not what they should be.
    """
    model = R3D18(num_classes, freeze)
    if weights == "none":
        return model
    path = kinetics_path() if weights == "kinetics400" else Path(weights)
    state = load_kinetics(path)
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    model.load_state_dict({**state, **head})  # a new fc; everything else from Kinetics
    return model


def kinetics_path() -> Path:
    """Return where the Kinetics-400 weights are kept, downloading them if they are not there; raises InputError."""
    path = _kinetics_place()
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(KINETICS_URL, str(path), hash_prefix=KINETICS_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{printable(path)}: not there, and {KINETICS_URL} cannot be downloaded ({error}). Download it "
                "elsewhere and put it there, or give its path with --weights PATH; --weights none starts from nothing"
            ) from None
    return path


def _kinetics_place() -> Path:
    return Path(str(torch.hub.get_dir()), "checkpoints", os.path.basename(KINETICS_URL))


def load_kinetics(path: Path) -> dict[str, torch.Tensor]:
    """Load a 400-class R3D-18 state dict whose sha256 is the published one; raises InputError."""
    where = printable(path)
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}, expected the file of {KINETICS_URL}") from None
    if not found.startswith(KINETICS_SHA256):
        ours = path == _kinetics_place()  # what a user has put elsewhere may be something else, and dear
        raise InputError(
            f"{where}: sha256 begins with {found[:8]}, expected {KINETICS_SHA256}: not the file of {KINETICS_URL}. "
            f"{'Delete it and download it again' if ours else 'Name that file with --weights, or none'}"
        )
    try:
        state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        load_weights(R3D18(KINETICS_CLASSES), state)
    except Exception as error:  # torch says in many ways what it stumbles over
        raise InputError(f"{where}: no weights of a 400-class R3D-18 ({one_line(str(error), 200)})") from None
    return state


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load weights; raises ValueError if a name or shape differs."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(one_line(str(error), 300)) from None


def state_on_cpu(model: nn.Module) -> dict[str, Any]:
    """Copy the state dict to the CPU, so that what is saved does not change with the model."""
    return dict(copy_to_cpu(dict(model.state_dict())))


def copy_to_cpu(state: Any) -> Any:
    """Copy dicts and lists, and the tensors in them to the CPU, so that nothing in them changes any more."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copy_to_cpu(value) for key, value in state.items()}
    return [copy_to_cpu(value) for value in state] if isinstance(state, list) else state
