"""Forward passes whose rounding does not depend on how many images are in the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Matrix products of fewer rows take other kernels, which round differently: measured bit for bit on CPUs, where oneDNN
# and MKL change over at 7 rows (the cnn of digits) and between 12 and 16 (cifar_model, ResNet-18).
FEWEST_ROWS = 16


class Padded(nn.Module):
    """A network that never sees fewer than `FEWEST_ROWS` images: the first one is repeated, its copies are dropped.

    An attack repeats rounding in every step, so that the last bit of a logit can decide a close verdict. On a CPU,
    logits and gradients of an image are then the same bits in every batch; GPUs choose kernels by more than this, and
    there verdicts are the same up to rounding.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, (B, C, H, W)."""
        rows = len(images)
        if not 0 < rows < FEWEST_ROWS:
            logits: Tensor = self.network(images)
            return logits
        copies = images[:1].detach().expand(FEWEST_ROWS - rows, *images.shape[1:])
        logits = self.network(torch.cat([images, copies]))
        return logits[:rows]
