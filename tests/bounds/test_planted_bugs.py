"""Would the tests notice? Bugs as verifiers have had them, planted one at a time, and the checks that must fail.

`pytest -s` prints which checks caught which bug. Where such bugs were found: reference/field.md, section 5.2;
reference/hydra.md, section 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hydrabench.bounds import (
    BOUNDS,
    ball,
    crown,
    ibp,
    lirpa_margins,
    patches,
    prepared,
    require_auto_lirpa,
    specification,
    symbolic,
)
from hydrabench.bounds.program import convert, program, relu
from hydrabench.bounds.program.convolutions import Convolution
from hydrabench.bounds.program.linear import Add, Dense, Scale
from hydrabench.bounds.program.pooling import AveragePool, MaxPool
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.program.structure import Identity
from hydrabench.masking import attach_masks, bake_masks, set_phase
from hydrabench.models.normalize import Normalize

cascade_module = import_module("hydrabench.bounds.cascade")  # the package exports a function of that name
LIRPA = {"ibp", "crown-ibp", "crown"} if find_spec("auto_LiRPA") else set()


@pytest.fixture(scope="module", autouse=True)
def agreed():
    """auto_LiRPA is compared with our bounds once in a process: before anything is planted."""
    if LIRPA:
        require_auto_lirpa()


BACKWARD = ("symbolic", "crown-ibp", "crown", "cascade")


class Everything(nn.Module):
    """Normalisation and batch norm in front of padding, a shortcut, both kinds of pooling, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(Normalize([0.4, 0.6], [0.2, 0.3]), nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.branch = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
        self.end = nn.Sequential(
            nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)
        )

    def forward(self, x):
        x = self.start(x)
        return self.end(x + self.branch(x))


def subject(*, masked=False):
    rng = torch.Generator().manual_seed(3)
    network = Everything().double()
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            fan = max(1, parameter[0].numel())
            parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / fan**0.5
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1, generator=rng), module.running_var.uniform_(0.3, 2, generator=rng)
    if masked:
        attach_masks(network, density=0.5)
        set_phase(network, "finetune")
    network.eval().requires_grad_(False)
    x = torch.rand(4, 2, 6, 6, generator=rng, dtype=torch.float64)
    return network, x, network(x).argmax(1), rng


def true_margins(network, x, y):
    logits = network(x)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


# Checks ----------------------------------------------------------------------------------------


def epsilon_zero(name):
    network, x, y, _ = subject()
    torch.testing.assert_close(BOUNDS[name](network, x, y, 0.0), true_margins(network, x, y), rtol=1e-6, atol=1e-6)


def sampling(name):
    network, x, y, rng = subject()
    for epsilon in (0.01, 0.05):
        lower = BOUNDS[name](network, x, y, epsilon)
        for _ in range(20):
            step = (2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1).sign()
            assert (lower <= true_margins(network, (x + epsilon * step).clamp(0, 1), y) + 1e-9).all()


def exact_enumeration(name):
    """Logits (|z|, 0) of z = p - 1/2 for a pixel p in [0, 1]: margins from 0 on, and no bound may say more."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2, bias=False)
    first.weight.data, first.bias.data = torch.tensor([[1.0], [-1.0]]), torch.tensor([-0.5, 0.5])
    last.weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    network, label = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval(), torch.tensor([0])
    for pixel, epsilon, smallest in ((0.5, 0.5, 0.0), (0.75, 0.125, 0.125), (0.25, 0.125, 0.125), (0.625, 0.25, 0.0)):
        assert BOUNDS[name](network, torch.full((1, 1, 1, 1), pixel), label, epsilon) <= smallest + 1e-6


def masks(name):
    network, x, y, _ = subject(masked=True)
    found = BOUNDS[name](network, x, y, 0.02)
    torch.testing.assert_close(BOUNDS[name](network, x, y, 0.0), true_margins(network, x, y), rtol=1e-6, atol=1e-6)
    bake_masks(network)
    torch.testing.assert_close(found, BOUNDS[name](network, x, y, 0.02))


def pixel_box(name):
    """Logits (x, 0): the margin of label 0 is the lower corner, clipped to 0 and not to the batch's smallest pixel."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0], [0.0]])
    x = torch.tensor([0.2, 0.9]).view(-1, 1, 1, 1)
    found = BOUNDS[name](nn.Sequential(nn.Flatten(), layer), x, torch.tensor([0, 0]), 0.5)
    assert found.tolist() == pytest.approx([0.0, 0.4])


def batch_independence(name):
    network, x, y, _ = subject()
    alone = torch.cat([BOUNDS[name](network, x[i : i + 1], y[i : i + 1], 0.3) for i in range(len(x))])
    torch.testing.assert_close(BOUNDS[name](network, x, y, 0.3), alone, rtol=1e-9, atol=1e-9)


