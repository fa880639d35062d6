"""alpha-CROWN chooses slopes around any function of one number, and every neuron's bounds stay sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from hydrabench.bounds import alpha, alpha_crown_margins
from hydrabench.bounds.alpha import Search
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.program.convert import LAYERS
from hydrabench.bounds.program.operations import Elementwise
from hydrabench.bounds.specification import pose
from tests.helpers.alpha_problems import MODES, NORMS, crown_margins, problem
from tests.helpers.attack import descended, into_ball


class Raise(nn.Module):
    """max(z, 0) + 1/2: outside of an image, where z is 0, this would be 1/2 if it were anything."""

    def forward(self, x):
        return x.relu() + 0.5


@dataclass(frozen=True, eq=False)
class Raised(Elementwise):
    ulps: ClassVar[float] = 0

    @property
    def steepness(self):
        return 1.0

    def apply(self, x):
        return x.relu() + 0.5

    def box(self, lower, upper):
        return self.apply(lower), self.apply(upper)

    def slopes(self, lower, upper):
        chord = self.chord(lower, upper)
        return (chord > 0.5).to(chord), chord

    def extremes(self, slope, lower, upper):
        ends = self.apply(lower) - slope * lower, self.apply(upper) - slope * upper
        kink = torch.zeros_like(lower).clamp(lower, upper)
        return torch.minimum(torch.minimum(*ends), self.apply(kink) - slope * kink), torch.maximum(*ends)

    def decided(self, lower, upper):
        return (lower >= 0) | (upper <= 0)


@MODES
@NORMS
def test_slopes_around_any_function_of_one_number_are_chosen_soundly(norm, radius, slopes, monkeypatch):
    network, x, _, rng = problem(0, dtype=torch.float64)
    for number in (2, 4, 7):
        network[number] = Raise()
    monkeypatch.setitem(LAYERS, Raise, lambda _layer: Raised())
    wrong, epsilon = (network(x).argmax(1) + 1) % 4, 0.2 * radius
    crown = crown_margins(network, x, wrong, epsilon, norm=norm)
    found = alpha_crown_margins(network, x, wrong, epsilon, norm=norm, search=Search(slopes, iterations=20))
    assert (found >= crown).all()
    assert (found - crown).mean() > 1e-3
    assert (found <= descended(network, x, wrong, epsilon, norm, rng) + 1e-9).all()


@pytest.mark.parametrize("raised", [False, True])
@NORMS
def test_no_neuron_of_a_point_lies_outside_its_optimised_bounds(norm, radius, raised, monkeypatch):
    network, x, y, rng = problem(0, dtype=torch.float64)
    for number in (2, 4, 7) if raised else ():
        network[number] = Raise()
    monkeypatch.setitem(LAYERS, Raise, lambda _layer: Raised())
    epsilon = 0.1 * radius
    asked = pose(network.requires_grad_(False), x, y, epsilon, norm=norm)
    passed = IntermediateBounds(asked.body, asked.ball).propagate(tighten=True)
    climb = alpha._Climb(asked.body, asked.ball, passed.shapes, {**passed.before}, Search("all", 10))
    climb.tighten_neurons(None)
    assert sum(float((passed.before[n].width - box.width).sum()) for n, box in climb.before.items()) > 0.1
    for _ in range(50):
        step = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        values = [into_ball(x + 9 * (step.sign() if norm == "linf" else step), x, epsilon, norm)]
        for node in asked.body:
            values.append(node.operation.apply(*(values[number] for number in node.inputs)))
        for number, box in climb.before.items():
            assert (box.lower() - 1e-9 <= values[number]).all()
            assert (values[number] <= box.upper() + 1e-9).all()
