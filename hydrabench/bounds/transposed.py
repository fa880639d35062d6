"""Transposed convolutions by ordinary ones, where a CPU gains from that: float32, no groups, no dilation.

With stride s, pixel s · i + r of the result comes from the taps s · t + r of the kernel alone. Each of the s · s phases
r is an ordinary convolution with fewer taps, and one with s · s times the channels computes all of them. oneDNN does
that several times faster than a transposed convolution with few channels, fastest with channels last; with many it is
the other way round. Which way is taken follows from shapes alone (`phases_pay`, `squares_pay`).
Source: Shi et al. (2016), arXiv:1609.07009, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.box import Interval
from hydrabench.bounds.patches import Pair

VECTOR = 16  # channels that oneDNN computes at once


def phases_pay(weight: Tensor, stride: Pair) -> bool:
    """Return whether torch's transposed convolution fills its vectors less than phases fill their taps.

    Args: weight: (channels of the output, channels of the input, height, width), of the convolution to transpose.
    """
    (_, inputs, *kernel), steps = weight.shape, prod(stride)
    return steps > 1 and inputs * prod(_spans(kernel, stride)) * steps <= VECTOR * prod(kernel)


def squares_pay(weight: Tensor, stride: Pair, padding: Pair, size: Sequence[int]) -> bool:
    """Return whether `squares` knows a convolution of images of this size, and fills one vector with their channels."""
    (_, inputs, *kernel) = weight.shape
    whole = all(taps > pad and pixels % 2 == 0 for taps, pad, pixels in zip(kernel, padding, size, strict=True))
    return stride == (1, 1) and whole and 4 * inputs <= VECTOR


def by_phases(rows: Tensor, weight: Tensor, *, stride: Pair, padding: Pair, size: Sequence[int]) -> Tensor:
    """Carry coefficients of a convolution's output to its input, phase by phase.

    Args:
        rows: (R, channels of the output, h, w). weight: as for `phases_pay`. size: height and width of the input.
    Returns: (R, channels of the input, *size), not always contiguous.
    """
    grid = _together(phases(rows, weight, stride), stride)
    # Pixels behind the last window have no coefficient, and those of the padding are cut off.
    missing = [max(0, pad + pixels - end) for pad, pixels, end in zip(padding, size, grid.shape[2:], strict=True)]
    grid = F.pad(grid, (0, missing[1], 0, missing[0])) if any(missing) else grid
    return grid[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def sorted_pixels(
    rows: Tensor, weight: Tensor, box: Interval, *, stride: Pair, padding: Pair
) -> tuple[Tensor, Interval] | None:
    """Return the coefficients of a convolution's input in an order that is found faster, and its box in the same order.

    Args: rows, weight: as for `by_phases`. box: of the input, (B, channels, H, W).
    Returns: coefficients (R, C, h, w) and a box (B, C, h, w); None where no order pays.
    """
    # `squares` with a gradient has not been measured.
    if not torch.is_grad_enabled() and squares_pay(weight, stride, padding, box.center.shape[2:]):
        return squares(rows, weight, padding), Interval(
            *(F.pixel_unshuffle(part, 2) for part in (box.center, box.width))
        )
    if not phases_pay(weight, stride):
        return None
    grid = phases(rows, weight, stride)
    center, width = (
        pixels_by_phase(part, stride=stride, padding=padding, size=grid.shape[2:]) for part in (box.center, box.width)
    )
    return grid, Interval(center, width)


def phases(rows: Tensor, weight: Tensor, stride: Pair) -> Tensor:
    """Return the pixels of a transposed convolution, padding included, with those of a phase in channels of their own.

    Args: rows, weight: as for `by_phases`.
    Returns: (R, s · s · channels of the input, h + t - 1, w + t - 1) for a kernel that spans t strides; the channels of
        phase (0, 0) come first, those of phase (0, 1) next.
    """
    (outputs, inputs, *kernel), (down, right) = weight.shape, stride
    spans = _spans(kernel, stride)
    taps = F.pad(weight, (0, spans[1] * right - kernel[1], 0, spans[0] * down - kernel[0]))
    taps = taps.view(outputs, inputs, spans[0], down, spans[1], right).flip(2, 4)
    taps = taps.permute(3, 5, 1, 0, 2, 4).reshape(down * right * inputs, outputs, *spans)
    return F.conv2d(rows, taps, padding=[count - 1 for count in spans])


def pixels_by_phase(value: Tensor, *, stride: Pair, padding: Pair, size: Sequence[int]) -> Tensor:
    """Sort the pixels of a convolution's input as `phases` sorts their coefficients, with 0 where that is padding.

    Args:
        value: (B, C, H, W). size: last two axes of what `phases` returned.
    """
    ends = [count * step - pad for count, step, pad in zip(size, stride, padding, strict=True)]
    padded = F.pad(value, (padding[1], ends[1] - value.shape[3], padding[0], ends[0] - value.shape[2]))
    parts = padded.view(*value.shape[:2], size[0], stride[0], size[1], stride[1])
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(len(value), *size, -1).permute(0, 3, 1, 2)


def squares(rows: Tensor, weight: Tensor, padding: Pair) -> Tensor:
    """Return the pixels of a transposed convolution of stride 1, those of a square of 2 x 2 in channels of their own.

    12 of 16 channels of a vector are then filled instead of 3, for twice the taps.
    Args: rows, weight: as for `by_phases`.
    Returns: (R, 4 · channels of the input, H / 2, W / 2), in the order of `torch.nn.functional.pixel_unshuffle`.
    """
    weight = weight.flip(2, 3)
    shifted = [F.pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    around = [taps - 1 - pad for taps, pad in zip(weight.shape[2:], padding, strict=True)]
    return F.conv2d(rows, torch.stack(shifted, 2).flatten(1, 2).transpose(0, 1), stride=2, padding=around)


def _spans(kernel: Sequence[int], stride: Pair) -> list[int]:
    """Return how many strides a kernel spans, along both axes."""
    return [-(-taps // step) for taps, step in zip(kernel, stride, strict=True)]


def _together(found: Tensor, stride: Pair) -> Tensor:
    """Put the pixels of all phases into one image: (R, s · s · C, h, w) to (R, C, s · h, s · w)."""
    (down, right), (count, channels, height, width) = stride, found.shape
    parts = found.permute(0, 2, 3, 1).reshape(count, height, width, down, right * (channels // (down * right)))
    whole = parts.transpose(2, 3).reshape(count, height * down, width * right, -1)
    return whole.permute(0, 3, 1, 2)
