"""The occupied positions of a tensor, as bits: gaps in a Golomb-Rice code, without a loop over elements.

Position p_i follows its predecessor after the gap g_i = p_i - p_{i-1} - 1, p_{-1} being -1. With a width w,
a gap is split into g = quotient · 2^w + remainder. The quotient is written in unary, as that many zeros
and a one; the remainder is written in w bits, highest first. Unary and remainder bits go to separate
sequences, so each can be read at once: the ones end the quotients, the remainders have a fixed size.

If a fraction k of the positions is occupied, independently of each other, then gaps are geometric, and
the best width takes at most 4.3 % more than the entropy of H(k) bits per position for every k below one
half: 1.4, 1.0 and 0.4 % more for k = 0.1, 0.05 and 0.01. Width 0 is the bitmap, up to the last occupied
position, so the best width never takes more than one bit per position.

Source: Golomb, Run-length encodings, IEEE Trans. Information Theory 12 (1966); Rice and Plaunt, IEEE
Trans. Communication Technology 19 (1971). Bits are arrays of 0 and 1, (N,), uint8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Positions = NDArray[np.int64]
MAX_WIDTH = 31


def best_width(positions: Positions) -> tuple[int, int]:
    """Return the width in [0, MAX_WIDTH] that codes `positions` in the fewest bits, and that number of bits."""
    gaps = _gaps(positions)
    longest = int(gaps.max(initial=0)).bit_length()
    sizes = {
        width: int((gaps >> width).sum()) + (1 + width) * gaps.size for width in range(min(longest, MAX_WIDTH) + 1)
    }
    width = min(sizes, key=sizes.__getitem__)
    return width, sizes[width]


def encode(positions: Positions, width: int) -> tuple[Bits, Bits]:
    """Code increasing positions. Returns: the unary bits and the remainder bits."""
    gaps = _gaps(positions)
    ends = np.cumsum((gaps >> width) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.uint8)
    unary[ends] = 1
    return unary, ((gaps[:, None] >> _places(width)) & 1).astype(np.uint8).ravel()


def read_quotients(unary: Bits) -> Positions:
    """Return the quotients of all complete unary codes in `unary`; zeros after the last one are ignored."""
    return np.diff(np.flatnonzero(unary), prepend=-1) - 1


def decode(quotients: Positions, remainders: Bits, width: int) -> Positions:
    """Return the positions coded by `quotients`, (N,), and `remainders`, (N · width,)."""
    low = remainders.reshape(-1, width).astype(np.int64) @ (1 << _places(width)) if width else 0
    return np.cumsum((quotients << width) + low + 1) - 1


def join(parts: Sequence[Bits]) -> NDArray[np.uint8]:
    """Return the bits of all `parts` in bytes, the highest bit of a byte first, the last byte filled with zeros."""
    return np.packbits(np.concatenate(parts)) if parts else np.zeros(0, np.uint8)


def _gaps(positions: Positions) -> Positions:
    return np.diff(positions, prepend=-1) - 1


def _places(width: int) -> Positions:
    return np.arange(width - 1, -1, -1)
