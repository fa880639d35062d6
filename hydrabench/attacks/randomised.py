"""Passes through a randomised network that treat an image as if it were alone in the batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

IMAGES_TRIED = 4  # images on which a pass of a batch is compared with passes of one image each
SAME_LOGITS = 1e-3  # of a logit, as a share of the largest


class Reseeded(nn.Module):
    """A randomised network whose k-th pass draws the same numbers for every image.

    Each pass draws from the global generators of torch, numpy and Python under a seed of its own, as for a batch of one
    image; the generators are left as found. Images go through the network together (`torch.func.vmap`) if that gives
    the logits of one after another up to rounding, and one after another if not.
    """

    def __init__(self, network: nn.Module, seed: int) -> None:
        """seed: in [0, 2^63); pass k draws under seed + k."""
        super().__init__()
        self.network, self.seed, self.passes = network, seed, 0
        self.training = network.training
        self.together: bool | None = None  # whether images go through together; None before the first pass

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, (B, C, H, W), B >= 1."""
        seed = (self.seed + self.passes) % 2**63
        self.passes += 1
        if self.together is None:
            self.together = self._agree(images[:IMAGES_TRIED].detach(), seed)
        return self._together(images, seed) if self.together else self._in_turn(images, seed)

    def _one(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image[None])
        return logits[0]

    def _together(self, images: Tensor, seed: int) -> Tensor:
        with _seeded(seed, images.device):
            logits: Tensor = torch.func.vmap(self._one, randomness="same")(images)
        return logits

    def _in_turn(self, images: Tensor, seed: int) -> Tensor:
        found = []
        for image in images:
            with _seeded(seed, images.device):
                found.append(self._one(image))
        return torch.stack(found)

    @torch.no_grad()
    def _agree(self, images: Tensor, seed: int) -> bool:
        """True if a pass of these images together is that of one after another."""
        expected = self._in_turn(images, seed)
        try:
            found = self._together(images, seed)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # what vmap says of code that it cannot map
            return False
        return bool(((found - expected).abs() <= SAME_LOGITS * expected.abs().amax()).all())


@torch.no_grad()
def repeats(network: nn.Module, images: Tensor) -> bool:
    """True if the network draws from the global generators alone, so that a seed decides its logits."""
    first, second = (Reseeded(network, 0)(images[:IMAGES_TRIED]) for _ in range(2))
    return bool(((first - second).abs() <= SAME_LOGITS * first.abs().amax()).all())


@torch.no_grad()
def vote_shares(network: nn.Module, images: Tensor, *, seed: int, passes: int) -> Tensor:
    """Return the share of the passes in which each class wins, (B, K), in the precision of `images`.

    Args: network: randomised. images: (B, C, H, W). seed: of the passes, see `Reseeded`.
    Raises: ValueError if a logit is NaN or infinite.
    """
    reseeded, votes = Reseeded(network, seed), None
    for _ in range(passes):
        logits = reseeded(images)
        if not torch.isfinite(logits).all():
            raise ValueError("a logit is NaN or infinite")
        won = nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        votes = won if votes is None else votes + won
    assert votes is not None
    return votes.to(images) / passes


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators inside the block, and leave them as they were."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  (networks draw from it)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002
