"""Batched augmentation on the device, with every random number from one generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, *, crop_padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crops of the zero-padded images, then random horizontal flips.

    Args:
        images: (B, C, H, W), any dtype.
        crop_padding: zeros added on each side before an H x W window is cut at random; 0 for none.
        flip: mirror each image with probability 1/2.
        generator: on the CPU, so that the same images come out on every device.
    Returns: a tensor of the same shape and dtype.
    Source: He et al., arXiv:1512.03385, section 4.2.
    """
    count, _, height, width = images.shape
    if crop_padding:
        offsets = torch.randint(0, 2 * crop_padding + 1, (2, count, 1), generator=generator).to(images.device)
        rows = (offsets[0] + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, None, :]
        padded = functional.pad(images, (crop_padding,) * 4)
        channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        each = torch.arange(count, device=images.device)[:, None, None, None]
        images = padded[each, channels, rows, columns]
    if flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images
