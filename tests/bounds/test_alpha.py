"""alpha-CROWN: sound, never below CROWN, blind to the rest of the batch, and done when the time is up."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import ClassVar

import pytest
import torch
from torch import nn

from hydrabench.bounds import alpha, alpha_crown_margins, prepared
from hydrabench.bounds import crown_margins as crown_with_gradients
from hydrabench.bounds.alpha import Search
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.patches import CHUNK
from hydrabench.bounds.program.convert import LAYERS
from hydrabench.bounds.program.operations import Elementwise
from hydrabench.bounds.slopes import Slopes
from hydrabench.bounds.specification import pose
from hydrabench.masking import attach_masks
from tests.helpers.networks import randomise

SHORT = Search(iterations=20)
NORMS = pytest.mark.parametrize(("norm", "radius"), [("linf", 1.0), ("l2", 3.0)], ids=["linf", "l2"])
MODES = pytest.mark.parametrize("slopes", ["output", "all"])


def problem(seed, *, pooling=False, images=4, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    pool = [nn.MaxPool2d(2)] if pooling else []
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(*pool, nn.Flatten(), nn.Linear(36 if pooling else 144, 12), nn.ReLU(), nn.Linear(12, 4)),
    ).eval()
    randomise(network, rng)
    with torch.no_grad():
        network[1].running_var.uniform_(0.5, 2.0, generator=rng)
        x = torch.rand(images, 1, 6, 6, generator=rng)
        network[-1].bias -= network(x).mean(0)  # otherwise one class wins everywhere
    network, x = network.to(dtype), x.to(dtype)
    return network, x, network(x).argmax(1), rng


def planar(seed, width=4):
    """A network of two pixels, images and labels."""
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)]
    network = nn.Sequential(nn.Flatten(), *layers).double().eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
    x = 0.3 + 0.4 * torch.rand(3, 1, 1, 2, generator=rng, dtype=torch.float64)
    return network, x, network(x).argmax(1)


@torch.no_grad()
def crown_margins(*problem, **norm):
    return crown_with_gradients(*problem, **norm)


def margins(network, x, y):
    logits = network(x)
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others


def inside(x, point, epsilon, norm):
    """The point, moved into the ball around x."""
    step = point - x
    if norm == "l2":
        step = step * (epsilon / step.flatten(1).norm(dim=1).clamp(min=epsilon)).view(-1, 1, 1, 1)
    return (x + step.clamp(-epsilon, epsilon)).clamp(0, 1)


def grid_minimum(network, x, y, epsilon, norm, side=161):
    """The smallest margin on a grid of the ball around images of two pixels."""
    axis = torch.linspace(-epsilon, epsilon, side, dtype=x.dtype)
    steps = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    found = [
        margins(network, inside(image, image + steps, epsilon, norm), label.expand(len(steps))).min()
        for image, label in zip(x.split(1), y, strict=True)
    ]
    return torch.stack(found)


def attacked(network, x, y, epsilon, norm, rng, restarts=10, steps=15):
    """The smallest margins that gradients lead to, from random points of the ball."""
    smallest = margins(network, x, y).detach()
    for _ in range(restarts):
        point = inside(x, x + epsilon * (2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1), epsilon, norm)
        for _ in range(steps):
            point.requires_grad_()
            (slope,) = torch.autograd.grad(margins(network, point, y).sum(), point)
            ahead = (
                slope.sign()
                if norm == "linf"
                else slope / slope.flatten(1).norm(dim=1).clamp(min=1e-9).view(-1, 1, 1, 1)
            )
            point = inside(x, point.detach() - epsilon / 4 * ahead, epsilon, norm)
            smallest = smallest.minimum(margins(network, point, y).detach())
    return smallest


# One neuron ------------------------------------------------------------------------------------


def one_neuron(weight):
    """The margin of class 0 is weight · relu(x1 - x2) - (x1 - x2) / 2."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, -1.0], [0.5, 0.0], [0.0, 0.5]]))
        network[3].weight.copy_(torch.tensor([[weight, 0.0, 0.0], [0.0, 1.0, -1.0]]))
    return network


