"""Votes under noise: which noise, how many, and that nothing else matters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from torch import nn

from hydrabench.errors import NonFiniteError
from hydrabench.smoothing import CHUNK, class_counts


class Recorder(nn.Module):
    """Classifies by the mean pixel and keeps what it was shown."""

    def __init__(self, threshold=0.5):
        super().__init__()
        self.threshold = threshold
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.full_like(mean, self.threshold)], dim=1)

    def noise(self, image):
        return torch.cat(self.seen) - image


def grey(level=0.5, dtype=torch.float32):
    return torch.full((1, 4, 4), level, dtype=dtype)


@given(draws=st.integers(1, 3 * CHUNK))
@settings(max_examples=15)
def test_counts_add_up_to_the_draws(draws):
    counts = class_counts(Recorder(), grey(), sigma=0.5, draws=draws, key=(0, 7))
    assert counts.shape == (2,)
    assert counts.dtype == torch.int64
    assert counts.sum() == draws


def test_noise_is_gaussian_with_the_asked_deviation_and_is_not_clamped():
    network = Recorder()
    class_counts(network, grey(), sigma=0.25, draws=4 * CHUNK, key=(0, 1))
    noise = network.noise(grey()).flatten()
    assert kstest(noise.numpy(), "norm", args=(0, 0.25)).statistic < 1.95 / len(noise) ** 0.5
    assert noise.mean().abs() < 5 * 0.25 / len(noise) ** 0.5
    assert noise.std() == pytest.approx(0.25, rel=0.01)
    assert torch.cat(network.seen).min() < 0


def test_no_two_draws_see_the_same_noise():
    network = Recorder()
    class_counts(network, grey(), sigma=0.25, draws=3 * CHUNK, key=(0, 1))
    assert len(torch.unique(network.noise(grey()).flatten(1), dim=0)) == 3 * CHUNK


@pytest.mark.parametrize("draws", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_a_draw_depends_on_the_key_and_its_number_alone(draws):
    """The first draws of a long run are the draws of a short one."""
    long, short = Recorder(), Recorder()
    class_counts(long, grey(), sigma=0.25, draws=3 * CHUNK, key=(0, "estimate", 1))
    class_counts(short, grey(), sigma=0.25, draws=draws, key=(0, "estimate", 1))
    assert torch.equal(torch.cat(short.seen), torch.cat(long.seen)[:draws])


@pytest.mark.parametrize("other", [(1, "estimate", 1), (0, "select", 1), (0, "estimate", 2)], ids=str)
def test_other_keys_mean_other_noise(other):
    first, second = Recorder(), Recorder()
    class_counts(first, grey(), sigma=0.25, draws=20, key=(0, "estimate", 1))
    class_counts(second, grey(), sigma=0.25, draws=20, key=other)
    assert not (first.noise(grey()) == second.noise(grey())).any()


def test_counts_do_not_depend_on_what_was_counted_before():
    def count(index):
        return class_counts(Recorder(), grey(), sigma=0.5, draws=1500, key=(3, index)).tolist()

    forwards = [count(index) for index in range(4)]
    torch.rand(5)
    assert [count(index) for index in reversed(range(4))] == forwards[::-1]
    assert len({tuple(counts) for counts in forwards}) > 1


def test_the_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    class_counts(Recorder(), grey(), sigma=0.5, draws=10, key=(0, 0))
    assert torch.equal(torch.get_rng_state(), before)


@given(level=st.floats(0.2, 0.8), sigma=st.floats(0.1, 1.0), index=st.integers(0, 10**6))
@settings(max_examples=20)
def test_votes_of_a_linear_classifier_follow_the_closed_form(level, sigma, index):
    """The mean of 16 noisy pixels is normal around `level` with deviation sigma / 4."""
    draws = 5 * CHUNK
    counts = class_counts(Recorder(), grey(level), sigma=sigma, draws=draws, key=(0, index))
    p = norm.cdf((level - 0.5) / (sigma / 4))
    assert abs(counts[0].item() - draws * p) <= 6 * (draws * p * (1 - p)) ** 0.5 + 3


def test_both_precisions_see_the_same_noise():
    single, double = Recorder(), Recorder()
    image = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
    counts = class_counts(single, image, sigma=0.25, draws=CHUNK, key=(0, 1))
    assert torch.equal(class_counts(double, image.double(), sigma=0.25, draws=CHUNK, key=(0, 1)), counts)
    assert double.seen[0].dtype == torch.float64
    assert torch.allclose(double.seen[0], single.seen[0].double(), atol=1e-6)


def test_no_graph_is_built_and_the_image_is_left_alone():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    image = grey()
    class_counts(network, image, sigma=0.25, draws=2000, key=(0, 1))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(image, grey())


def test_a_nan_under_noise_names_the_image():
    class Broken(nn.Module):
        def forward(self, x):
            highest = x.amax((1, 2, 3))
            return torch.stack([highest, torch.where(highest > 2.2, torch.nan, 0.0)], dim=1)

    assert Broken()(grey()[None]).isfinite().all()
    with pytest.raises(NonFiniteError, match=r"image 41: .* sigma 0.5; .*--precision float64"):
        class_counts(Broken(), grey(), sigma=0.5, draws=3 * CHUNK, key=(0, "select", 41))


@pytest.mark.parametrize("arguments", [{"sigma": 0.0, "draws": 5}, {"sigma": 0.1, "draws": 0}], ids=str)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="out of range: draws="):
        class_counts(Recorder(), grey(), **arguments, key=(0, 0))
