"""Networks that deceive gradients, and plain ones: which signs each shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.attacks.checks import CountedGradients, network_signs


def plain():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


class Around(nn.Module):
    """A plain network behind and in front of something else."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.network, self.before, self.after = plain(), before, after
        self.eval()

    def forward(self, x):
        return self.after(self.network(self.before(x)))


class StraightThrough(torch.autograd.Function):
    """Rounds to 16 grey levels and lets gradients pass as if it did not."""

    @staticmethod
    def forward(_context, x):
        return (x * 15).round() / 15

    @staticmethod
    def backward(_context, gradient):
        return gradient


def purified(x):
    """Move the image by a gradient of its own, inside the forward pass."""
    with torch.enable_grad():
        inner = x.detach().requires_grad_()
        (step,) = torch.autograd.grad((inner**2).sum(), inner)
    return x - 0.01 * step


def one_hot(z):
    return nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z.dtype)


CASES = {
    "plain": (Around(), {}),
    "softmax": (Around(after=lambda z: z.softmax(1)), {"softmax-output": 1.0}),
    "one hot": (
        Around(after=one_hot),
        {"one-hot-output": 1.0, "detached-input": 1.0, "zero-gradient": 1.0},
    ),
    "detached": (Around(before=torch.Tensor.detach), {"detached-input": 1.0, "zero-gradient": 1.0}),
    "quantised": (Around(before=lambda x: (x * 15).round() / 15), {"quantised-input": 1.0, "zero-gradient": 1.0}),
    "straight through": (Around(before=StraightThrough.apply), {"quantised-input": 1.0}),
    "random": (Around(after=lambda z: z + 0.1 * torch.randn_like(z)), {"randomised-output": 1.0}),
    "dynamic": (Around(before=purified), {"dynamic-graph": 1.0}),
}


def images(count=12):
    generator = torch.Generator().manual_seed(1)
    grey = torch.randint(0, 256, (count, 1, 6, 6), generator=generator) / 255
    return grey, torch.arange(count) % 5, (grey + 0.02).clamp(0, 1)


@pytest.mark.parametrize("trained", [True, False], ids=["with gradients to weights", "without"])
@pytest.mark.parametrize("name", CASES)
def test_each_network_shows_its_own_signs_and_no_others(name, trained):
    network, expected = CASES[name]
    network.requires_grad_(trained)
    with torch.random.fork_rng():
        found = network_signs(network, *images())
    assert set(found) == set(expected)
    for sign, share in expected.items():
        assert found[sign] == pytest.approx(share, abs=0.2)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_share_of_images_is_told():
    """Images whose first pixel is black are cut off from the input."""

    def cut(x):
        return torch.where(x[:, :1, :1, :1] == 0, x.detach(), x)

    x, y, _ = images(10)
    x[:, 0, 0, 0], x[:3, 0, 0, 0] = 0.5, 0.0
    assert network_signs(Around(before=cut), x, y, x.clone()) == {"zero-gradient": 0.3}


def test_a_constant_network_is_not_taken_for_a_quantiser():
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with torch.no_grad():
        network[1].weight.zero_()
    x, y, start = images()
    assert network_signs(network, x, y % 3, start) == {"zero-gradient": 1.0}


def test_a_confident_network_is_flagged_where_the_loss_that_is_used_has_no_gradient():
    """A margin of hundreds: the cross entropy is 0 in float32, the margin's gradient is not."""
    network = Around(after=lambda z: z * 1e4)
    x, _, start = images()
    y = network(x).argmax(1)
    assert network_signs(network, x, y, start) == {}
    assert network_signs(network, x, y, start, losses=("ce",))["zero-gradient"] > 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x * 2).sum().backward(),
        lambda x: torch.autograd.backward((x * 2).sum()),
        lambda x: torch.autograd.grad((x * 2).sum(), x),
        lambda x: torch.func.grad(torch.sum)(x.detach()),
        lambda x: torch.func.jacrev(torch.exp)(x.detach()),
    ],
    ids=["backward of a tensor", "backward", "grad", "func.grad", "func.jacrev"],
)
def test_gradients_are_counted_whatever_computes_them_and_only_inside(make):
    x = torch.ones(1, requires_grad=True)
    with torch.no_grad(), CountedGradients() as gradients, torch.enable_grad():
        assert (x * 2).sum() == 2
        assert gradients.count == 0
        make(x)
        assert gradients.count == 1
    make(x)
    assert gradients.count == 1