def test_the_slope_of_one_neuron_worked_by_hand():
    """z = x1 - x2, x = (0.6, 0.5), epsilon 0.2: z lies in [-0.3, 0.5].

    The margin relu(z) - z / 2 is at least (a - 1/2) z for a slope a in [0, 1]. CROWN takes a = 1, because 0.5 > 0.3:
    z / 2 >= -0.15. The best slope is a = 1/2: 0, which is the true minimum.
    """
    x, y = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([0])
    assert crown_margins(one_neuron(1.0), x, y, 0.2).item() == pytest.approx(-0.15, abs=1e-6)
    for slopes in ("output", "all"):
        found = alpha_crown_margins(one_neuron(1.0), x, y, 0.2, search=Search(slopes)).item()
        assert -1e-3 < found <= 1e-6


@pytest.mark.parametrize("weight", [0.3, 0.6, 1.0, 2.0, -1.0])
@NORMS
def test_the_slope_of_one_neuron_is_the_best_one_of_a_grid(norm, radius, weight):
    """With slope a the margin is at least c · z + d, c = weight a - 1/2 below: its minimum over z is at an end.

    Over the L2 ball |x1 - x2 - 0.1| <= sqrt(2) epsilon; a negative weight takes the chord, and no slope matters.
    """
    x, y, epsilon = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([0]), 0.1 * radius
    reach = 2 * epsilon if norm == "linf" else 2**0.5 * epsilon
    low, high = 0.1 - reach, 0.1 + reach
    slope = torch.linspace(0, 1, 1001) if weight > 0 else torch.tensor([high / (high - low)])
    ends = [(weight * slope - 0.5) * end for end in (low, high)]
    constant = 0.0 if weight > 0 else -weight * low * high / (high - low)
    expected = (torch.minimum(*ends) + constant).max().item()
    found = alpha_crown_margins(one_neuron(weight), x, y, epsilon, norm=norm, search=Search(iterations=200)).item()
    assert found == pytest.approx(expected, abs=1e-3)


# Soundness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@MODES
@NORMS
def test_no_point_of_a_grid_lies_below_the_bound(norm, radius, slopes, seed):
    network, x, y = planar(seed)
    for epsilon in (0.05 * radius, 0.1 * radius):
        found = alpha_crown_margins(network, x, y, epsilon, norm=norm, search=Search(slopes, iterations=30))
        assert (found <= grid_minimum(network, x, y, epsilon, norm) + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pooling", [False, True])
@MODES
@NORMS
def test_alpha_crown_lies_between_crown_and_what_an_attack_reaches(norm, radius, slopes, pooling, dtype):
    network, x, y, rng = problem(1, pooling=pooling, dtype=dtype)
    epsilon = 0.1 * radius
    crown = crown_margins(network, x, y, epsilon, norm=norm)
    found = alpha_crown_margins(network, x, y, epsilon, norm=norm, search=Search(slopes, iterations=20))
    assert found.dtype == dtype
    assert not found.requires_grad
    assert (found >= crown).all()
    assert (found - crown).sum() > 0.003
    assert (found <= attacked(network, x, y, epsilon, norm, rng) + 1e-5).all()


@pytest.mark.parametrize(
    ("pooling", "norm", "radius"),
    [("avg", "linf", 1.0), ("max", "linf", 1.0), ("max", "l2", 3.0), ("global", "l2", 3.0)],
)
@MODES
def test_residual_and_pooling_networks_are_bounded_soundly(residual_network, norm, radius, slopes, pooling):
    """For labels that are wrong, so that no image is done before the search begins."""
    network, x, y, rng = residual_network(pooling)
    wrong, epsilon = (y + 1) % 4, 0.02 * radius
    crown = crown_margins(network, x, wrong, epsilon, norm=norm)
    found = alpha_crown_margins(network, x, wrong, epsilon, norm=norm, search=Search(slopes, iterations=5))
    assert (found >= crown).all()
    assert (found > crown + 1e-6).any()
    assert (found <= attacked(network, x, wrong, epsilon, norm, rng) + 1e-5).all()


@pytest.mark.parametrize("seed", range(24))
@NORMS
def test_every_operation_is_passed_soundly_and_no_bound_is_below_crowns(tiny_problem, tiny_dag, norm, radius, seed):
    for make in (tiny_problem, tiny_dag):
        network, x, y, rng = make(seed)
        epsilon = 0.05 * radius
        crown = crown_margins(network, x, y, epsilon, norm=norm)
        reached = attacked(network, x, y, epsilon, norm, rng, restarts=2, steps=5)
        for slopes in ("output", "all"):
            found = alpha_crown_margins(network, x, y, epsilon, norm=norm, search=Search(slopes, iterations=4))
            assert (found >= crown).all()
            assert (found <= reached + 1e-9).all()


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
    assert (found <= attacked(network, x, wrong, epsilon, norm, rng) + 1e-9).all()


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
        values = [inside(x, x + 9 * (step.sign() if norm == "linf" else step), epsilon, norm)]
        for node in asked.body:
            values.append(node.operation.apply(*(values[number] for number in node.inputs)))
        for number, box in climb.before.items():
            assert (box.lower() - 1e-9 <= values[number]).all()
            assert (values[number] <= box.upper() + 1e-9).all()


def test_slopes_of_neurons_help_those_of_the_output():
    network, x, y, _ = problem(1)
    output, every = (alpha_crown_margins(network, x, y, 0.1, search=Search(slopes, 20)) for slopes in ("output", "all"))
    assert (every >= output - 1e-5).all()
    assert (every - output).mean() > 0.002


# Batches, iterations, time ---------------------------------------------------------------------


@MODES
@NORMS
def test_a_verdict_ignores_the_rest_of_its_batch(norm, radius, slopes):
    """Among them an image that CROWN proves at once, and one whose neighbours leave other neurons unstable."""
    network, x, y, _ = problem(0, images=5)
    x[3] = 0.0
    y = network(x).argmax(1)
    search = Search(slopes, iterations=20)
    together = alpha_crown_margins(network, x, y, 0.04 * radius, norm=norm, search=search)
    alone = [alpha_crown_margins(network, *image, 0.04 * radius, norm=norm, search=search) for image in ones(x, y)]
    assert 0 < (together > 0).sum() < 5
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)


