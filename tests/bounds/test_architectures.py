"""Every architecture of the package, and auto_LiRPA's opinion on networks with branches and pooling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds import BOUNDS, interval_bounds, lirpa, lirpa_margins, program_of, read
from hydrabench.bounds.program.program import shapes_of
from hydrabench.errors import HydrabenchError
from hydrabench.models import MODELS, build_model

SMALL = ("cifar_model", "cifar_model_bn", "vgg2", "vgg4_bn", "vgg11_bn", "wrn_28_1", "resnet18", "ResNet18")
SIDES = {"ResNet18": 40}  # pixels; the ResNets for ImageNet halve five times


def network_of(arch, side=32):
    """With running statistics that a trained network might have, so that outputs neither vanish nor explode."""
    torch.manual_seed(0)
    network = build_model(arch, (3, side, side), 10)
    with torch.no_grad():
        network.train()(torch.rand(16, 3, side, side))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.mul_(10)  # what one step of momentum 0.1 left of the batch's own
            module.running_var.sub_(0.9).mul_(10).clamp_(min=0.1)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("arch", MODELS)
def test_every_architecture_is_read(arch):
    """Shapes only, on no images: the largest takes seconds to run."""
    side = 64 if arch.startswith("R") else 32
    shape = (1, 28, 28) if arch.startswith("mnist") else (3, side, side)
    with torch.device("meta"):
        network, x = MODELS[arch](shape, 10).eval(), torch.empty(1, *shape)
    nodes = read(program_of(network))
    assert shapes_of(nodes, x)[-1] == (10,)
    assert type(nodes[-1].operation).__name__ == "Dense"  # so that it is merged with the margins


@pytest.mark.parametrize("arch", SMALL)
def test_architectures_are_bounded_soundly(arch):
    network = network_of(arch, SIDES.get(arch, 32))
    x = torch.rand(2, 3, *[SIDES.get(arch, 32)] * 2)
    logits = network(x)
    scale = logits.abs().max()
    for ends in interval_bounds(network, x, x):
        torch.testing.assert_close(ends, logits, rtol=1e-3, atol=1e-3 * float(scale))
    y = logits.argmax(1)
    for epsilon in (1e-4, 2 / 255):
        lower, upper = interval_bounds(network, (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1))
        # Passes of their own for every neuron of a large random network would take minutes.
        names = BOUNDS if arch == "cifar_model" else ("ibp", "crown-ibp")
        margins = {name: BOUNDS[name](network, x, y, epsilon) for name in names}
        for _ in range(4):
            output = network((x + epsilon * torch.randn_like(x).sign()).clamp(0, 1))
            assert (lower - 1e-4 * scale <= output).all()
            assert (output <= upper + 1e-4 * scale).all()
            others = output.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values
            for found in margins.values():
                assert (found <= output.gather(1, y.unsqueeze(1)).squeeze(1) - others + 1e-4 * scale).all()


class Block(nn.Module):
    """A residual block with batch norm on the branch, and average pooling, projected or not, on the shortcut."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)),
            *(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out))

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))


def residual_network(seed, pool):
    torch.manual_seed(seed)
    blocks = [Block(4, 4, 1), Block(4, 6, 2)]
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *blocks, pool, nn.Flatten(), nn.Linear(24, 4))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
    x = torch.rand(3, 2, 8, 8)
    return network.eval().requires_grad_(False), x, torch.randint(4, (3,))


@pytest.mark.parametrize("name", lirpa.METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_residual_networks_are_bounded_like_auto_lirpa_does(name, seed):
    network, x, y = residual_network(seed, nn.AvgPool2d(2))
    for epsilon in (0.0, 0.01, 0.1):
        try:
            theirs = lirpa_margins(network, x, y, epsilon, method=name)
        except HydrabenchError as error:
            pytest.skip(str(error))
        torch.testing.assert_close(BOUNDS[name](network, x, y, epsilon), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_max_pooling_is_bounded_like_auto_lirpa_does_by_intervals_and_no_looser_backward(seed):
    """One pooling and no ReLU behind it: then the tighter line above cannot come out looser in the end."""
    torch.manual_seed(seed)
    network = (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4)).eval().requires_grad_(False)
    )
    x, y = torch.rand(3, 2, 8, 8), torch.randint(4, (3,))
    for epsilon in (0.0, 0.01, 0.1):
        try:
            interval, crown = (lirpa_margins(network, x, y, epsilon, method=name) for name in ("ibp", "crown-ibp"))
        except HydrabenchError as error:
            pytest.skip(str(error))
        torch.testing.assert_close(BOUNDS["ibp"](network, x, y, epsilon), interval, rtol=1e-4, atol=1e-5)
        ours = BOUNDS["crown-ibp"](network, x, y, epsilon)
        assert (ours >= crown - 1e-5).all()
    assert (ours > crown + 1e-3).any()
