"""Which calls of activations are refused; those that are read are in `helpers/activation_examples`."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydrabench.bounds import BOUNDS, sound_margins
from hydrabench.bounds.program.program import program_of, read
from hydrabench.errors import UnsupportedLayerError


class Calling(nn.Module):
    """A network that calls a function between two layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 3), nn.Linear(3, 2), function
        self.register_buffer("weight", torch.tensor([0.3, -0.2, 1.4]))

    def forward(self, x):
        return self.last(self.function(self.first(x.flatten(1)), self.weight))


REFUSED = {
    "largest along an axis": (lambda h, _: h.max(1), "a value and a constant tensor"),
    "the larger of two values": (lambda h, _: torch.maximum(h, h + 1), "a value and a constant tensor"),
    "limits for channels": (lambda h, weight: h.clamp(min=weight), "takes many numbers for one number"),
    "a cube": (lambda h, _: h**3, "takes the power 3, only 2 has a rule"),
    "an empty range": (lambda h, _: h.clamp(1.0, 0.0), r"settings without a rule \(out of range: "),
    "elu that falls": (lambda h, _: F.elu(h, -1.0), r"settings without a rule \(out of range: "),
    "celu": (lambda h, _: F.celu(h, -1.0), r"settings without a rule \(out of range: "),
    "read after a change": (lambda h, _: h + h.sigmoid_(), "after an operation in place may have changed it"),
}


@pytest.mark.parametrize(("function", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_rule_is_refused(function, reason):
    with pytest.raises(UnsupportedLayerError, match=reason):
        read(program_of(Calling(function)))


def test_images_are_not_written_over():
    class Changed(nn.Module):
        def forward(self, x):
            return x.sigmoid_().flatten(1)

    with pytest.raises(UnsupportedLayerError, match="writes over its own images"):
        program_of(Changed())


def test_the_neuron_of_which_a_relu_says_too_much():
    """leaky(x - 1/2) with slope 0.9 for x in [0.2, 0.8] is -0.27 at the least."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.LeakyReLU(0.9), nn.Linear(1, 2, bias=False))
    for parameter, value in zip(network.parameters(), ([[1.0]], [-0.5], [[1.0], [0.0]]), strict=True):
        parameter.data = torch.tensor(value)
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    for name, bound in BOUNDS.items():
        assert -0.3 <= bound(network.eval(), x, y, 0.3).item() <= -0.27 + 1e-6, name
    for kind in ("ibp", "crown-ibp"):
        assert -0.3 - 1e-9 <= sound_margins(network, x, y, Fraction(3, 10), kind=kind).item() <= -0.27