def ones(x, y):
    return zip(x.split(1), y.split(1), strict=True)


@MODES
def test_the_same_bounds_come_out_again(slopes):
    network, x, y, _ = problem(1)
    first = alpha_crown_margins(network, x, y, 0.1, search=Search(slopes, 10))
    torch.rand(3)
    assert torch.equal(first, alpha_crown_margins(network, x, y, 0.1, search=Search(slopes, 10)))


def test_a_prepared_network_has_the_same_bounds():
    network, x, y, _ = problem(1)
    network.requires_grad_(False)
    expected = alpha_crown_margins(network, x, y, 0.1, search=SHORT)
    torch.testing.assert_close(alpha_crown_margins(prepared(network), x, y, 0.1, search=SHORT), expected)


def test_more_iterations_never_lower_a_bound():
    network, x, y, _ = problem(1)
    found = [alpha_crown_margins(network, x, y, 0.2, search=Search(iterations=count)) for count in (1, 5, 30)]
    torch.testing.assert_close(found[0], crown_margins(network, x, y, 0.2), rtol=1e-5, atol=1e-6)
    for fewer, more in pairwise(found):
        assert (more >= fewer).all()
        assert (more > fewer).any()


def test_what_is_proved_is_optimised_no_further(monkeypatch):
    """Each iterate has the functions that are open, and none after the last one is proved.

    The radius is just beyond the largest one that CROWN proves image 1 for.
    """
    network, x, y, _ = problem(0, images=5)
    low, epsilon = 0.0, 0.05
    while epsilon - low > 1e-5:
        middle = (low + epsilon) / 2
        low, epsilon = (middle, epsilon) if crown_margins(network, x, y, middle)[1] > 0 else (low, middle)
    seen = []
    passed = Slopes.passed
    monkeypatch.setattr(Slopes, "passed", lambda mine, rows: seen.append(len(mine.chosen)) or passed(mine, rows))
    found = alpha_crown_margins(network, x, y, epsilon, search=SHORT)
    crown = crown_margins(network, x, y, epsilon)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] >= (found <= 0).sum()
    assert crown[1] <= 0 < found[1]
    assert found[1] < 1e-3  # the first bound that proves it, not the best one
    assert torch.equal(found[crown > 0], crown[crown > 0])
    seen.clear()
    assert (alpha_crown_margins(network, x, y, 0.0, search=SHORT) > 0).all()  # CROWN is exact there
    assert seen == []


