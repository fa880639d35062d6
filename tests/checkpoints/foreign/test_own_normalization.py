"""A network's own normalisation: found whatever code computes it, and never where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.transforms import Normalize as Transform

from hydrabench.checkpoints import own_normalization
from hydrabench.models import normalized

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Front(nn.Module):
    """A convolution behind `front`."""

    def __init__(self, front):
        super().__init__()
        self.front, self.convolution = front, nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.convolution(self.front(x)).flatten(1)


def shaped(values):
    return torch.tensor(values).view(1, 3, 1, 1)


def inception(x):
    """As torchvision's Inception v3 and GoogLeNet turn one normalisation into another."""
    channels = [x[:, i : i + 1] * (STD[i] / 0.5) + (MEAN[i] - 0.5) / 0.5 for i in range(3)]
    return torch.cat(channels, 1)


OWN = {
    "subtracts and divides": lambda x: (x - shaped(MEAN)) / shaped(STD),
    "multiplies and adds": lambda x: x * (1 / shaped(STD)) + (-shaped(MEAN) / shaped(STD)),
    "torchvision's transform": Transform(MEAN, STD),
    "in place": lambda x: x.clone().sub_(shaped(MEAN)).div_(shaped(STD)),
}
NONE = {
    "nothing": lambda x: x,
    "batch norm": nn.BatchNorm2d(3),
    "grey levels": lambda x: x * 255,
    "the same scale": lambda x: x - 0.5,
    "no affine function": lambda x: x / (x + 1),
    "by the image": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / 0.25,
    "one normalisation for another": inception,
}


@pytest.mark.parametrize("front", OWN.values(), ids=OWN)
def test_a_normalisation_is_found(front):
    found = own_normalization(Front(front).eval(), X)
    assert found is not None
    assert found.mean == pytest.approx(MEAN, abs=1e-4)
    assert found.std == pytest.approx(STD, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exported", [False, True])
def test_one_of_an_exported_program_is_found_in_every_precision(exported, dtype):
    x, network = X.to(dtype), normalized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), MEAN, STD).eval().to(dtype)
    found = own_normalization(torch.export.export(network, (x,)).module() if exported else network, x)
    assert found is not None
    assert found.mean == pytest.approx(MEAN, abs=1e-4)


@pytest.mark.parametrize("front", NONE.values(), ids=NONE)
def test_what_is_no_normalisation_of_images_is_not_taken_for_one(front):
    assert own_normalization(Front(front).eval(), X) is None


def test_a_network_that_fails_has_none():
    assert own_normalization(nn.Linear(5, 2).eval(), X) is None
