from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.bounds import BOUNDS, cascade
from hydrabench.bounds.cascade import STEPS
from hydrabench.errors import ConfigError

seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(deadline=None, max_examples=40)
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