def test_nan_is_not_hidden():
    network, x, y, _ = problem(1)
    x[2, 0, 3, 3] = torch.nan
    found = alpha_crown_margins(network, x, y, 0.1, search=SHORT)
    assert found.isnan().tolist() == [False, False, True, False]


def test_nan_in_any_iterate_is_not_hidden_by_the_best_one(monkeypatch):
    network, x, y, _ = problem(1)
    bounds = alpha._Climb._bounds
    monkeypatch.setattr(alpha._Climb, "_bounds", lambda *given: bounds(*given) * torch.nan)
    assert alpha_crown_margins(network, x, y, 0.3, search=SHORT).isnan().all()


@MODES
def test_a_time_limit_is_honoured_for_the_batch_and_keeps_what_was_found(slopes):
    """Far more iterations than the limit of 4 * 0.25 s allows; one of them takes about a hundredth of it."""
    network, x, y, _ = problem(1)
    crown = crown_margins(network, x, y, 0.2)
    started = perf_counter()
    found = alpha_crown_margins(network, x, y, 0.2, search=Search(slopes, iterations=10**6, time_limit=0.25))
    assert perf_counter() - started < 10
    assert (found >= crown).all()
    assert (found > crown + 1e-3).any()


@pytest.mark.parametrize("memory", [1, alpha.MEMORY], ids=["one by one", "together"])
def test_a_time_limit_starves_no_image(memory):
    """Each part has a clock of its own: the first takes nothing from the last. None of the four can be proved."""
    network, x, y, _ = problem(1)
    crown = crown_margins(network, x, y, 0.3)
    found = alpha_crown_margins(network, x, y, 0.3, search=Search(iterations=10**6, time_limit=0.5), memory=memory)
    assert (found < 0).all()
    assert (found > crown + 1e-3).all()


@MODES
def test_a_time_limit_that_is_over_at_once_leaves_crowns_bounds(slopes):
    network, x, y, _ = problem(1)
    found = alpha_crown_margins(network, x, y, 0.2, search=Search(slopes, time_limit=1e-9))
    assert torch.equal(found, crown_margins(network, x, y, 0.2))


# Networks --------------------------------------------------------------------------------------


def test_networks_without_unstable_neurons_are_as_crown_has_them():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])
    assert torch.equal(alpha_crown_margins(linear, x, y, 0.3, search=SHORT), crown_margins(linear, x, y, 0.3))
    wrong = torch.tensor([1, 0])
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    assert torch.equal(alpha_crown_margins(network, x, wrong, 0.0, search=SHORT), crown_margins(network, x, wrong, 0.0))


def test_no_images_have_no_bounds():
    network, x, y, _ = problem(1)
    assert alpha_crown_margins(network, x[:0], y[:0], 0.1, search=SHORT).shape == (0,)


@MODES
@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("unstable", [1, 15, 19, 20])
def test_any_number_of_neurons_may_be_unstable(unstable, convolution, slopes):
    """Of 20 neurons with z in [-1, 1] the first ones are unstable, the others shifted by 9."""
    rng = torch.Generator().manual_seed(0)
    first = [nn.Conv2d(4, 20, 1), nn.Flatten()] if convolution else [nn.Flatten(), nn.Linear(4, 20)]
    network = nn.Sequential(*first, nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / 4)
        weight, bias = network.get_parameter("0.weight" if convolution else "1.weight"), first[not convolution].bias
        weight.copy_(torch.eye(4).repeat(5, 1).view_as(weight) * 2)
        bias.copy_(torch.cat([-torch.ones(unstable), torch.full((20 - unstable,), 9.0)]))
    x = torch.full((2, 4, 1, 1), 0.5)
    wrong = (network(x).argmax(1) + 1) % 3
    found = alpha_crown_margins(network, x, wrong, 0.5, search=Search(slopes, iterations=5))
    assert (found > crown_margins(network, x, wrong, 0.5) + 1e-4).all()