def not_a_number(name):
    network, x, y, _ = subject()
    x[1, 0, 2, 2] = torch.nan
    assert BOUNDS[name](network, x, y, 0.01).isnan().tolist() == [False, True, False, False]


def float64_agreement(name):
    network, x, y, _ = subject()
    wide = BOUNDS[name](network, x, y, 0.02)
    torch.testing.assert_close(BOUNDS[name](network.float(), x.float(), y, 0.02).double(), wide, rtol=1e-4, atol=1e-4)


def merged_margins(name):
    """Logits (x, x + 1): the margin of label 1 is 1 on every ball; bounded apart it would be 1 - 1."""
    layer = nn.Linear(1, 2)
    layer.weight.data, layer.bias.data = torch.ones(2, 1), torch.tensor([0.0, 1.0])
    found = BOUNDS[name](nn.Sequential(nn.Flatten(), layer), torch.full((1, 1, 1, 1), 0.5), torch.tensor([1]), 0.5)
    assert found.item() == pytest.approx(1.0)


def pruned_channels(name):
    """Weights of two channels are all pruned; of their biases one is cut off by a ReLU, and the other is read."""
    network, x, y, _ = subject()
    convolution = network.branch[2]
    convolution.weight[:2], convolution.bias[:2] = 0, torch.tensor([-1.0, 2.0])
    network = nn.Sequential(network.start, *network.branch, nn.ReLU(), nn.Flatten(), nn.Linear(108, 4).double()).eval()
    found = BOUNDS[name](prepared(network), x, y, 0.0)
    torch.testing.assert_close(found, true_margins(network, x, y), rtol=1e-6, atol=1e-6)


def auto_lirpa(name):
    if name in LIRPA:
        network, x, y, _ = subject()
        network = nn.Sequential(network.start, network.branch, nn.Flatten(), nn.Linear(108, 4).double()).eval()
        theirs = lirpa_margins(network, x, y, 0.02, method=name)
        torch.testing.assert_close(BOUNDS[name](network, x, y, 0.02), theirs, rtol=1e-3, atol=1e-3)


CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        epsilon_zero,
        sampling,
        exact_enumeration,
        masks,
        pixel_box,
        batch_independence,
        not_a_number,
        float64_agreement,
        merged_margins,
        pruned_channels,
        auto_lirpa,
    )
}


def failures(name):
    """The names of the checks that fail, each as soon as it is known."""
    for title, check in CHECKS.items():
        try:
            check(name)
        except AssertionError:
            yield title


# Bugs ------------------------------------------------------------------------------------------


def skipped_batch_norm(patch):
    def scale(layer, mean, var):
        return Scale(torch.ones_like(mean), torch.zeros_like(mean))

    patch.setattr(convert, "_affine", scale)


def box_clipped_to_the_batch(patch):
    patch.setattr(ball, "linf_box", lambda x, e: ((x - e).clamp(x.min(), x.max()), (x + e).clamp(x.min(), x.max())))


def dropped_bias(patch):
    patch.setitem(convert.LAYERS, nn.Linear, lambda layer: Dense(layer.weight, None))


def too_small_a_slope(patch):
    """The line above a ReLU, with which full CROWN, CROWN-IBP and the strips of symbolic intervals are drawn."""

    def relaxation(lower, upper):
        below, slope, offset = right(lower, upper)
        return below, slope / 2, offset

    right = relu.relaxation
    patch.setattr(relu, "relaxation", relaxation)


def nan_counted_as_verified(patch):
    for module in (ibp, crown, symbolic, cascade_module):
        solve = module.solved
        patch.setattr(module, "solved", lambda *given, solve=solve, **more: solve(*given, **more).nan_to_num(nan=1.0))


def unmasked_weights(patch):
    def dense(layer):
        masked = parametrize.is_parametrized(layer)
        return Dense(layer.parametrizations.weight.original if masked else layer.weight, layer.bias)

    patch.setitem(convert.LAYERS, nn.Linear, dense)


def rounded_as_in_tf32(patch):
    """Weights with 10 bits behind the point."""

    def dense(layer):
        fraction, exponent = torch.frexp(layer.weight)
        return Dense(torch.ldexp((fraction * 2**11).round() / 2**11, exponent), layer.bias)

    patch.setitem(convert.LAYERS, nn.Linear, dense)


