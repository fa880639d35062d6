from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds import prepared, program_of, read
from hydrabench.bounds.program.program import shapes_of
from hydrabench.bounds.specification import MANY_PRODUCTS, channels_last_pays, pose


def convolutional(channels):
    """Of an image (3, 8, 8): 27 · channels products for each of 64 positions; what is flattened is as large."""
    layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * channels, 3)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def test_images_are_laid_out_anew_where_convolutions_gain_more_than_that_takes():
    """27 · 64 · c products against 3 · 64 + 64 · c numbers: 27 c >= 500 (3 + c) never; unflattened from c = 56 on."""
    image = torch.rand(2, 3, 8, 8)
    for channels in (1, 55, 56, 1000):
        nodes = read(program_of(convolutional(channels)))
        shapes = shapes_of(nodes, image)
        assert not channels_last_pays(nodes, shapes)
        assert channels_last_pays(nodes[:2], shapes[:3]) == (27 * channels >= 3 * MANY_PRODUCTS) == (channels >= 56)


@pytest.mark.parametrize("read_once", [False, True])
def test_only_problems_without_gradients_get_another_layout(read_once):
    """What is trained keeps the layout, on which the bits of every checkpoint depend."""
    layers = [nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 3)]
    network = nn.Sequential(*layers).eval()
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    given = prepared(network) if read_once else network
    assert pose(given, x, y, 0.1).ball.x is x
    with torch.no_grad():
        found = pose(given, x, y, 0.1).ball.x
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, x)
        dense = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
        assert pose(prepared(dense) if read_once else dense, x, y, 0.1).ball.x is x
    assert x.is_contiguous()
