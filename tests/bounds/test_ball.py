from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS
from hydrabench.bounds.ball import Ball, squared_rows
from hydrabench.bounds.program.program import program_of, read

seeds = st.integers(0, 10_000)
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)


def two_pixels(weight):
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([weight, [0.0, 0.0]])
    return nn.Sequential(nn.Flatten(), layer)


@every_bound
def test_a_linear_margin_over_an_l2_ball_worked_by_hand(bound):
    """Margin 3a + 4b at (0.5, 0.5): 3.5 - 5 · 0.1 = 3; over the L-infinity ball it would be 3.5 - 0.7."""
    found = bound(two_pixels([3.0, 4.0]), torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]), 0.1, norm="l2")
    assert found.item() == pytest.approx(3.0)


@every_bound
def test_an_l2_ball_beyond_the_pixel_range_is_cut(bound):
    """Margin 3a + 4b at (0.5, 0.5), radius 2: no pixel falls below 0, so no margin below 0 (or 3.5 - 10)."""
    found = bound(two_pixels([3.0, 4.0]), torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]), 2.0, norm="l2")
    assert found.item() == pytest.approx(0.0, abs=1e-6)


@every_bound
@pytest.mark.parametrize("problem", ["tiny_problem", "tiny_dag"])
@settings(max_examples=20)
@given(seed=seeds, epsilon=st.floats(0, 1))
def test_no_point_of_an_l2_ball_has_a_smaller_margin_than_the_bound(request, problem, bound, seed, epsilon):
    network, x, y, rng = request.getfixturevalue(problem)(seed)
    lower = bound(network, x, y, epsilon, norm="l2")
    for share in (0, 0.5, 1, 1, 1, 1):
        step = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        step *= share * epsilon / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        logits = network((x + step).clamp(0, 1))
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values
        assert (lower <= logits.gather(1, y.unsqueeze(1)).squeeze(1) - others + 1e-9).all()


@every_bound
@settings(max_examples=20)
@given(seed=seeds, epsilon=st.floats(0, 0.3))
def test_an_l2_verdict_ignores_its_batch_and_intervals_gain_over_the_linf_ball(tiny_problem, bound, seed, epsilon):
    network, x, y, _ = tiny_problem(seed)
    if bound is BOUNDS["ibp"]:
        assert (bound(network, x, y, epsilon, norm="l2") >= bound(network, x, y, epsilon) - 1e-9).all()
    torch.testing.assert_close(
        bound(network, x, y, epsilon, norm="l2"),
        torch.cat([bound(network, x[i : i + 1], y[i : i + 1], epsilon, norm="l2") for i in range(3)]),
    )


@pytest.mark.parametrize("seed", range(12))
def test_norms_of_first_values_are_those_of_the_rows_of_the_jacobian(tiny_problem, seed):
    network, x, _, _ = tiny_problem(seed)
    nodes = read(program_of(network))
    for number, squares in squared_rows(nodes, x).items():

        def value(image, number=number):
            values = [image]
            for node in nodes[:number]:
                values.append(node.operation.apply(*(values[source] for source in node.inputs)))
            return values[number].flatten()

        jacobian = torch.autograd.functional.jacobian(value, x[:1]).flatten(1)
        torch.testing.assert_close(squares.flatten(), jacobian.square().sum(1))
    assert number > 0


def test_nan_stays_nan_over_an_l2_ball(tiny_problem):
    network, x, y, _ = tiny_problem(0)
    x[1, 0, 2, 2] = torch.nan
    for name, bound in BOUNDS.items():
        assert bound(network, x, y, 0.1, norm="l2").isnan().tolist() == [False, True, False], name


def test_the_box_around_a_ball_is_cut_to_the_pixel_range():
    ball = Ball(torch.tensor([[0.1, 0.5]]), 0.25, "l2")
    torch.testing.assert_close(ball.box.lower(), torch.tensor([[0.0, 0.25]]))
    torch.testing.assert_close(ball.around.upper(), torch.tensor([[0.35, 0.75]]))
