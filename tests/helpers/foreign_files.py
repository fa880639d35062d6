"""Files as the original's train.py writes them, and small networks to write files of."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hydrabench.checkpoints import (
    parse_normalization,
)
from hydrabench.masking import prunable_layers
from hydrabench.models import build_model

CIFAR = {"dataset": "cifar10"}
BARE = {"arch": "cifar_model", "dataset": "cifar10", "normalization": "none"}
HALF = parse_normalization("half")


class MaskedConv(nn.Conv2d):
    """The original's layer, as far as its file goes: one parameter more."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.popup_scores = nn.Parameter(torch.randn(self.weight.shape))


class MaskedLinear(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.popup_scores = nn.Parameter(torch.randn(self.weight.shape))


def masked_cifar_model():
    """reference/hydra.md section 4.5."""
    return nn.Sequential(
        MaskedConv(3, 16, 4, stride=2, padding=1), nn.ReLU(), MaskedConv(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), MaskedLinear(2048, 100), nn.ReLU(), MaskedLinear(100, 10),
    )  # fmt: skip


def dense_of(state, k):
    """reference/hydra.md sections 2.1 and 2.4: every weight times the mask of its scores, scores left out."""
    dense = OrderedDict((key, tensor) for key, tensor in state.items() if "popup_scores" not in key)
    for key in dense:
        if f"{key.removesuffix('weight')}popup_scores" in state and key.endswith("weight"):
            scores = state[f"{key.removesuffix('weight')}popup_scores"]
            order = scores.abs().flatten().sort().indices
            mask = torch.ones(scores.numel())
            mask[order[: int((1 - k) * scores.numel())]] = 0
            dense[key] = dense[key] * mask.view_as(scores)
    return dense


def train_py(folder: Path, *, k=0.1, wrapped=False, zipped=True, seed=0) -> Path:
    """Save what the original saves after an epoch (sections 3.5 and 4.7): the masked and the dense file.

    Its cosine is numpy's (section 3.4), so the learning rates are numpy.float64; best_prec1 comes out of a comparison
    of tensors; with several GPUs the network is wrapped in DataParallel.
    """
    torch.manual_seed(seed)
    network = masked_cifar_model()
    wrapper = nn.DataParallel(network) if wrapped else network
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    nn.functional.cross_entropy(network(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * (3 - 1) / 100))
    optimizer.step()
    assert type(optimizer.param_groups[0]["lr"]) is np.float64
    state = wrapper.state_dict()
    values = {"epoch": 4, "arch": "cifar_model", "state_dict": state, "best_prec1": torch.tensor(51.25),
              "optimizer": optimizer.state_dict()}  # fmt: skip
    paths = folder / "model_best.pth.tar", folder / "model_best_dense.pth.tar"
    for path, tensors in zip(paths, (state, dense_of(state, k)), strict=True):
        torch.save({**values, "state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    return paths[0]


def small_network(seed=0):
    torch.manual_seed(seed)
    return build_model("cifar_model", (3, 32, 32), 10, generator=torch.Generator().manual_seed(seed))


def layers_of(network):
    return list(prunable_layers(network).values())


def prefixed(state, prefix):
    return {prefix + key: tensor for key, tensor in state.items()}
