"""Positions as Rice-coded gaps: worked by hand, exact there and back, and close to the entropy."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.checkpoints import rice

increasing = st.sets(st.integers(0, 400), max_size=60).map(lambda found: np.array(sorted(found), np.int64))


def test_three_positions_worked_by_hand():
    """Positions 2, 3, 9 follow gaps 2, 0, 5.

    Width 1: quotients 1, 0, 2 give 01 1 001, remainders 0, 0, 1 take a bit each: 6 + 3 = 9 bits.
    Width 0: 001 1 000001 is 10 bits. Width 2: quotients 0, 0, 1 give 1 1 01, and 3 · 2 more bits: 10 bits.
    """
    positions = np.array([2, 3, 9])
    assert rice.best_width(positions) == (1, 9)
    unary, remainders = rice.encode(positions, 1)
    assert unary.tolist() == [0, 1, 1, 0, 0, 1]
    assert remainders.tolist() == [0, 0, 1]
    assert [part.tolist() for part in rice.encode(positions, 0)] == [[0, 0, 1, 1, 0, 0, 0, 0, 0, 1], []]
    assert [part.tolist() for part in rice.encode(positions, 2)] == [[1, 1, 0, 1], [1, 0, 0, 0, 0, 1]]
    assert rice.read_quotients(unary).tolist() == [1, 0, 2]
    assert rice.decode(np.array([1, 0, 2]), remainders, 1).tolist() == [2, 3, 9]


def test_bits_fill_bytes_from_the_highest_and_the_last_byte_with_zeros():
    """0110 0101 is 0x65; the ninth bit, 1, starts a byte of its own, 0x80."""
    parts = [np.array([0, 1, 1], np.uint8), np.array([0, 0, 1, 0, 1, 1], np.uint8)]
    assert rice.join(parts).tobytes() == b"\x65\x80"
    assert rice.join([]).size == 0


@settings(max_examples=200)
@given(positions=increasing, width=st.integers(0, rice.MAX_WIDTH))
def test_positions_come_back_from_every_width(positions, width):
    unary, remainders = rice.encode(positions, width)
    assert remainders.size == positions.size * width
    assert np.array_equal(rice.decode(rice.read_quotients(unary), remainders, width), positions)


@settings(max_examples=100)
@given(positions=increasing)
def test_the_best_width_takes_the_fewest_bits_and_never_more_than_a_bitmap(positions):
    width, bits = rice.best_width(positions)
    sizes = {w: sum(part.size for part in rice.encode(positions, w)) for w in range(rice.MAX_WIDTH + 1)}
    assert bits == sizes[width] == min(sizes.values())
    assert bits <= positions.max(initial=-1) + 1


def test_a_single_position_far_away_takes_about_twice_the_bits_of_its_number():
    """2^40 - 1 is beyond the largest width: 2^9 - 1 zeros and a one, then 31 bits; less far, width and one more bit."""
    assert rice.best_width(np.array([2**40 - 1])) == (31, 2**9 + 31)
    assert rice.best_width(np.array([1000])) == (9, 2 + 9)


@pytest.mark.parametrize(("density", "excess"), [(0.1, 1.02), (0.05, 1.015), (0.01, 1.01), (0.382, 1.05)])
def test_random_positions_take_little_more_than_their_entropy(density, excess):
    """The excesses are those of the module's docstring, plus 0.6 % for chance; 0.382 is the worst density."""
    n = 1_000_000
    positions = np.flatnonzero(np.random.default_rng(1).random(n) < density)
    k = positions.size / n
    entropy = n * -(k * log2(k) + (1 - k) * log2(1 - k))
    assert entropy < rice.best_width(positions)[1] < excess * entropy
