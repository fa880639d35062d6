"""alpha-CROWN by auto_LiRPA: sound, never below its CROWN, and no tighter than ours at equal iterations."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hydrabench.bounds import Search, alpha_crown_margins, lirpa, lirpa_alpha_margins, lirpa_margins
from hydrabench.bounds.lirpa import search
from hydrabench.errors import HydrabenchError
from tests.helpers import alpha_problems
from tests.helpers.alpha_problems import partly_unstable

SHORT = Search(iterations=20)
problem = partial(alpha_problems.problem, convolutions=1)

pytestmark = pytest.mark.usefixtures("auto_lirpa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pooling", [False, True])
@pytest.mark.parametrize("slopes", ["output", "all"])
def test_alpha_crown_lies_between_crown_and_what_sampled_points_reach(smallest_margin, slopes, pooling, dtype):
    network, x, y, rng = problem(1, pooling=pooling, dtype=dtype)
    crown = lirpa_margins(network, x, y, 0.1, method="crown")
    found = lirpa_alpha_margins(network, x, y, 0.1, search=Search(slopes, iterations=20))
    assert found.dtype == dtype
    assert not found.requires_grad
    assert (found >= crown - 1e-5).all()
    assert (found - crown).sum() > 0.003
    assert (found <= smallest_margin(network, x, y, 0.1, rng) + 1e-5).all()


@pytest.mark.parametrize("slopes", ["output", "all"])
@pytest.mark.parametrize("pooling", ["avg", "max", "global"])
def test_residual_and_pooling_networks_are_bounded_soundly(residual_network, smallest_margin, pooling, slopes):
    """For labels that are wrong, so that no image is done before the search begins."""
    network, x, y, rng = residual_network(pooling)
    wrong = (y + 1) % 4
    crown = lirpa_margins(network, x, wrong, 0.02, method="crown")
    found = lirpa_alpha_margins(network, x, wrong, 0.02, search=Search(slopes, iterations=3))
    assert (found >= crown - 1e-5).all()
    assert (found > crown + 1e-6).any()
    assert (found <= smallest_margin(network, x, wrong, 0.02, rng) + 1e-5).all()


@pytest.mark.parametrize("slopes", ["output", "all"])
def test_a_verdict_ignores_the_rest_of_its_batch(slopes):
    """Among them an image that CROWN proves at once, and one whose neighbours leave other neurons unstable."""
    network, x, y, _ = problem(0, images=5)
    x[3] = 0.0
    y = network(x).argmax(1)
    search = Search(slopes, iterations=20)
    together = lirpa_alpha_margins(network, x, y, 0.05, search=search)
    alone = torch.cat([lirpa_alpha_margins(network, x[[row]], y[[row]], 0.05, search=search) for row in range(5)])
    assert 0 < (together > 0).sum() < 5
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_a_proved_image_stays_as_it_is_while_others_go_on():
    """Image 0 has both margins positive after the second iterate, image 1 never; a later 9 is not taken for image 0."""
    best = search._Best(torch.tensor([[-1.0, 2.0], [-1.0, -1.0]]), None)
    assert best(torch.tensor([[1.0, -3.0], [-2.0, 0.5]])).tolist() == [[True], [False]]
    assert best(torch.tensor([[9.0, 9.0], [-0.5, -9.0]])).tolist() == [[True], [False]]
    assert best.lower.tolist() == [[1.0, 2.0], [-0.5, 0.5]]


def test_nan_in_any_iterate_is_not_hidden_by_the_best_one():
    best = search._Best(torch.tensor([[-1.0]]), None)
    best(torch.tensor([[torch.nan]]))
    best(torch.tensor([[5.0]]))
    assert best.lower.isnan().all()


def test_a_time_limit_that_is_over_at_once_leaves_crowns_bounds():
    network, x, y, _ = problem(1)
    crown = lirpa_margins(network, x, y, 0.2, method="crown")
    found = lirpa_alpha_margins(network, x, y, 0.2, search=Search(time_limit=1e-9))
    torch.testing.assert_close(found, crown, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slopes", ["output", "all"])
@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("unstable", [15, 17, 18, 19, 20])
def test_any_number_of_neurons_may_be_unstable(unstable, convolution, slopes):
    """18 of 20 are nine in ten."""
    network, x, wrong = partly_unstable(unstable, convolution=convolution)
    found = lirpa_alpha_margins(network, x, wrong, 0.5, search=Search(slopes, iterations=5))
    assert (found > lirpa_margins(network, x, wrong, 0.5, method="crown") + 1e-4).all()


def test_the_names_of_newer_releases_are_found_by_looking(auto_lirpa, monkeypatch):
    """The installed release with interm_bounds and fix_interm_bounds, as source releases call them: the same bounds."""
    older = "fix_intermediate_layer_bounds"
    network, x, y, _ = problem(1, images=2)
    expected = [lirpa_alpha_margins(network, x, y, 0.2, search=Search(slopes, 5)) for slopes in ("output", "all")]
    given = []

    class Newer(auto_lirpa.BoundedModule):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            known = self.bound_opts["optimize_bound_args"]
            known["fix_interm_bounds"] = known.pop(older, True)

        def compute_bounds(self, x=None, aux=None, C=None, interm_bounds=None, **others):
            known = self.bound_opts["optimize_bound_args"]
            if interm_bounds is not None:
                assert known["fix_interm_bounds"]
                given.append(sorted(interm_bounds))
                others["intermediate_layer_bounds"] = interm_bounds
            if others.get("method") == "CROWN-Optimized":
                known[older] = known["fix_interm_bounds"]
            return super().compute_bounds(x, aux, C, **others)

    if older not in lirpa.bounded_module(network, x).bound_opts["optimize_bound_args"]:
        pytest.skip("these are the names of the installed release")
    monkeypatch.setattr(auto_lirpa, "BoundedModule", Newer)
    found = [lirpa_alpha_margins(network, x, y, 0.2, search=Search(slopes, 5)) for slopes in ("output", "all")]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert [len(names) for names in given] == [2]  # of both activations, and only where they are kept


def test_options_under_other_names_are_refused(auto_lirpa, monkeypatch):
    bounded = lirpa.bounded_module(*problem(1, images=1)[:2])
    del bounded.bound_opts["optimize_bound_args"]["lr_decay"]
    with pytest.raises(HydrabenchError, match=r"auto_LiRPA \S+ has no options lr_decay; install"):
        search._options(bounded, SHORT, search._Best(torch.zeros(1, 1), None))


def test_images_that_do_not_fit_into_memory_together_are_searched_one_after_another(monkeypatch):
    """The largest layer of these networks has a few hundred neurons: 4 bytes · n² is far below the usual gigabyte."""
    network, x, y, _ = problem(1)
    together = lirpa_alpha_margins(network, x, y, 0.2, search=Search(iterations=5))
    asked = []
    searched = search._searched
    monkeypatch.setattr(
        search, "_searched", lambda bounded, ball, *rest: asked.append(len(ball)) or searched(bounded, ball, *rest)
    )
    monkeypatch.setattr(search, "LAYER_BYTES", 1)
    apart = lirpa_alpha_margins(network, x, y, 0.2, search=Search(iterations=5))
    assert asked == [1] * len(y)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slopes", ["output", "all"])
def test_ours_is_as_tight_at_equal_iterations(slopes):
    network, x, y, _ = problem(1)
    theirs = lirpa_alpha_margins(network, x, y, 0.1, search=Search(slopes, 20))
    ours = alpha_crown_margins(network, x, y, 0.1, search=Search(slopes, 20))
    assert (ours >= theirs - 1e-3).all()
    assert ours.mean() >= theirs.mean() - 1e-5
