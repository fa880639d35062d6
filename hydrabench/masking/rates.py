"""Keep rates that are learned layer by layer, under one budget for all layers (HARP, arXiv:2412.14714)."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import torch
from torch import Tensor, nn

INITIAL_DENSITY = 0.1  # what every layer keeps at first, whatever the density asked for
LEAST_SHARE = 0.1  # every layer keeps at least this share of the density asked for
_STEPS = 100  # halvings of an interval of shifts; more than float64 resolves


class KeepRate(nn.Module):
    """The fraction of its weights that one layer keeps: a(r) = m + (1 - m) sigmoid(r), m = 0.1 k, with r learned.

    Args:
        weights: of the layer.
        density: k, what all layers together are to keep, in (0, 1).
        initial: a(r) at the start, in (m, 1]; above about 0.99 it is cut, as the original does.
    Source: arXiv:2412.14714.
    """

    def __init__(self, weights: int, density: float, initial: float) -> None:
        super().__init__()
        self.weights, self.least = weights, LEAST_SHARE * density
        self.logit = nn.Parameter(torch.logit(torch.tensor(min(0.99, (initial - self.least) / (1 - self.least)))))

    def forward(self) -> Tensor:
        """Return a(r), a scalar with a gradient."""
        return self.least + (1 - self.least) * self.logit.sigmoid()


def excess(rates: Sequence[KeepRate], kept: int) -> Tensor:
    """HARP's L_hw: the weights that the rates keep over `kept`, less 1, and 0 from below; a scalar with a gradient."""
    weights = torch.stack([rate() * rate.weights for rate in rates]).sum()
    return (weights / kept - 1).clamp(min=0)


def counts_of(rates: Sequence[KeepRate]) -> list[int]:
    """Weights that every layer keeps at its rate now: n - floor((1 - a) n), at least 1."""
    return [max(1, rate.weights - floor((1 - _value(rate)) * rate.weights)) for rate in rates]


def counts_within(rates: Sequence[KeepRate], kept: int) -> list[int]:
    """Weights that every layer keeps if all logits are shifted alike until the layers together keep exactly `kept`.

    Fractions are cut, and what is left over goes to the layers that lost most by that; each keeps at least 1.
    Args: kept: between the number of layers and their weights together.
    Raises: ValueError if `kept` is out of range.
    """
    sizes = torch.tensor([rate.weights for rate in rates], dtype=torch.float64)
    if not len(rates) <= kept <= int(sizes.sum()):
        raise ValueError(f"out of range: {kept=} of {len(rates)} layers")
    logits = torch.stack([rate.logit.detach().double().cpu() for rate in rates])
    least = torch.tensor([rate.least for rate in rates], dtype=torch.float64)
    low, high = -1e3 - float(logits.max()), 1e3 - float(logits.min())
    for _ in range(_STEPS):
        middle = (low + high) / 2
        asked = sizes * (least + (1 - least) * (logits + middle).sigmoid())
        low, high = (low, middle) if float(asked.sum()) > kept else (middle, high)
    asked = (sizes * (least + (1 - least) * (logits + low).sigmoid())).clamp(min=1)
    counts = asked.floor()
    order = (asked - counts).argsort(descending=True, stable=True).tolist()
    return _exactly(counts.to(torch.int64).tolist(), sizes.to(torch.int64).tolist(), order, kept)


def _exactly(counts: list[int], sizes: Sequence[int], order: Sequence[int], kept: int) -> list[int]:
    """Add or take single weights, in `order` from its front or its back, until the counts sum to `kept`."""
    while missing := kept - sum(counts):
        step = 1 if missing > 0 else -1
        able = [layer for layer in order if 1 <= counts[layer] + step <= sizes[layer]]
        for layer in (able if step > 0 else able[::-1])[: abs(missing)]:
            counts[layer] += step
    return counts


def _value(rate: KeepRate) -> float:
    return float(rate().detach())