def shortcut_dropped(patch):
    patch.setattr(Add, "apply", lambda _self, a, _b: a)
    patch.setattr(Add, "back", lambda _self, rows, _shapes: (rows * 0.5, rows * 0.5))
    patch.setattr(
        Add, "back_patches", lambda _self, rows, *_: ((replace(rows, coefficients=rows.coefficients / 2),) * 2, None)
    )


def sums_instead_of_means(patch):
    apply, back = AveragePool.apply, AveragePool.back
    patch.setattr(AveragePool, "apply", lambda self, x: apply(self, x) * self.kernel[0] ** 2)
    patch.setattr(AveragePool, "back", lambda self, rows, shapes: back(self, rows * self.kernel[0] ** 2, shapes))


def too_low_a_line_above_a_maximum(patch):
    """Symbolic intervals have a strip along one value; without its height, along another one, it misses the maximum."""
    lines_of, rest, strongest = MaxPool.lines, MaxPool.rest_of_windows, MaxPool.strongest
    patch.setattr(MaxPool, "lines", lambda *given: replace(found := lines_of(*given), high=found.high - 1))
    patch.setattr(MaxPool, "rest_of_windows", lambda *given: rest(*given) - 100)
    patch.setattr(MaxPool, "strongest", lambda self, lower: strongest(self, -lower))


def margins_of_another_class(patch):
    rows = specification.specification
    patch.setattr(
        specification, "specification", lambda head, y, value: rows(head, (y + 1) % value_count(head, value), value)
    )


def value_count(head, value):
    return value.shape[-1] if head is None else len(head[0])


def batch_norm_folded_through_padding(patch):
    folded = program._folded

    def fold_more(steps, nodes):
        nodes = folded(steps, nodes)
        for number, node in enumerate(nodes):
            before = nodes[node.inputs[0] - 1] if node.inputs[0] else None
            if isinstance(node.operation, Convolution) and before and isinstance(before.operation, Scale):
                conv, scale = node.operation, before.operation
                bias = conv.weight.sum((2, 3)) @ scale.shift + (0 if conv.bias is None else conv.bias)
                conv = replace(conv, weight=conv.weight * scale.scale.view(1, -1, 1, 1), bias=bias)
                nodes[number] = replace(node, operation=conv)
                nodes[node.inputs[0] - 1] = replace(before, operation=Identity())
        return nodes

    patch.setattr(program, "_folded", fold_more)


def logits_bounded_apart(patch):
    patch.setattr(Dense, "matrix", None)


def boxes_written_over_that_others_read(patch):
    rectified = relu.rectified
    patch.setattr(relu, "rectified", lambda box, *, in_place: rectified(box, in_place=True))


def slopes_of_another_position(patch):
    blocks = patches.Window.blocks
    patch.setattr(patches.Window, "blocks", lambda self, value, image, spot: blocks(self, value, image, spot.flip(0)))


def constant_channels_taken_for_zero(patch):
    patch.setattr(Relu, "known_channels", lambda _self, value: value.new_zeros(value.shape))


@dataclass(frozen=True)
class Bug:
    """plant: puts it in. methods: whose arithmetic it touches, all of which must notice."""

    plant: Callable[[pytest.MonkeyPatch], None]
    methods: tuple[str, ...] = tuple(BOUNDS)


BUGS = [
    Bug(skipped_batch_norm),
    Bug(box_clipped_to_the_batch),
    Bug(dropped_bias),
    Bug(too_small_a_slope, BACKWARD),
    Bug(nan_counted_as_verified),
    Bug(unmasked_weights),
    Bug(rounded_as_in_tf32),
    Bug(shortcut_dropped),
    Bug(sums_instead_of_means),
    Bug(too_low_a_line_above_a_maximum, BACKWARD),
    Bug(margins_of_another_class),
    Bug(batch_norm_folded_through_padding),
    Bug(logits_bounded_apart, ("ibp",)),  # CROWN's rows undo it
    # A cascade takes the larger one of these bounds and those of intervals, which are right.
    Bug(boxes_written_over_that_others_read, ("crown-ibp",)),
    Bug(slopes_of_another_position, ("crown",)),
    Bug(constant_channels_taken_for_zero),
]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", BOUNDS)
def test_every_check_passes_where_there_is_no_bug(name, gradients):
    with torch.set_grad_enabled(gradients):
        assert list(failures(name)) == []


@pytest.mark.parametrize(
    ("bug", "name"),
    [pytest.param(bug, name, id=f"{bug.plant.__name__}-{name}") for bug in BUGS for name in bug.methods],
)
def test_a_planted_bug_is_caught(monkeypatch, bug, name):
    with monkeypatch.context() as patch:
        bug.plant(patch)
        caught = next(failures(name), None)
    assert caught, f"{bug.plant.__name__} in {name} passes all of {', '.join(CHECKS)}"
