"""Every operation in every method, over both balls, with every rigor: no attack finds a margin below a bound.

A class of operations that has no example here fails, and so does a layer or a call that no example uses.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import pytest
import torch
from attack import attacked, margins
from torch import nn

from hydrabench.bounds import (
    BOUNDS,
    Search,
    alpha_crown_margins,
    class_margins,
    deployed_margins,
    interval_bounds,
    prepared,
    program_of,
    read,
    rounding_bound,
    sound_margins,
    symbolic_class_margins,
)
from hydrabench.bounds.program import calls, convert
from hydrabench.bounds.program.operations import Elementwise, Operation
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.sound import STOPS
from tests.helpers.operation_examples import EXAMPLES, SHAPE

SEARCHES = {  # whose rounding is CROWN's
    f"alpha-crown {slopes}": partial(alpha_crown_margins, search=Search(slopes, iterations=3))
    for slopes in ("output", "all")
}
LINF, L2 = (1 / 256, 1 / 16, 1 / 2), (1 / 64, 1 / 4, 2.0)


def concrete(kind):
    """All classes of operations of the package that can be made."""
    for child in kind.__subclasses__():
        if child.__module__.startswith("hydrabench.") and not child.__abstractmethods__:
            yield child
        yield from concrete(child)


@torch.no_grad()
def network_of(middle, seed):
    """A float32 network in eval mode around a layer, images of which some pixels are 0 or 1, and labels."""
    rng = torch.Generator().manual_seed(seed)
    layer = middle().eval()
    x = (1.4 * torch.rand(2, *SHAPE, generator=rng) - 0.2).clamp(0, 1)
    first = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
    features = layer(first(x)).flatten(1).shape[1]
    network = nn.Sequential(first, layer, nn.Flatten(), nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 3))
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng) / max(1, parameter[0].numel()) ** 0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var.uniform_(0.2, 2, generator=rng)
            module.running_mean.normal_(generator=rng)
    return network.eval().requires_grad_(False), x, network(x).argmax(1), rng


def check(middle, seed):
    """Every method, ball and rigor; returns how many margins are proved."""
    network, x, y, rng = network_of(middle, seed)
    wide, exact, proved = copy.deepcopy(network).double(), x.double(), 0
    ready, ready_narrow = prepared(wide), prepared(network)  # reading a network takes longer than bounding it
    clean = margins(wide, exact, y)
    size = 1 + float(wide(exact).abs().max())
    for norm, radii in (("linf", LINF), ("l2", L2)):
        epsilon = radii[seed % 3]
        reach = attacked(wide, exact, y, epsilon, norm, rng) + 1e-12 * size
        for kind, bound in (*BOUNDS.items(), [*SEARCHES.items()][seed % 2]):
            what = f"{kind} {norm} {epsilon}"
            lower = bound(ready if seed % 2 else wide, exact, y, epsilon, norm=norm)
            assert (lower <= reach).all(), what
            assert ((bound(ready, exact, y, 0.0, norm=norm) - clean).abs() <= 1e-6 * size).all(), what
            narrow = bound(ready_narrow, x, y, epsilon, norm=norm)
            rounding = rounding_bound(ready_narrow, x, y, epsilon, kind="crown" if kind in SEARCHES else kind)
            assert (narrow - rounding <= reach).all(), what
            proved += int((lower > 0).sum())
    epsilon = LINF[seed % 3]
    reach = attacked(wide, exact, y, epsilon, "linf", rng) + 1e-12 * size
    for kind in STOPS:
        lower = sound_margins(ready_narrow, x, y, Fraction(epsilon), kind=kind)
        near = BOUNDS[kind](ready, exact, y, epsilon)
        assert (lower <= reach).all(), f"sound {kind}"
        assert ((lower - near).abs() <= 1e-6 * size).all(), f"sound {kind}"
        deployed = deployed_margins(ready_narrow, x, y, Fraction(epsilon), kind=kind)
        assert (deployed <= lower).all(), f"deployed {kind}"
        assert (deployed <= margins(network, x, y).double()).all(), f"deployed {kind}"
    check_boxes_and_gradients(wide, exact, y, epsilon, rng)
    return proved


def check_boxes_and_gradients(network, x, y, epsilon, rng):
    """Outputs of points lie inside the bounds; bounds to train with are the same, and so are their slopes."""
    ends = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    lower, upper = interval_bounds(network, *ends)
    for point in (ends[0], ends[1], torch.lerp(*ends, torch.rand(x.shape, generator=rng, dtype=x.dtype))):
        assert (lower - 1e-9 <= network(point)).all()
        assert (network(point) <= upper + 1e-9).all()
    parameters = [*network.parameters()]
    steps = [torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype) for tensor in parameters]

    def found():
        return [class_margins(network, x, y, epsilon, beta=0.5), symbolic_class_margins(network, x, y, epsilon)]

    plain, moved = found(), []
    network.requires_grad_(True)
    trained = found()
    torch.testing.assert_close(trained, plain, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(margin.sum(), parameters, allow_unused=True) for margin in trained]
    network.requires_grad_(False)
    for size in (1e-6, -2e-6, 1e-6):
        for tensor, step in zip(parameters, steps, strict=True):
            tensor.add_(step, alpha=size)
        moved.append(found())
    for number, gradient in enumerate(gradients):
        slope = sum(float((part * step).sum()) for part, step in zip(gradient, steps, strict=True) if part is not None)
        expected = float((moved[0][number] - moved[1][number]).sum()) / 2e-6
        assert slope == pytest.approx(expected, rel=1e-3, abs=1e-3)


def every_example():
    return [
        pytest.param(kind, middle, id=f"{kind.__name__}-{number}")
        for kind, middles in EXAMPLES.items()
        for number, middle in enumerate(middles)
    ]


@pytest.mark.parametrize(("kind", "middle"), every_example())
def test_no_attack_finds_a_margin_below_a_bound(kind, middle):
    network, _, _, _ = network_of(middle, 0)
    assert kind in {type(node.operation) for node in read(program_of(network), fold=False)}
    assert sum(check(middle, seed) for seed in range(2)) > 0


def without_example(classes):
    return sorted(kind.__name__ for kind in classes if kind not in EXAMPLES)


def test_every_class_of_operations_has_an_example():
    assert without_example({*concrete(Operation)}) == []


def test_every_layer_and_call_that_is_known_is_in_an_example(monkeypatch):
    used = set()

    def spied(name, read):
        return lambda *given: used.add(name) or read(*given)

    tables = (convert.LAYERS, calls.FUNCTIONS, calls.TENSOR_METHODS)
    for table in tables:
        for name, reader in [*table.items()]:
            monkeypatch.setitem(table, name, spied(name, reader))
    for middles in EXAMPLES.values():
        for middle in middles:
            network, x, _, _ = network_of(middle, 0)
            nodes, values = read(program_of(network)), [x]
            for node in nodes:
                values.append(node.operation.apply(*(values[number] for number in node.inputs)))
            torch.testing.assert_close(values[-1], network(x), rtol=1e-4, atol=1e-5)
    known = {name for table in tables for name in table}
    assert {getattr(name, "__name__", name) for name in known - used} == set()


@dataclass(frozen=True, eq=False)
class Leaky(Relu):
    """x, or 0.9 x below 0: all that it does not say for itself it inherits, as from an `else` that means a ReLU."""

    def apply(self, x):
        return torch.where(x > 0, x, 0.9 * x)

    def box(self, lower, upper):
        return self.apply(lower), self.apply(upper)

    def interval(self, box, *, spent=False):
        return Elementwise.interval(self, box)


def leaky_neuron():
    """Logits (leaky(x - 1/2), 0) of a pixel x."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 2)
    first.weight.data, first.bias.data = torch.ones(1, 1), torch.tensor([-0.5])
    last.weight.data, last.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    return nn.Sequential(nn.Flatten(), first, nn.LeakyReLU(0.9), last).eval().requires_grad_(False)


def fails(middle, seed):
    try:
        check(middle, seed)
    except AssertionError:
        return True
    return False


def test_the_lines_of_another_operation_are_caught_in_the_smallest_case(monkeypatch):
    """x in [0.2, 0.8]: the true minimum is 0.9 · -0.3 = -0.27; with the lines of a ReLU `symbolic` said -0.15."""
    monkeypatch.setitem(convert.LAYERS, nn.LeakyReLU, lambda _layer: Leaky())
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    assert BOUNDS["ibp"](leaky_neuron(), x, y, 0.3).item() == pytest.approx(-0.27)
    assert BOUNDS["symbolic"](leaky_neuron(), x, y, 0.3).item() == pytest.approx(-0.15)
    assert all(fails(lambda: nn.LeakyReLU(0.9), seed) for seed in (1, 2))


def test_an_operation_without_an_example_or_without_a_rule_is_noticed():
    assert without_example({*concrete(Operation), Leaky}) == ["Leaky"]
    half = type("Half", (Elementwise,), {"apply": lambda self, x: x / 2})
    with pytest.raises(TypeError, match="abstract method"):
        half()
