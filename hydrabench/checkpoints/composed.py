"""Networks made of others, for --model: an ensemble, and a classifier behind a denoiser.

    --model hydrabench.checkpoints.composed:ensemble --model-args networks=digits-trades,digits-crown-ibp
    --model hydrabench.checkpoints.composed:denoised --model-args network=digits-trades --model-args denoiser=d.py:build

Each is a base classifier like any other, so that what smoothing certifies of it is certified. A network or a denoiser
is a checkpoint, a zoo id, or code as for --model; networks of libraries get ten classes unless num_classes says more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hydrabench.checkpoints.foreign.weights import load_weights
from hydrabench.checkpoints.opening import open_ref
from hydrabench.errors import ConfigError
from hydrabench.models.own_code import build_code, is_code


class Ensemble(nn.Module):
    """The sum of the logits of several networks; of the first few alone for images on which these agree.

    consensus: how many are asked first, from 2 on; 0: all are asked about every image. Where the first agree, the sum
    of their logits has its maximum at their class.
    Source: Horvath et al. (2022), arXiv:2106.06946, soft vote and K-consensus.
    """

    def __init__(self, networks: Sequence[nn.Module], consensus: int = 0) -> None:
        super().__init__()
        if consensus and not 2 <= consensus < len(networks):
            raise ConfigError(f"consensus {consensus} of {len(networks)} networks: give 2 to {len(networks) - 1}, or 0")
        self.networks, self.consensus = nn.ModuleList(networks), consensus

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        asked = list(self.networks)[: self.consensus or None]
        logits = torch.stack([network(x) for network in asked])
        total, votes = logits.sum(0), logits.argmax(2)
        undecided = (votes != votes[0]).any(0)
        if len(asked) < len(self.networks) and bool(undecided.any()):
            rest = [network(x[undecided]) for network in list(self.networks)[len(asked) :]]
            total[undecided] += torch.stack(rest).sum(0)
        return total


def ensemble(networks: str, consensus: int = 0, num_classes: int = 10) -> nn.Module:
    """Build an ensemble by soft vote.

    Args: networks: at least two, separated by commas. consensus: see `Ensemble`. num_classes: of networks of libraries.
    Raises: ConfigError or CheckpointError naming what does not fit.
    """
    names = [name for name in networks.split(",") if name]
    if len(names) < 2:
        raise ConfigError(f"networks={networks} is no ensemble; name at least two, separated by commas")
    return Ensemble([_network(name, num_classes) for name in names], consensus)


def denoised(network: str, denoiser: str, weights: str = "", num_classes: int = 10) -> nn.Module:
    """Build a classifier behind a denoiser: any module that maps noisy images to images of the same shape.

    Args:
        network: the classifier. denoiser: code, which is called without arguments. weights: its file of tensors.
        num_classes: of a classifier of a library.
    Raises: ConfigError or CheckpointError naming what does not fit.
    Source: Salman et al. (2020), arXiv:2003.01908; Carlini et al. (2023), arXiv:2206.10550.
    """
    front = _network(denoiser, num_classes)
    if weights:
        load_weights(front, Path(weights))
    return nn.Sequential(front, _network(network, num_classes))


def _network(name: str, num_classes: int) -> nn.Module:
    """A module in eval mode: code, or a checkpoint with its masks baked in."""
    made = build_code(name, {}, num_classes).module if is_code(name) else open_ref(name).baked()
    return made.eval()
