"""PGD on the soft smoothed classifier: gradients through the mean probability over noisy copies of a point."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hydrabench.attacks.pgd import ascend


def smoothed_pgd(
    network: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, epsilon: float, steps: int, step_size: float
) -> Tensor:
    """Maximise -log of the mean probability of the true class over noisy copies, from the image itself, in L2.

    The noise stays the same from step to step, as its authors have it.

    Args:
        network: base classifier in eval mode. x: images, (B, C, H, W), in [0, 1]. y: true classes, (B,), int64.
        noise: added to the points, (B, M, C, H, W), in pixel units; M gradients are averaged.
        epsilon, step_size: radius and length of a step, in pixel units.
    Returns: the last points, (B, C, H, W), inside the ball and in [0, 1].
    Source: Salman et al. (2019), arXiv:1906.04584, equation S and algorithm 1.
    """
    copies = noise.shape[1]
    labels = y.repeat_interleave(copies)

    def objective(points: Tensor) -> Tensor:
        logits = network((points[:, None] + noise).flatten(0, 1))
        likely = logits.log_softmax(1).gather(1, labels[:, None]).view(-1, copies)
        surprise: Tensor = -likely.logsumexp(1)  # but for the constant log of M
        return surprise

    return ascend(x, x, epsilon, objective, norm="l2", steps=steps, step_size=step_size)


@torch.no_grad()
def noisy_votes(network: nn.Module, point: Tensor, noise: Tensor, *, chunk: int) -> Tensor:
    """Count the predictions of a point's noisy copies. point: (C, H, W). noise: (N, C, H, W). Returns: (K,), int64."""
    logits = torch.cat([network(point + part) for part in torch.split(noise, chunk)])
    if not torch.isfinite(logits).all():
        raise ValueError("a logit of a noisy copy is NaN or infinite")
    return logits.argmax(1).bincount(minlength=logits.shape[1])
