from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS, cascade, interval_margins
from hydrabench.bounds.cascade import STEPS
from hydrabench.errors import ConfigError

seeds = st.integers(0, 10_000)


def linear(weight, bias):
    """A network of one linear layer on a row of pixels."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(weight[0]), len(weight))).double().eval()
    network[1].weight.data, network[1].bias.data = torch.tensor(weight).double(), torch.tensor(bias).double()
    return network


def row(*pixels):
    return torch.tensor([[[pixels]]], dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=40)
@given(seed=seeds, epsilon=st.floats(0, 0.1))
def test_a_cascade_proves_what_any_of_its_methods_proves(tiny_problem, norm, seed, epsilon):
    network, x, y, _ = tiny_problem(seed)
    proofs = cascade(network, x, y, epsilon, norm=norm)
    alone = {name: BOUNDS[name](network, x, y, epsilon, norm=norm) for name in ("ibp", "crown-ibp", "crown")}
    for image, method in enumerate(proofs.methods):
        first = next((name for name, lower in alone.items() if lower[image] > 0), None)
        # The best bound of each class may prove more than any one method, and not later than the first that does.
        assert (method is None) == (proofs.lower[image] <= 0)
        if first is not None:
            assert list(alone).index(method) <= list(alone).index(first)
        assert proofs.lower[image] >= alone["ibp"][image] - 1e-12


def test_methods_are_asked_for_open_margins_of_open_images_only(tiny_problem, monkeypatch):
    """Image 0 is misclassified, image 1 proved by the first method, image 2 lacks one class: that is what is asked."""
    network, x, y, _ = tiny_problem(0)
    asked = []

    def first(problem):
        return torch.tensor([[-1.0, 1, 1], [1, 2, 3], [1, -1, 2]], dtype=torch.float64)

    def second(problem):
        asked.append((problem.ball.x, problem.others))
        return torch.full_like(problem.offset, 0.5)

    monkeypatch.setitem(STEPS, "ibp", first)
    monkeypatch.setitem(STEPS, "crown-ibp", second)
    proofs = cascade(network, x, y, 0.01, methods=("ibp", "crown-ibp", "crown"))
    assert proofs.methods == (None, "ibp", "crown-ibp")
    assert proofs.lower.tolist() == [-1.0, 1.0, 0.5]
    ((images, others),) = asked
    assert torch.equal(images, x[2:])
    assert others.tolist() == [[1 + int(y[2] <= 1)]]


def test_a_class_that_is_proved_keeps_its_bound_whatever_other_images_have_open(monkeypatch):
    """Images with one and with two open margins: both are asked about two classes, and only open ones change."""
    monkeypatch.setitem(STEPS, "ibp", lambda p: torch.tensor([[-1.0, 1], [-1, -1]], dtype=torch.float64)[: len(p.y)])
    monkeypatch.setitem(STEPS, "crown", lambda problem: torch.full_like(problem.offset, 5.0))
    network, x, y = linear([[1], [0], [0]], [0, 0, 0]), torch.cat([row(0.75), row(0.75)]), torch.tensor([0, 0])
    together, alone = (cascade(network, x[:n], y[:n], 0.01, methods=("ibp", "crown")) for n in (2, 1))
    assert together.lower.tolist() == [1, 5]
    assert alone.lower.tolist() == [1]


@pytest.mark.parametrize("methods", [("crown",), ("crown", "ibp"), ("symbolic", "crown-ibp")])
def test_misclassified_images_are_bounded_by_intervals_whatever_comes_first(tiny_problem, monkeypatch, methods):
    """Of every seed image 0 is misclassified; the first method sees the other two with all three of their classes."""
    network, x, y, _ = tiny_problem(0)
    asked, step = [], STEPS[methods[0]]
    monkeypatch.setitem(STEPS, methods[0], lambda problem: asked.append(problem) or step(problem))
    proofs = cascade(network, x, y, 0.001, methods=methods)
    (problem,) = asked
    assert torch.equal(problem.ball.x, x[1:])
    assert [sorted(classes) for classes in problem.others.tolist()] == [sorted({0, 1, 2, 3} - {int(k)}) for k in y[1:]]
    assert proofs.methods == (None, methods[0], methods[0])
    assert proofs.refuted.tolist() == [True, False, False]
    assert proofs.lower[0] == interval_margins(network, x, y, 0.001)[0] < 0
    torch.testing.assert_close(proofs.lower[1:], BOUNDS[methods[0]](network, x, y, 0.001)[1:], rtol=1e-10, atol=1e-10)


def test_no_method_is_asked_about_an_image_that_one_step_breaks_worked_by_hand(monkeypatch):
    """Logits (a - b, 0), (a, b) = (0.75, 0.25): the margin 0.5 falls to 0.5 - 2 eps in L-infinity, 0.5 - sqrt(2) eps
    in L2. At 0.3 the first is -0.1, the second 0.076; at 0.4 that is -0.066, too. Intervals are told to prove nothing.
    """
    asked = []
    monkeypatch.setitem(STEPS, "ibp", lambda problem: torch.full_like(problem.offset, -9.0))
    monkeypatch.setitem(STEPS, "crown", lambda problem: asked.append(problem) or torch.ones_like(problem.offset))
    network, x, y = linear([[1, -1], [0, 0]], [0, 0]), row(0.75, 0.25), torch.tensor([0])
    for norm, epsilon, refuted in (("linf", 0.2, 0), ("linf", 0.3, 1), ("l2", 0.3, 0), ("l2", 0.4, 1)):
        proofs = cascade(network, x, y, epsilon, norm=norm, methods=("ibp", "crown"))
        assert proofs.refuted.tolist() == [bool(refuted)]
        assert proofs.methods == ((None,) if refuted else ("crown",))
        assert proofs.lower.item() == (-9 if refuted else 1)
    assert len(asked) == 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_stays_among_images(monkeypatch, norm):
    """Logits (x + 0.1, 0) of a pixel of 0.05: down to -0.45 + 0.1 at radius 0.5, but pixels end at 0."""
    monkeypatch.setitem(STEPS, "ibp", lambda problem: torch.full_like(problem.offset, -9.0))
    proofs = cascade(linear([[1], [0]], [0.1, 0]), row(0.05), torch.tensor([0]), 0.5, norm=norm)
    assert proofs.refuted.tolist() == [False]


def test_a_margin_that_rounding_may_have_made_negative_is_not_given_up(monkeypatch):
    """Logits (x - 0.5, 0, -1), pixel 0.75: a step of 0.25 + d leaves margins -d and 1 - d; the limit is near 1e-3."""
    monkeypatch.setitem(STEPS, "ibp", lambda problem: torch.full_like(problem.offset, -9.0))
    network = linear([[1], [0], [0]], [-0.5, 0, -1])
    for d, refuted in ((5e-4, False), (2e-3, True)):
        for pixel, epsilon in ((0.75, 0.25 + d), (0.5 - d, 0.0)):
            proofs = cascade(network, row(pixel), torch.tensor([0]), epsilon)
            assert proofs.refuted.tolist() == [refuted]


def test_a_step_in_l2_is_no_longer_than_the_radius_where_squares_underflow(monkeypatch):
    """Logits (1e-25 (a + b + c + d - 1), 0), pixels of 1/2: 0.8e-25 is left of the margin at radius 0.1."""
    monkeypatch.setitem(STEPS, "ibp", lambda problem: torch.full_like(problem.offset, -9.0))
    network = linear([[1e-25] * 4, [0.0] * 4], [-1e-25, 0]).float()
    for epsilon, refuted in ((0.1, False), (0.6, True)):
        proofs = cascade(network, row(*[0.5] * 4).float(), torch.tensor([0]), epsilon, norm="l2")
        assert proofs.refuted.tolist() == [refuted]


@pytest.mark.parametrize(("norm", "scale"), [("linf", 1), ("l2", 4)])
def test_refuted_images_are_proved_by_no_method_and_many_open_ones_are_refuted(tiny_problem, norm, scale):
    refuted = still_open = 0
    for seed in range(24):
        network, x, y, _ = tiny_problem(seed)
        for epsilon in (0.05 * scale, 0.2 * scale):
            proofs = cascade(network, x, y, epsilon, norm=norm)
            assert proofs.refuted[0] == (network(x).argmax(1) != y)[0]
            for method in STEPS:
                proved = BOUNDS[method](network, x, y, epsilon, norm=norm) > 0
                assert not (proved & proofs.refuted).any()
            refuted += int(proofs.refuted[1:].sum())
            still_open += sum(method is None for method in proofs.methods[1:])
    assert refuted > still_open / 4 > 5


def test_without_gradients_only_misclassified_images_are_refuted():
    """The margins a - b are 0.5, which one step breaks at 0.3, and -0.5."""
    network = linear([[1, -1], [0, 0]], [0, 0])
    x, y = torch.cat([row(0.75, 0.25), row(0.25, 0.75)]), torch.tensor([0, 0])
    with torch.inference_mode():
        assert cascade(network, x, y, 0.3).refuted.tolist() == [False, True]
    with torch.no_grad():
        assert cascade(network, x, y, 0.3).refuted.tolist() == [True, True]
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=30)
@given(seed=seeds, order=st.permutations(sorted(STEPS)), count=st.integers(1, 4), epsilon=st.floats(0, 0.1))
def test_any_order_proves_the_union_and_names_the_first_that_proves(tiny_problem, norm, seed, order, count, epsilon):
    """But for an image whose classes are proved by several methods and by none of them together."""
    network, x, y, _ = tiny_problem(seed)
    methods = order[:count]
    proofs = cascade(network, x, y, epsilon, norm=norm, methods=methods)
    alone = [BOUNDS[method](network, x, y, epsilon, norm=norm) for method in methods]
    for image, method in enumerate(proofs.methods):
        first = next((number for number, lower in enumerate(alone) if lower[image] > 0), None)
        assert (method is not None) == (proofs.lower[image] > 0)
        if first is not None:
            assert methods.index(method) <= first
        if methods[0] == method:
            assert first == 0


def test_nan_is_no_proof_and_ends_the_cascade(tiny_problem):
    network, x, y, _ = tiny_problem(0)
    x[1, 0, 0, 0] = torch.nan
    proofs = cascade(network, x, y, 0.001)
    assert proofs.lower.isnan().tolist() == [False, True, False]
    assert proofs.methods[1] is None


def test_bad_methods_are_refused(tiny_problem):
    network, x, y, _ = tiny_problem(0)
    with pytest.raises(ConfigError, match="unknown method 'crwon'; did you mean 'crown'"):
        cascade(network, x, y, 0.1, methods=("ibp", "crwon"))
    with pytest.raises(ValueError, match="at least one method"):
        cascade(network, x, y, 0.1, methods=())
