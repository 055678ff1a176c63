"""uint8 pixels -> the network's input, on its device.

B images.
"""

from dataclasses import dataclass
from typing import Self

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Normalization:
    """A network's own mean and standard deviation, device and memory format."""

    mean: Tensor
    """[1, 3, 1, 1] float32 in units of pixel values 0-255."""
    std: Tensor
    memory_format: torch.memory_format = torch.contiguous_format

    @classmethod
    def of(cls, network: nn.Module, device: torch.device, *, channels_last: bool = False) -> Self:
        """Read from the network's data config (ImageNet's where it has none)."""
        config = resolve_model_data_config(network)
        mean, std = (
            (torch.tensor(config[name], dtype=torch.float32) * 255).view(1, 3, 1, 1).to(device)
            for name in ("mean", "std")
        )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return cls(mean, std, layout)

    def images(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] on the host -> float32 [B, 3, H, W] on the device."""
        pixels = pixels_BHWC.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2)
        return ((pixels.float() - self.mean) / self.std).contiguous(
            memory_format=self.memory_format
        )
