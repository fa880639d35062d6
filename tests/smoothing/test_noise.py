"""Streams of noise: in pieces or as one, of the right law, and exact where they promise to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, norm

from hydrabench.runtime import bits, stream
from hydrabench.smoothing import CHUNK, NoiseSource, are_grey_levels
from hydrabench.smoothing.discrete import BITS, largest_noise, thresholds
from hydrabench.smoothing.fills import REST, fill_discrete, fill_lazily
from hydrabench.smoothing.noise import DEVICE_CHUNK, NoiseStream, noisy

GAUSSIAN, DISCRETE = NoiseSource(), NoiseSource(rigor="discrete")
CPU = torch.device("cpu")
SHAPES = [(1, 4, 4), (3, 32, 32), (1, 5, 5), (3, 3, 1)]


def read(source, shape, pieces, key=(0, "estimate", 3), sigma=0.25):
    noise = NoiseStream(source, torch.Size(shape), CPU, sigma=sigma, key=key)
    rows = torch.empty(sum(pieces), *shape)
    for piece in rows.split(pieces):
        noise.read(piece)
    return rows


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("source", [GAUSSIAN, DISCRETE, NoiseSource(generator="device")], ids=str)
def test_noise_read_in_pieces_is_the_noise_read_at_once(source, shape, version):
    """Across chunks, too. For Gaussian noise this is a property of the libraries that everything rests on."""
    source = replace(source, version=version)
    whole = read(source, shape, [2 * CHUNK + 300])
    for pieces in ([200, 200, 1, 7, 592, 1000, 300], [1] * 5 + [2295], [999, 2, 1299]):
        assert torch.equal(read(source, shape, pieces), whole)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_noise_is_that_of_earlier_ledgers(shape, version):
    """Row i is row i % 1000 of one `normal_` over 1000 rows, on the generator of chunk i // 1000."""
    generators = [stream(0, "estimate", 3, chunk, version=version) for chunk in (0, 1)]
    chunks = [torch.empty(CHUNK, *shape).normal_(0.0, 0.25, generator=generator) for generator in generators]
    assert torch.equal(read(NoiseSource(version=version), shape, [300, 1200]), torch.cat(chunks)[:1500])


def test_on_the_cpu_both_sources_are_one():
    device = NoiseSource(generator="device")
    assert torch.equal(read(device, (1, 4, 4), [1500]), read(GAUSSIAN, (1, 4, 4), [1500]))
    assert device.describe(CPU) == GAUSSIAN.describe(CPU) == GAUSSIAN.describe(torch.device("cuda")) == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: noise drawn on the device itself")
def test_noise_of_a_gpu_is_read_in_pieces_and_gaussian():
    noise = [NoiseStream(NoiseSource("device"), torch.Size((1, 4, 4)), torch.device("cuda"), sigma=0.25, key=(0, 1))
             for _ in range(2)]  # fmt: skip
    whole, parts = torch.empty(2, 1000, 1, 4, 4, device="cuda")
    noise[0].read(whole)
    for piece in parts.split([DEVICE_CHUNK, 1, 399, 400]):
        noise[1].read(piece)
    assert torch.equal(whole, parts)
    assert kstest(whole.flatten().cpu().numpy(), "norm", args=(0, 0.25)).pvalue > 1e-6


@given(sigma=st.sampled_from([0.005, 0.12, 0.25, 1.0]), seed=st.integers(0, 10**6))
@settings(max_examples=12)
def test_integer_noise_is_what_the_thresholds_say_of_the_same_bits(sigma, seed):
    """Python integers, one by one, against the table and the search."""
    rows = torch.empty(20, 1, 4, 5)
    fill_discrete(rows, sigma, torch.Generator().manual_seed(seed))
    bits = torch.empty(rows.shape, dtype=torch.int64).random_(0, 2**BITS, generator=torch.Generator().manual_seed(seed))
    cuts = thresholds(sigma)
    expected = [sum(cut <= u for cut in cuts) - largest_noise(sigma) for u in bits.flatten().tolist()]
    assert rows.flatten().tolist() == expected


def test_bits_next_to_a_threshold_fall_on_the_right_side(monkeypatch):
    cuts = thresholds(0.02)
    middle = cuts[len(cuts) // 2]
    chosen = torch.tensor([middle - 1, middle, middle + 1, 0, 2**BITS - 1])
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, *_, **__: self.copy_(chosen.view(self.shape)))
    rows = torch.empty(1, 1, 1, 5)
    fill_discrete(rows, 0.02, torch.Generator())
    top = largest_noise(0.02)
    assert rows.flatten().tolist() == [0, 1, 1, sum(cut <= 0 for cut in cuts) - top, rows.flatten()[4].item()]
    assert abs(rows.flatten()[4].item()) <= top


