"""Networks of torchvision, as they are, small images: read, computed alike, and bounded soundly."""

from __future__ import annotations

import pytest
import torch
from attack import margins
from torchvision import models

from hydrabench.bounds import BOUNDS, program_of, read

NETWORKS = {
    "densenet121": {},
    "efficientnet_b0": {},
    "googlenet": {"init_weights": True},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "resnet18": {},
    "resnext50_32x4d": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision_are_read_and_bounded(name):
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None, num_classes=4, **NETWORKS[name]).double().eval().requires_grad_(False)
    x = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    nodes, values = read(program_of(network)), [x]
    for node in nodes:
        values.append(node.operation.apply(*(values[number] for number in node.inputs)))
    logits = network(x)
    torch.testing.assert_close(values[-1], logits, rtol=1e-9, atol=1e-12)
    y, size = logits.argmax(1), 1 + float(logits.abs().max())
    for epsilon in (0.0, 1e-6):
        lowest = margins(network, x, y)
        for _ in range(3):
            corner = (x + epsilon * torch.randn_like(x).sign()).clamp(0, 1)
            lowest = lowest.minimum(margins(network, corner, y))
        for kind in ("ibp", "crown-ibp"):
            lower = BOUNDS[kind](network, x, y, epsilon)
            assert (lower <= lowest + 1e-10 * size).all(), kind
            if epsilon == 0:
                torch.testing.assert_close(lower, lowest, rtol=1e-6, atol=1e-6)
