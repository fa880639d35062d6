"""Transposed convolutions by ordinary ones, on CPUs.

With stride s, pixel s · i + r of the result comes from the taps s · t + r of the kernel alone: each of the s · s phases
r is an ordinary convolution with fewer taps, and one with s · s times the channels computes all of them. oneDNN does
that several times faster than a transposed convolution with few channels, fastest with channels last. With many it is
the other way round.
Source: Shi et al. (2016), arXiv:1609.07009, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.interval import Interval, channels_last
from hydrabench.bounds.operations import Convolution


def transposed(operation: Convolution, images: Tensor, size: Sequence[int]) -> Tensor:
    """Carry coefficients of a convolution's output to its input.

    Args:
        images: (R, channels of the output, h, w).
        size: height and width of the input.
    Returns: (R, channels of the input, *size), not always contiguous.
    """
    images = channels_last(images)
    # Putting phases together again has to be paid a second time in a gradient, which is as fast either way.
    pays = has_phases(operation, images) and _few_channels(operation) and not torch.is_grad_enabled()
    return _by_phases(operation, images, size) if pays else plain(operation, images, size)


def plain(operation: Convolution, images: Tensor, size: Sequence[int]) -> Tensor:
    """The same as `transposed`, by torch's transposed convolution, whatever the settings."""
    # Input rows and columns that no window reached get no coefficient unless the output is padded for them.
    reached = [
        (out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
        for out, stride, padding, dilation, kernel in zip(
            images.shape[2:],
            operation.stride,
            operation.padding,
            operation.dilation,
            operation.weight.shape[2:],
            strict=True,
        )
    ]
    return F.conv_transpose2d(
        images,
        operation.weight,
        stride=operation.stride,
        padding=operation.padding,
        output_padding=[whole - end for whole, end in zip(size, reached, strict=True)],
        groups=operation.groups,
        dilation=operation.dilation,
    )


def has_phases(operation: Convolution, images: Tensor) -> bool:
    """Whether `phases` knows the convolution."""
    known = operation.groups == 1 and operation.dilation == (1, 1) and operation.stride != (1, 1)
    return known and images.device.type == "cpu"


def _few_channels(operation: Convolution) -> bool:
    """Whether torch's transposed convolution would fill its vectors of 16 channels less than phases fill their taps."""
    (_, inputs, *kernel), stride = operation.weight.shape, operation.stride
    return inputs * prod(_strides(kernel, stride)) * prod(stride) <= 16 * prod(kernel)


def _strides(kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    """How many strides a kernel spans, along both axes."""
    return [-(-size // step) for size, step in zip(kernel, stride, strict=True)]


def _by_phases(operation: Convolution, images: Tensor, size: Sequence[int]) -> Tensor:
    grid = _together(phases(operation, images), operation.stride)
    (top, left), (height, width) = operation.padding, (*size,)
    missing = [
        max(0, pad + extent - whole) for pad, extent, whole in zip((top, left), size, grid.shape[2:], strict=True)
    ]
    grid = F.pad(grid, (0, missing[1], 0, missing[0])) if any(missing) else grid
    return grid[:, :, top : top + height, left : left + width]


def phases(operation: Convolution, images: Tensor) -> Tensor:
    """The pixels of the transposed convolution, padding included, those of each phase in channels of their own.

    Args: operation, images: as for `transposed`; the convolution `has_phases`.
    Returns: (R, s · s · channels of the input, h + t - 1, w + t - 1) for a kernel that spans t strides; the channels of
        phase (0, 0) come first, those of phase (0, 1) next.
    """
    (down, right), (outputs, inputs, *kernel) = operation.stride, operation.weight.shape
    taps = _strides(kernel, operation.stride)
    weight = F.pad(operation.weight, (0, taps[1] * right - kernel[1], 0, taps[0] * down - kernel[0]))
    weight = weight.view(outputs, inputs, taps[0], down, taps[1], right).flip(2, 4)
    weight = weight.permute(3, 5, 1, 0, 2, 4).reshape(down * right * inputs, outputs, *taps)
    return F.conv2d(images, weight, padding=[count - 1 for count in taps])


def _together(found: Tensor, stride: tuple[int, int]) -> Tensor:
    """Pixels of all phases in one image: (R, s · s · C, h, w) to (R, C, s · h, s · w)."""
    (down, right), (count, channels, height, width) = stride, found.shape
    parts = found.permute(0, 2, 3, 1).reshape(count, height, width, down, right * (channels // (down * right)))
    images = parts.transpose(2, 3).reshape(count, height * down, width * right, -1)
    return images.permute(0, 3, 1, 2)


def apart(box: Interval, operation: Convolution, size: Sequence[int]) -> Interval:
    """The box of an operation's input, sorted by phases as the result of `phases` is, 0 where that is padding.

    Args:
        box: of images, (B, C, H, W). size: last two axes of what `phases` returned.
    """
    ends = [count * step - pad for count, step, pad in zip(size, operation.stride, operation.padding, strict=True)]
    (top, left), (down, right), (height, width) = operation.padding, operation.stride, box.center.shape[2:]

    def sorted_(value: Tensor) -> Tensor:
        padded = F.pad(value, (left, ends[1] - width, top, ends[0] - height))
        parts = padded.view(*value.shape[:2], size[0], down, size[1], right)
        return parts.permute(0, 2, 4, 3, 5, 1).reshape(len(value), *size, -1).permute(0, 3, 1, 2)

    return Interval(sorted_(box.center), sorted_(box.width))


def has_grid(operation: Convolution, images: Tensor, size: Sequence[int]) -> bool:
    """Whether `pixel_grid` knows the convolution of images of this size, and is faster than putting images together."""
    if has_phases(operation, images):
        # With gradients nothing is chosen, for what was trained is to be reproduced bit by bit.
        return torch.is_grad_enabled() or _few_channels(operation)
    (_, inputs, *kernel), padding = operation.weight.shape, operation.padding
    known = operation.groups == 1 and operation.stride == operation.dilation == (1, 1)
    whole = all(taps > pad and n % 2 == 0 for taps, pad, n in zip(kernel, padding, size, strict=True))
    return known and whole and inputs <= 4 and images.device.type == "cpu" and not torch.is_grad_enabled()


def pixel_grid(operation: Convolution, images: Tensor, box: Interval) -> tuple[Tensor, Interval]:
    """Coefficients of the pixels behind a convolution, sorted so that it is fast, and the box of the pixels alike.

    Args: operation, images: as for `transposed`; the convolution `has_grid`. box: of its input, (B, C, H, W).
    """
    if has_phases(operation, images):
        grid = phases(operation, images)
        return grid, apart(box, operation, grid.shape[2:])
    return squares(operation, images), Interval(F.pixel_unshuffle(box.center, 2), F.pixel_unshuffle(box.width, 2))


def squares(operation: Convolution, images: Tensor) -> Tensor:
    """The pixels of a transposed convolution with stride 1, those of every square of 2 x 2 in channels of their own.

    A vector of 16 output channels is then filled by 12 instead of 3, for twice the taps.
    Args: operation, images: as for `transposed`.
    Returns: (R, 4 · channels of the input, H / 2, W / 2), in the order of `torch.nn.functional.pixel_unshuffle`.
    """
    weight = operation.weight.flip(2, 3)
    shifted = [F.pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    padding = [size - 1 - pad for size, pad in zip(weight.shape[2:], operation.padding, strict=True)]
    return F.conv2d(images, torch.stack(shifted, 2).flatten(1, 2).transpose(0, 1), stride=2, padding=padding)
