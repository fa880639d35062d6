"""The search of alpha-CROWN: blind to the rest of the batch, never worse for more iterations, done when time is up."""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter

import pytest
import torch

from hydrabench.bounds import alpha, alpha_crown_margins, prepared
from hydrabench.bounds.alpha import Search
from hydrabench.bounds.slopes import Slopes
from tests.helpers.alpha_problems import MODES, NORMS, SHORT, crown_margins, problem


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
