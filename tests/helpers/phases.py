"""What a phase wrote: tensors, header, hash and table of its run folder."""

from __future__ import annotations

import csv

import torch
from safetensors import safe_open

from hydrabench.checkpoints import load_checkpoint
from hydrabench.files import sha256_of

# cifar_model_bn for 1 x 8 x 8: layer -> (weights, kept at density 0.1 = n - floor(0.9 n)), worked by hand:
# 16·1·16 = 256, 256 - 230; 32·16·16 = 8192, 8192 - 7372; 100·(32·2·2) = 12800, - 11520; 10·100 = 1000, - 900.
KEPT = {"0": (256, 26), "3": (8192, 820), "7": (12800, 1280), "9": (1000, 100)}
BATCH_NORMS = ("1", "4")
STEPS = 5  # of an epoch: 1297 - 259 = 1038 images in batches of 256


def tensors(folder) -> dict[str, torch.Tensor]:
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def header(folder):
    return load_checkpoint(folder / "checkpoint.safetensors").header


def sha(folder) -> str:
    return sha256_of(folder / "checkpoint.safetensors")


def table(folder, *, without=()) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]
