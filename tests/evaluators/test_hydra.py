"""HYDRA's evaluation, against its procedure written out for one image."""

from __future__ import annotations

import torch
from torch import nn

from hydrabench.attacks import unit_noise
from hydrabench.data.images import Block
from hydrabench.evaluators import HydraSettings
from hydrabench.evaluators.hydra import evaluate_hydra
from hydrabench.runtime import stream


def test_it_is_the_procedure_of_the_original():
    """Start U(-eps, eps), unclamped; signed steps of 0.0078, cut into the ball, then into [0, 1]; the last point."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
        images = (torch.rand(30, 1, 4, 4) * 1.4 - 0.2).clamp(0, 1).double()
    network, epsilon = network.double().eval(), 0.06
    labels = network(images).argmax(1)
    block = Block(0, tuple(range(30)), images, labels, ("0" * 64,) * 30)
    records = evaluate_hydra(network, block, HydraSettings(epsilon="0.06", steps=8))
    outside = 0
    for record, x in zip(records, images, strict=True):
        noise = unit_noise((1, 1, 4, 4), norm="linf", generator=stream(0, "hydra", record.index, version=2))
        point = x + epsilon * noise.double()
        outside += bool((point < 0).any() or (point > 1).any())
        for _ in range(8):
            point = point.detach().requires_grad_()
            loss = nn.functional.cross_entropy(network(point), torch.tensor([record.label]))
            (gradient,) = torch.autograd.grad(loss, point)
            delta = (point.detach() + 0.0078 * gradient.sign() - x).clamp(-epsilon, epsilon)
            point = (x + delta).clamp(0, 1)
        assert record.robust == (network(point).argmax(1).item() == record.label)
    assert outside > 5
    assert 3 < sum(record.robust for record in records) < 27


def test_its_protocol_is_named():
    assert HydraSettings(epsilon="8/255").protocol == "hydra-pgd-50@1"
    assert HydraSettings(epsilon="8/255", step_size="2/255").protocol == "hydra-pgd-50-step2_255@1"
