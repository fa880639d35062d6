"""What `hb.load` returns works in other libraries as it is; each test runs where its library is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hydrabench as hb
from hydrabench.bounds.lirpa.library import auto_lirpa, calling
from hydrabench.data import load_images

EPSILON = 16 / 255
N = 20


@pytest.fixture(scope="module")
def network():
    return hb.load("digits-trades-95")


@pytest.fixture(scope="module")
def digits():
    """The first test images of the digits: (N, 1, 8, 8) in [0, 1] and their labels."""
    images = load_images("digits", "test")
    return images.images[:N] / 255, images.labels[:N]


def test_foolbox_attacks_it(network, digits):
    """An image that is verified withstands foolbox's PGD, too; an image that our attack breaks may withstand that."""
    foolbox = pytest.importorskip("foolbox")
    wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    x, y = digits
    broken = foolbox.attacks.LinfPGD(steps=20)(wrapped, x, y, epsilons=EPSILON)[2]
    verified = torch.tensor(hb.certify(network, digits, method="crown", epsilon=EPSILON).records["verified"].to_numpy())
    assert foolbox.accuracy(wrapped, x, y) == (network(x).argmax(1) == y).double().mean()
    assert verified.sum() > N / 2
    assert not (broken & verified).any()


def test_robustbench_runs_its_benchmark_on_it(network, digits, monkeypatch, tmp_path):
    """Its clean accuracy is ours, and its AutoAttack breaks no image that is verified; it is given the digits."""
    evaluation = pytest.importorskip("robustbench.eval", reason="robustbench, with AutoAttack from its authors")
    monkeypatch.setattr(evaluation, "load_clean_dataset", lambda *_: digits)
    clean, robust = evaluation.benchmark(network, n_examples=N, dataset="cifar10", threat_model="Linf", eps=EPSILON)
    certified = hb.certify(network, digits, method="crown", epsilon=EPSILON)
    assert clean == pytest.approx(certified["clean_accuracy"])
    assert certified["verified_accuracy"] <= robust + 1e-9
    assert robust <= clean


def test_auto_lirpa_bounds_it(network, digits):
    """Its interval bounds are ours, up to rounding: those of the logits in the ball, clipped to [0, 1].

    Its release 0.3 runs on this torch only behind our shims, which touch no network.
    """
    try:
        library = auto_lirpa()
    except hb.HydrabenchError as error:
        pytest.skip(str(error))
    x, _ = digits
    low, high = (x - EPSILON).clamp(0, 1), (x + EPSILON).clamp(0, 1)
    with calling("cannot bound it"):
        bounded = library.BoundedModule(network, torch.zeros_like(x))
        ball = library.perturbations.PerturbationLpNorm(norm=np.inf, eps=EPSILON, x_L=low, x_U=high)
        found = bounded.compute_bounds(x=(library.BoundedTensor(x, ball),), method="IBP")
    for theirs, ours in zip(found, hb.bounds.interval_bounds(network, low, high), strict=True):
        assert torch.allclose(theirs, ours, atol=1e-4)
