"""Votes of a network on noisy copies of one image, the same on every device and in every process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hydrabench.errors import NonFiniteError
from hydrabench.runtime import stream

CHUNK = 1000  # part of the protocol: it fixes which random stream a draw comes from


@torch.no_grad()
def class_counts(network: nn.Module, image: Tensor, *, sigma: float, draws: int, key: tuple[object, ...]) -> Tensor:
    """Count how often each class is predicted on noisy copies of `image`.

    Draw number i is row i % CHUNK of `runtime.stream(*key, i // CHUNK)`. The noise is drawn on the
    CPU in float32 and moved, so the counts depend on (key, draws) alone: devices and precisions differ
    only where rounding decides the prediction. The noisy images are not clamped to [0, 1].

    Args:
        network: classifier in eval mode, on the device and in the precision of `image`.
        image: one image, (C, H, W), in [0, 1].
        sigma: noise standard deviation in pixel units, > 0.
        draws: number of noisy copies, >= 1.
        key: names the random stream; its last entry is the index of the image in its data set.
    Returns: (K,) int64 on the CPU, adding up to `draws`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, SAMPLEUNDERNOISE.
    """
    if not (draws >= 1 and sigma > 0):
        raise ValueError(f"out of range: {draws=}, {sigma=}")
    noise = torch.empty(CHUNK, *image.shape)
    counts: Tensor | None = None
    for chunk, first in enumerate(range(0, draws, CHUNK)):
        # Whole chunks are drawn even where fewer rows are used: what `normal_` writes depends on the size.
        noise.normal_(0.0, sigma, generator=stream(*key, chunk))
        logits = network(noise[: draws - first].to(image).add_(image))
        if not torch.isfinite(logits).all():
            raise NonFiniteError(
                f"image {key[-1]}: the network gives a NaN or infinite logit under Gaussian noise of sigma {sigma}; "
                f"check the checkpoint, or evaluate with --precision float64"
            )
        votes = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        counts = votes if counts is None else counts.add_(votes)
    assert counts is not None
    return counts.cpu()