class Words:
    """Bits as chosen, in the place of a bit generator."""

    def __init__(self, words):
        self.words, self.used = np.array(words, dtype=np.uint64), 0

    def random_raw(self, count):
        self.used += count
        return self.words[self.used - count : self.used]


@given(sigma=st.sampled_from([0.005, 0.12, 0.25, 1.0]), seed=st.integers(0, 10**6))
@settings(max_examples=12)
def test_bits_that_no_threshold_needs_may_be_left_out(sigma, seed):
    """Python integers: 16 bits, completed by any 46, must fall where the noise says; and only those are drawn."""
    rng = np.random.default_rng(seed)
    cuts, rows = thresholds(sigma), torch.empty(20, 1, 4, 5)
    leading = rng.integers(0, 2**16, rows.numel(), dtype=np.uint16)
    near = [cut >> REST for cut in cuts if cut < 2**BITS][:: max(1, len(cuts) // 40)][:40]
    leading[: len(near)] = near
    others = Words(rng.integers(0, 2**64, rows.numel(), dtype=np.uint64))
    fill_lazily(rows, sigma, Words(leading.astype("<u2").view("<u8")), others)
    used = 0
    for found, first in zip(rows.flatten().tolist(), leading.tolist(), strict=True):
        low, high = first << REST, (first << REST) + 2**REST - 1
        if divided := any(low < cut <= high for cut in cuts):
            low = high = low | int(others.words[used]) >> 64 - REST
        used += divided
        assert {sum(cut <= u for cut in cuts) - largest_noise(sigma) for u in (low, high)} == {found}
    assert others.used == used >= len(near) // 2


def test_gaussian_noise_has_the_tails_of_the_normal_law():
    """Eight million numbers: as many beyond 4.5 deviations as there should be, within five standard errors."""
    drawn = read(GAUSSIAN, (1, 100, 80), [1000], sigma=1.0).abs()
    expected = drawn.numel() * 2 * norm.sf(4.5)
    assert abs(int((drawn > 4.5).sum()) - expected) < 5 * expected**0.5
    rows = read(GAUSSIAN, (1, 100, 100), [200], sigma=0.5)
    assert kstest(rows.flatten().numpy(), "norm", args=(0, 0.5)).pvalue > 1e-6


def test_keyed_bits_depend_on_every_part_of_the_key():
    words = {tuple(bits(*key).random_raw(2).tolist()) for key in ((0, 1), (0, 2), (1, 1), (0, "1", 1), (2**40, 1))}
    assert len(words) == 5
    assert (bits(0, 1).random_raw(3) == bits(0, 1).random_raw(3)).all()


@pytest.mark.parametrize("version", [2, 3])
def test_integer_noise_follows_the_rounded_gaussian(version):
    """Chi-squared over cells of Phi((k + 1/2) / s) - Phi((k - 1/2) / s), s = 255 * 0.02 = 5.1."""
    noise = read(replace(DISCRETE, version=version), (1, 10, 10), [3000], sigma=0.02).flatten().numpy()
    assert (noise == np.round(noise)).all()
    edges = np.arange(-12, 13)
    inner = norm.cdf((edges + 0.5) / 5.1)
    share = np.diff(np.concatenate([[0], inner, [1]]))
    found = np.bincount(np.searchsorted(edges, noise), minlength=len(share))
    statistic = ((found - len(noise) * share) ** 2 / (len(noise) * share)).sum()
    assert statistic < chi2.ppf(1 - 1e-6, len(share) - 1)


def test_noisy_images_of_integer_noise_lie_on_the_grid_and_depend_on_the_integers_alone():
    levels = torch.randint(0, 256, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    images = levels.to(torch.float32) / 255
    noise = read(DISCRETE, (1, 4, 4), [50])
    sums = levels + noise.long()
    assert (sums < 0).any()
    assert (sums > 255).any()
    for dtype in (torch.float32, torch.float64):
        found = noisy(noise.clone(), images.to(dtype), DISCRETE)
        assert found.dtype == dtype
        assert torch.equal(found, (sums.to(torch.float32) / 255).to(dtype))
    assert torch.equal(noisy(noise.clone(), images, GAUSSIAN), noise + images)


def test_eight_bit_images_are_told_from_others():
    levels = torch.arange(256, dtype=torch.float32) / 255
    assert are_grey_levels(levels)
    assert are_grey_levels(levels.double())
    for other in (levels + 1e-6, levels * 2, levels.double() + 1e-12, -levels):
        assert not are_grey_levels(other)
