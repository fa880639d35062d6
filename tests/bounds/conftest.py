"""Random small networks that cover every operation the bounds know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Problem = tuple[nn.Module, Tensor, Tensor, torch.Generator]


@pytest.fixture(scope="session")
def tiny_problem() -> Callable[[int], Problem]:
    return make_problem


def make_problem(seed: int) -> Problem:
    """A float64 network in eval mode, 3 images in [0, 1], their labels, and a generator for more.

    Seeds walk through kernel, stride, padding, dilation, groups, bias and batch norm, so that any 24 in
    a row hold every value of each.
    """
    from hydrabench.models.normalize import Normalize

    rng = torch.Generator().manual_seed(seed)
    stride, padding = 1 + seed % 2, ((0, 1), 1, "valid", (2, 0))[seed % 4]
    first = nn.Conv2d(2, 4, (3, 2), stride, padding, bias=seed % 3 != 0, groups=1 + seed // 2 % 2)
    second = nn.Conv2d(4, 3, 3, 1, "same", dilation=1 + seed // 3 % 2, bias=seed % 5 != 0)
    layers: list[nn.Module] = [Normalize([0.4, 0.6], [0.2, 0.3])] if seed % 4 < 2 else []
    layers += [first] + ([nn.BatchNorm2d(4)] if seed % 3 else []) + [nn.ReLU(inplace=seed % 2 == 0)]
    layers += [second, nn.ReLU(), nn.Dropout(0.5), nn.Identity(), nn.Flatten()]
    with torch.no_grad():
        features = nn.Sequential(*layers).eval()(torch.zeros(1, 2, 6, 5)).shape[1]
    layers += [nn.Linear(features, 6), *([nn.BatchNorm1d(6)] if seed % 2 else []), nn.ReLU()]
    layers += [nn.Linear(6, 4, bias=seed % 3 != 1)] + ([nn.BatchNorm1d(4)] if seed % 8 == 5 else [])
    network = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype) / max(1, tensor[0].numel()) ** 0.5
                )
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_var.uniform_(0.2, 2.0, generator=rng)
    x = torch.rand(3, 2, 6, 5, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        y = network(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # one image is misclassified
    return network, x, y, rng
