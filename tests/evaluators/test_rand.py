"""AutoAttack on randomised networks: a verdict is the image's own, whatever the network draws and from where."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from hydrabench.attacks import upstream
from hydrabench.attacks.randomised import Reseeded, repeats, vote_shares
from hydrabench.data.images import Block
from hydrabench.errors import HydrabenchError, NonFiniteError
from hydrabench.evaluators import AutoAttackSettings
from hydrabench.evaluators.autoattack import evaluate_autoattack


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Noisy(nn.Module):
    """A linear network behind Gaussian noise, dropout and a random scale for each image."""

    def __init__(self, weight, noise=0.05):
        super().__init__()
        self.weight, self.noise = nn.Parameter(weight), noise
        self.eval().requires_grad_(False)

    def forward(self, x):
        scale = 1 + self.noise * torch.rand(len(x), 1, 1, 1)
        x = nn.functional.dropout(scale * (x + self.noise * torch.randn_like(x)), self.noise)
        return x.flatten(1) @ self.weight.T


class NumpyNoisy(Noisy):
    """Its noise comes from numpy and Python, and its code asks for values, which cannot be vectorised."""

    def forward(self, x):
        shift = float(np.random.normal())  # noqa: NPY002
        if float(x.detach().sum()) < 0:
            raise ValueError("no images")
        return (x + self.noise * (shift + random.gauss(0, 1))).flatten(1) @ self.weight.T


class OwnGenerator(Noisy):
    """It draws from a generator that no seed of ours reaches."""

    def __init__(self, weight):
        super().__init__(weight)
        self.generator = rng()

    def forward(self, x):
        return (x + torch.randn(x.shape, generator=self.generator)).flatten(1) @ self.weight.T


def problem(kind=Noisy, **keys):
    weight = torch.randn(4, 36, generator=rng(5)) * 0.2
    images = torch.rand(10, 1, 6, 6, generator=rng(6)) * 0.4 + 0.3
    labels = (images.flatten(1) @ weight.T).argmax(1)
    indices = tuple(range(300, 310))
    return kind(weight, **keys), Block(3, indices, images, labels, tuple(f"sha{index}" for index in indices))


@pytest.fixture
def short(monkeypatch):
    """Five iterations and three averaged passes instead of 100 and 20."""

    class Shortened(AutoAttack):
        def __init__(self, *arguments, **names):
            super().__init__(*arguments, **names)
            assert (self.apgd.n_iter, self.apgd.eot_iter, self.apgd.n_restarts) == (100, 20, 1)
            self.apgd.n_iter, self.apgd.eot_iter = 5, 3

    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)


@pytest.mark.parametrize(("kind", "together"), [(Noisy, True), (NumpyNoisy, False)])
def test_a_pass_of_a_batch_is_that_of_each_image_alone(kind, together):
    network, block = problem(kind)
    passes = [Reseeded(network, 3) for _ in range(11)]
    for _ in range(3):  # each pass has draws of its own
        whole = passes[10](block.images)
        alone = torch.cat([passes[row](block.images[row : row + 1]) for row in range(10)])
        assert torch.allclose(whole, alone, atol=1e-5)
    assert passes[10].together == together
    assert not torch.allclose(whole, Reseeded(network, 3)(block.images))


@pytest.mark.parametrize("kind", [Noisy, NumpyNoisy])
def test_global_generators_are_left_as_found(kind):
    network, block = problem(kind)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    Reseeded(network, 3)(block.images)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


def test_gradients_of_a_pass_are_those_of_each_image_alone():
    network, block = problem()
    found = []
    for passes in (Reseeded(network, 3), Reseeded(network, 3)):
        points = block.images.clone().requires_grad_()
        passes.together = passes if not found else False
        found.append(torch.autograd.grad(passes(points).square().sum(), points)[0])
    assert torch.allclose(*found, atol=1e-5)


def test_vote_shares_are_frequencies_of_the_predicted_class():
    """The noise is larger than the margins, so that votes split; more passes than classes see several of them."""
    network, block = problem(noise=0.5)
    shares = vote_shares(network, block.images, seed=1, passes=20)
    assert torch.allclose(shares.sum(1), torch.ones(10))
    assert ((shares * 20).round() == shares * 20).all()
    assert shares.amax(1).min() < 1
    passes = Reseeded(network, 1)
    counted = sum(nn.functional.one_hot(passes(block.images).argmax(1), 4) for _ in range(20))
    assert torch.equal(counted / 20, shares)


@pytest.mark.parametrize("kind", [Noisy, NumpyNoisy])
def test_a_verdict_does_not_depend_on_the_images_beside_it(short, kind):
    network, block = problem(kind)
    settings = AutoAttackSettings(epsilon="0.02", ensemble="rand")

    def verdicts(rows):
        records = evaluate_autoattack(network, block.rows(rows), settings)
        return {record.index: (record.broken_by, record.margin) for record in records}

    whole = verdicts(range(10))
    assert {None, "apgd-ce"} <= {broken_by for broken_by, _ in whole.values()}
    torch.rand(7)
    for rows in ([7], [9, 3, 2], list(range(9, -1, -1))):
        assert verdicts(rows) == {block.indices[row]: whole[block.indices[row]] for row in rows}


def test_almost_without_noise_it_judges_by_the_closed_form():
    """Robust iff (w_y - w_j)·x > eps * ‖w_y - w_j‖_1 for every other j."""
    network, block = problem(noise=1e-4)
    weight, labels = network.weight, block.labels
    gaps = (weight[labels][:, None] - weight[None]).abs().sum(2).clamp_min(1e-12)
    scores = block.images.flatten(1) @ weight.T
    reach = ((scores.gather(1, labels[:, None]) - scores) / gaps).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = reach.sort().values[4:6].mean().item()
    records = evaluate_autoattack(network, block, AutoAttackSettings(epsilon=str(round(epsilon, 9)), ensemble="rand"))
    assert [record.robust for record in records] == (reach > epsilon).tolist()


def test_one_image_alone_is_attacked_as_upstream_attacks_it():
    network, block = problem()
    x, y = block.images[:1], block.labels[:1]
    attack = upstream.UpstreamAttack("apgd-ce", "rand", "linf", 0.02, 4, seed=7)
    found = upstream.attack_points(Reseeded(network, 11), x, y, attack)
    plain = AutoAttack(upstream.Padded(Reseeded(network, 11)), norm="Linf", eps=0.02, seed=7, version="rand")
    plain.apgd.loss = "ce"
    start = torch.rand(x.shape, generator=upstream.stream(7, "apgd-ce", version=2))
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        drawn = torch.rand
        patch.setattr(torch, "rand", lambda *shape: start if shape == (x.shape,) else drawn(*shape))
        expected = plain.apgd.perturb(x, y)
    assert torch.equal(found, expected)


def test_a_network_whose_draws_cannot_be_seeded_is_refused():
    network, block = problem(OwnGenerator)
    assert not repeats(network, block.images)
    with pytest.raises(HydrabenchError, match="let it draw from torch's global generator"):
        evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.02", ensemble="rand"))


def test_a_nan_in_a_verdict_is_an_error():
    network, block = problem()
    network.weight[0, 0] = torch.nan
    with pytest.raises((NonFiniteError, ValueError), match="NaN or infinite"):
        vote_shares(network, block.images, seed=0, passes=2)