def test_masked_networks_are_those_of_their_baked_selves_and_stay_masked():
    network, x, y, _ = problem(1)
    attach_masks(network, 0.3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    baked, *_ = problem(1)
    with torch.no_grad():
        for name, tensor in baked.named_parameters():
            if tensor.dim() > 1:
                tensor.copy_(network.get_submodule(name.removesuffix(".weight")).weight)
    expected = alpha_crown_margins(baked, x, y, 0.05, search=SHORT)
    assert torch.equal(alpha_crown_margins(network, x, y, 0.05, search=SHORT), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@MODES
def test_parts_that_fit_into_memory_give_the_same_bounds(slopes, monkeypatch):
    network, x, y, _ = problem(1)
    together = alpha_crown_margins(network, x, y, 0.2, search=Search(slopes, 5))
    monkeypatch.setitem(CHUNK, "cpu", 1)
    apart = alpha_crown_margins(network, x, y, 0.2, search=Search(slopes, 5), memory=1)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)


# Planted bugs ----------------------------------------------------------------------------------


def bounds_hold():
    for seed in range(4):
        network, x, y = planar(seed)
        found = alpha_crown_margins(network, x, y, 0.1, search=Search(iterations=30))
        assert (found <= grid_minimum(network, x, y, 0.1, "linf") + 1e-9).all()


def wrong_labels_are_not_proved():
    network, x, y, rng = problem(0)
    wrong = (y + 1) % 4
    found = alpha_crown_margins(network, x, wrong, 0.1, search=SHORT)
    assert (found <= attacked(network, x, wrong, 0.1, "linf", rng) + 1e-5).all()


CHECKS = (
    bounds_hold,
    wrong_labels_are_not_proved,
    test_the_slope_of_one_neuron_worked_by_hand,
    partial(test_a_verdict_ignores_the_rest_of_its_batch, "linf", 1.0, "output"),
)


def slopes_of_another_image(patch):
    of_each = Slopes.passed

    def passed(mine, rows):
        return of_each(changed(mine, chosen=mine.chosen.roll(1, 0)), rows)

    patch.setattr(Slopes, "passed", passed)


def changed(slopes, **values):
    found = copy.copy(slopes)
    for name, value in values.items():
        setattr(found, name, value)
    return found


def lines_of_another_image(patch):
    start = Slopes.of.__func__

    def of(cls, operation, rows, box):
        return start(cls, operation, rows, box.images(torch.arange(len(box.center)).roll(1)))

    patch.setattr(Slopes, "of", classmethod(of))


def slopes_that_are_not_clamped(patch):
    def climb(mine, gradient, rate, _step):
        mine.chosen = (mine.chosen + rate * gradient.sign()).detach().requires_grad_()

    patch.setattr(Slopes, "climb", climb)


def slopes_that_go_down(patch):
    climb = Slopes.climb
    patch.setattr(Slopes, "climb", lambda mine, gradient, *more: climb(mine, -gradient, *more))


def slopes_clamped_in_the_pass(patch):
    passed = Slopes.passed
    patch.setattr(Slopes, "passed", lambda mine, rows: passed(changed(mine, chosen=mine.chosen.clamp(0, 1)), rows))


def lines_swapped(patch):
    passed = Slopes.passed

    def swapped(mine, rows):
        chord = (mine.chosen * 0 + mine.above.unsqueeze(1)), mine.chosen[:, 0].detach()
        return passed(changed(mine, chosen=chord[0], above=chord[1]), rows)

    patch.setattr(Slopes, "passed", swapped)


def no_constant(patch):
    passed = Slopes.passed
    patch.setattr(Slopes, "passed", lambda mine, rows: passed(changed(mine, high=0 * mine.high), rows))


BUGS = (
    slopes_of_another_image,
    lines_of_another_image,
    slopes_that_are_not_clamped,
    slopes_that_go_down,
    slopes_clamped_in_the_pass,
    lines_swapped,
    no_constant,
)


def caught():
    found = []
    for number, check in enumerate(CHECKS):
        try:
            check()
        except AssertionError:
            found.append(number)
    return found


def test_without_a_bug_no_check_fails():
    assert caught() == []


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant, monkeypatch):
    plant(monkeypatch)
    assert caught()
