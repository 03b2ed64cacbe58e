# SPDX-License-Identifier: Apache-2.0
"""Convolutions, pooling and blocks of CNNs on MLX against PyTorch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vllm_metal.compile import lower_function, reports

IMAGE = (2, 4, 9, 7)
LINE = (2, 4, 11)

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "1d": (LINE, lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1)),
    "1d without bias": (LINE, lambda: nn.Conv1d(4, 6, 1, bias=False)),
    "2d": (IMAGE, lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0))),
    "2d dilated": (IMAGE, lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same")),
    "2d in groups": (IMAGE, lambda: nn.Conv2d(4, 6, 3, groups=2)),
    "2d by channel": (IMAGE, lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1)),
    "1d transposed": (LINE, lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1)),
    "2d transposed": (
        IMAGE,
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    ),
    "transposed in groups": (LINE, lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, dilation=2)),
    "3d": ((1, 2, 5, 4, 6), lambda: nn.Conv3d(2, 3, 2, padding=1)),
}

POOLS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "max": (IMAGE, lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max dilated": (IMAGE, lambda x: F.max_pool2d(x, 2, 1, 0, 2)),
    "max ceil": (IMAGE, lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True)),
    "max 1d": (LINE, lambda x: F.max_pool1d(x, 3)),
    "average": (IMAGE, lambda x: F.avg_pool2d(x, (3, 2), 2, 1)),
    "average without padding": (IMAGE, lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "average ceil": (IMAGE, lambda x: F.avg_pool2d(x, 2, 2, 1, ceil_mode=True)),
    "average by another number": (IMAGE, lambda x: F.avg_pool2d(x, 2, divisor_override=3)),
    "average 1d": (LINE, lambda x: F.avg_pool1d(x, 4, 2)),
    "adaptive": (IMAGE, lambda x: F.adaptive_avg_pool2d(x, (4, 3))),
    "adaptive to one": (IMAGE, lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive beyond": (LINE, lambda x: F.adaptive_avg_pool1d(x, 14)),
}


def same(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    with torch.no_grad():
        lowered = lower_function(function, (x,), refuse_fallback=True)
        torch.testing.assert_close(lowered(x), function(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    shape, make = CONVOLUTIONS[name]
    same(make(), torch.randn(*shape))


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    shape, pool = POOLS[name]
    same(pool, torch.randn(*shape))


class Block(nn.Module):
    """A residual block as torchvision's ResNet has it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.down(x))


def test_a_residual_network_of_images_of_any_size() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    run = torch.compile(model, backend="mlx", dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 32, 40), (3, 3, 47, 33), (4, 3, 64, 64)):
            x = torch.randn(*shape)
            torch.testing.assert_close(run(x), model(x), atol=1e-4, rtol=1e-4)
    assert len(reports()) == 1
    islands = {island["target"] for island in reports()[0]["fallback"]}
    assert not [target for target in islands if "conv" in target or "pool" in target]
