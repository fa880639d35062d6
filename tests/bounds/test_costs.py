"""Forecasts from shapes: counted by hand, by the tensors of a pass, and the same for every set of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds import image_operations, search_operations
from hydrabench.bounds.backward import linear
from hydrabench.bounds.costs import ITERATION, MOVED, SEARCHED, _whole_row, neuron_operations
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.neurons import bounded_values, substituted
from hydrabench.bounds.patches import unit_rows
from hydrabench.bounds.program.program import program_of, read, shapes_of
from hydrabench.bounds.specification import pose
from hydrabench.models import build_model


def two_convolutions():
    layers = [nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2)).eval()


@pytest.mark.parametrize(
    ("methods", "signs"), [(("crown",), 2), (("symbolic",), 1), (("ibp", "crown-ibp", "crown"), 2)]
)
def test_two_convolutions_counted_by_hand(methods, signs):
    """Intervals are exact for the first. A neuron of the second, 16 of them, is one coefficient behind it, and 9
    behind the ReLU and the first: 1 + 9 + 9 entries. The second takes 1 · 9 products, the first 9 · 9.
    """
    a_row = MOVED * (1 + 9 + 9) + 2 * (9 + 81)
    assert image_operations(two_convolutions(), (1, 4, 4), methods) == signs * 16 * a_row


def test_a_search_in_two_convolutions_counted_by_hand():
    """Values of 16 neurons behind each of convolution, ReLU, convolution, ReLU and flatten, then 2 logits.

    The one margin has 5 · 16 coefficients in every iteration.
    """
    for iterations in (1, 50):
        found = search_operations(two_convolutions(), (1, 4, 4), iterations)
        assert found == iterations * (ITERATION + SEARCHED * 80)


def test_a_shortcut_is_counted_once():
    """A value that two others read is passed once on the way back, when both have been."""
    network = build_model("wrn_10_1", (3, 8, 8), 10).eval()
    nodes = read(program_of(network))
    shapes = shapes_of(nodes, torch.empty(1, 3, 8, 8))
    assert _whole_row(nodes, shapes, len(nodes)) == sum(shape.numel() for shape in shapes[1:-1])


@pytest.mark.parametrize("methods", [("ibp",), ("ibp", "crown-ibp")])
def test_methods_of_one_pass_cost_next_to_nothing(methods):
    assert image_operations(two_convolutions(), (1, 4, 4), methods) == 0


@pytest.mark.parametrize("arch", ["resnet18", "cifar_model", "vgg4_bn"])
def test_entries_are_those_of_the_tensors_that_a_pass_has(arch, monkeypatch):
    """Rows of the last bounded values, carried back for real, have as many coefficients as were counted."""
    network = build_model(arch, (3, 16, 16) if arch == "vgg4_bn" else (3, 8, 8), 10).eval()
    shape = (3, 16, 16) if arch == "vgg4_bn" else (3, 8, 8)
    asked = pose(network.requires_grad_(False), torch.rand(1, *shape), torch.tensor([3]), 0.01)
    lines = IntermediateBounds(asked.body, asked.ball)
    lines.propagate(tighten=False)
    monkeypatch.setattr("hydrabench.bounds.costs.MOVED", 1e12)  # beside which products do not count
    for number in bounded_values(asked.body)[-3:]:
        counted, seen = round(neuron_operations(asked.body, asked.shapes, number) / 1e12), []

        def carried(node, seen=seen):
            class Spy:
                def back_patches(self, given, *shapes):
                    seen.append(given.coefficients[0].numel() if len(node.inputs) == 1 else 0)
                    return linear(node).back_patches(given, *shapes)

            return Spy()

        def relax(position, given, lines=lines, seen=seen):
            seen.append(given.coefficients[0].numel())
            return lines._relax(position, given)

        monkeypatch.setattr("hydrabench.bounds.neurons.linear", carried)
        value = lines.values[number].center
        unit = unit_rows(value.shape, torch.tensor([0]), torch.tensor([value.numel() // 2]), value)
        substituted(asked.body, number, unit, lines._shapes(number), relax)
        sums = sum(
            asked.shapes[n].numel() for n, node in enumerate(asked.body, 1) if len(node.inputs) > 1 and n <= number
        )
        assert sum(seen) <= counted <= sum(seen) + sums


def test_a_channel_without_a_connection_costs_nothing():
    """As much as the network without it: one channel of two in front of the last layer, read by weights that are 0."""
    layers = [nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 2)).eval()
    without = image_operations(two_convolutions(), (1, 4, 4), ("crown",))
    assert image_operations(network, (1, 4, 4), ("crown",)) > 1.9 * without
    network[5].weight.data[:, 16:] = 0
    assert image_operations(network, (1, 4, 4), ("crown",)) == without


def test_a_forecast_does_not_depend_on_the_weights():
    first, second = (build_model("cifar_model", (3, 8, 8), 10).eval() for _ in range(2))
    assert image_operations(first, (3, 8, 8), ("crown",)) == image_operations(second, (3, 8, 8), ("crown",)) > 0
