"""Signs that gradients say nothing about a network, so that surviving an attack proves little.

The names are those of `evaluators.flags`; each value is the share of the images that show the sign, in [0, 1].
Source: Croce and Hein (2020), arXiv:2003.01690, and Croce et al. (2022), arXiv:2202.13711 (the checks that AutoAttack
prints as warnings); Athalye et al. (2018), arXiv:1802.00420 (obfuscated gradients).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hydrabench.attacks.losses import LOSSES
from hydrabench.threat import PIXEL_MAX, PIXEL_MIN

REPEATS = 4  # further passes over the same images
DIFFERENT = 1e-4  # length of a difference of logits, as a share of theirs, beyond rounding
ROUNDING = 1e-5  # of probabilities
FINE = 0.02 / 255  # a change of the pixels that any network of floats notices, and no quantiser of grey levels
COARSE = 0.25  # a change that a quantiser notices, too


def network_signs(
    network: nn.Module, x: Tensor, y: Tensor, start: Tensor, losses: Sequence[str] = ("ce", "margin")
) -> dict[str, float]:
    """Return the signs that some of the images show, by name.

    Args:
        network: classifier in eval mode, on the device and in the precision of `x`.
        x: images, (B, C, H, W), in [0, 1]. y: true classes, (B,). start: points where an attack would start.
        losses: keys of `LOSSES` whose gradients the attack follows.
    """
    with torch.no_grad(), CountedGradients() as gradients:
        logits = network(x)
    reached, zero = _gradients(network, start, y, losses)
    found = {
        "randomised-output": _randomised(network, x, logits),
        "one-hot-output": _one_hot(logits),
        "detached-input": 0.0 if reached else 1.0,
        "zero-gradient": zero,
        "quantised-input": _quantised(network, x, logits),
        "dynamic-graph": float(gradients.count > 0),
    }
    if not found["one-hot-output"]:
        found["softmax-output"] = _probabilities(logits)
    return {name: share for name, share in found.items() if share}


def _randomised(network: nn.Module, x: Tensor, logits: Tensor) -> float:
    """Share of the images whose logits differ from pass to pass."""
    length = torch.linalg.vector_norm(logits, dim=1).clamp_min(1e-10)
    moved = torch.zeros_like(length, dtype=torch.bool)
    for _ in range(REPEATS):
        with torch.no_grad():
            again = network(x)
        moved |= torch.linalg.vector_norm(again - logits, dim=1) / length > DIFFERENT
    return _share(moved)


def _probabilities(logits: Tensor) -> float:
    """1 if every row is a probability distribution, which raw scores are by chance at most in one row."""
    rows = (logits >= -ROUNDING).all(1) & ((logits.sum(1) - 1).abs() <= ROUNDING)
    return float(rows.all())


def _one_hot(logits: Tensor) -> float:
    """1 if of every row all entries but the largest are the same; of two classes, if all rows have the same two."""
    ordered = logits.sort(dim=1, descending=True).values
    if logits.shape[1] == 2:
        return float(len(logits) > 2 and bool((ordered == ordered[:1]).all()))
    return float(((ordered[:, 1] == ordered[:, -1]) & (ordered[:, 0] > ordered[:, 1])).all())


def _gradients(network: nn.Module, start: Tensor, y: Tensor, losses: Sequence[str]) -> tuple[bool, float]:
    """Return whether a gradient reaches the input, and the share of the images where it is zero under every loss."""
    zero = torch.ones(len(start), dtype=torch.bool, device=start.device)
    reached = False
    for name in losses:
        points = start.detach().requires_grad_()
        with torch.enable_grad():
            total = LOSSES[name](network(points), y).sum()
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, points, allow_unused=True)
            if gradient is not None:
                reached = True
                zero &= (gradient.flatten(1) == 0).all(1)
    return reached, _share(zero)


def _quantised(network: nn.Module, x: Tensor, logits: Tensor) -> float:
    """Share of the images whose logits stay the same bits under a tiny change, though not under a large one."""
    generator = torch.Generator().manual_seed(0)
    noise = (2 * torch.rand((1, *x.shape[1:]), generator=generator) - 1).to(x)
    with torch.no_grad():
        near, far = (network((x + size * noise).clamp(PIXEL_MIN, PIXEL_MAX)) for size in (FINE, COARSE))
    return _share((near == logits).all(1) & (far != logits).any(1))


def _share(rows: Tensor) -> float:
    return float(rows.double().mean())


class CountedGradients(TorchFunctionMode):
    """Count how often gradients are computed in this thread while the mode is on, by whatever function of torch."""

    MAKERS = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, and count it if it makes gradients."""
        self.count += func in self.MAKERS
        return func(*args, **(kwargs or {}))
