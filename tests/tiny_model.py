"""Stands in for R3D-18 where only the loop around it is tested. Apart from helpers, which import no torch."""

from typing import Self

import torch
from torch import nn


class TinyModel(nn.Module):
    """Stands in for R3D-18 where only the loop around it is tested: the same interface, 1/10,000 of the work."""

    def __init__(self, num_classes: int, freeze: str = "none") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 4, (2, 3, 3)), nn.BatchNorm3d(4), nn.ReLU())
        self.fc = nn.Linear(4 * 8, num_classes)
        self.is_frozen = freeze != "none"
        self.stem.requires_grad_(not self.is_frozen)

    def train(self, mode: bool = True) -> Self:
        """As R3D-18: what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.stem.train(False)
        return self

    def split(self) -> tuple[nn.Sequential, nn.Sequential]:
        """What is frozen, and the rest."""
        head = (nn.AdaptiveAvgPool3d((2, 2, 2)), nn.Flatten(1), self.fc)
        return (
            (nn.Sequential(self.stem), nn.Sequential(*head))
            if self.is_frozen
            else (nn.Sequential(), nn.Sequential(self.stem, *head))
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """From (B, 3, T, H, W) to (B, K)."""
        first, second = self.split()
        logits: torch.Tensor = second(first(inputs))
        return logits
