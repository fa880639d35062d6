"""A small network on which auto_LiRPA, whichever release is installed, has to agree with our own bounds.

A release that nobody has tried with us would otherwise give other numbers without a word.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hydrabench.bounds.crown import crown_ibp_margins, crown_margins
from hydrabench.bounds.ibp import MarginBound, interval_margins
from hydrabench.errors import HydrabenchError, UnsupportedLayerError

OURS: dict[str, MarginBound] = {"ibp": interval_margins, "crown-ibp": crown_ibp_margins, "crown": crown_margins}
AGREED = 1e-4  # largest difference of margins, in logit units; those of the network are about 1
EPSILON = 0.15
TESTED = "install the release that is tested, `pip install --no-deps auto_LiRPA==0.3`, or use hydrabench's own engine"

Margins = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


class _Small(nn.Module):
    """A network that auto_LiRPA bounds by patches; no pooling, which the engines relax differently."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.down = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(36, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x))
        x = torch.relu(self.down(x))
        return self.head(torch.relu(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]


def small_problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A network in eval mode, 2 images, (2, 1, 5, 5), and their classes; set by formula, and no draw is taken."""
    with torch.random.fork_rng(devices=[]):
        network = _Small().float().eval().requires_grad_(False)
    for number, tensor in enumerate(tensor for tensor in network.state_dict().values() if tensor.is_floating_point()):
        places = torch.arange(tensor.numel(), dtype=torch.float32)
        size = 2 / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.5
        values = size * torch.sin(places**2 + 3 * number)  # of n and not of n², matrices would have rank 2
        tensor.copy_(values.view_as(tensor))
    network.norm.running_var.abs_().add_(0.5)  # type: ignore[union-attr, operator]
    x = torch.sin(torch.arange(50, dtype=torch.float32) ** 2).abs().view(2, 1, 5, 5)
    return network, x, torch.tensor([0, 1])


def require_agreement(theirs: Callable[[str], Margins], version: str) -> None:
    """Raises: HydrabenchError if margins of the small network differ from ours by more than `AGREED`, or fail.

    Args:
        theirs: gives auto_LiRPA's bound of margins for a key of `OURS`. version: of auto_LiRPA.
    """
    network, x, y = small_problem()
    for method, ours in OURS.items():
        with torch.no_grad():
            expected = ours(network, x, y, EPSILON)
        gap = float((_attempt(theirs(method), version) - expected).abs().max())
        if not gap <= AGREED:  # NaN neither
            raise _untested(f"{version} disagrees with our {method} bounds of a small network by {gap:.2g}")


def require_improvement(theirs: Margins, version: str) -> None:
    """Raises: HydrabenchError if alpha-CROWN is not above CROWN and below what points of the ball reach."""
    network, x, y = small_problem()
    found = _attempt(theirs, version)
    with torch.no_grad():
        crown = crown_margins(network, x, y, EPSILON)
    if not (found >= crown - AGREED).all() or not (found > crown + AGREED).any():
        raise _untested(f"{version} finds no better alpha-crown bounds of a small network than CROWN's")
    if not (found <= _reached(network, x, y) + AGREED).all():
        raise _untested(f"{version} has alpha-crown bounds of a small network that points of the ball undercut")


def _attempt(theirs: Margins, version: str) -> Tensor:
    network, x, y = small_problem()
    try:
        return theirs(network, x, y, EPSILON)
    except (TypeError, AttributeError, KeyError, UnsupportedLayerError) as error:  # what a release renames or refuses
        raise _untested(f"{version} cannot be driven as the releases that we know ({error})") from error


def _reached(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The smallest margin, (B,), at the corner of the ball that the gradient points to and at those next to it."""
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(_margin(network(point), y).sum(), point)
    towards = -slope.sign()
    flips = 1 - 2 * torch.eye(x[0].numel()).view(-1, 1, *x.shape[1:])
    corners = (x + EPSILON * torch.cat([towards.unsqueeze(0), towards * flips])).clamp(0, 1)
    with torch.no_grad():
        reached = [_margin(network(corner), y) for corner in corners]
    return torch.stack(reached).min(0).values


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others


def _untested(what: str) -> HydrabenchError:
    return HydrabenchError(f"auto_LiRPA {what}; {TESTED}")
