"""Files of the original HYDRA code, written by hand from the key tables of reference/hydra.md section 4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hydrabench.checkpoints import (
    Checkpoint,
    import_checkpoint,
    state_of,
)
from hydrabench.errors import CheckpointError

SMALL_ARCHS = ("vgg2_bn", "wrn_28_1", "cifar_model")


class Keys:
    """Names and shapes of a state dict, in order; `prunable` are the layers with a `popup_scores`."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.prunable: list[str] = []

    def layer(self, name: str, *shape: int, bias: bool = False) -> None:
        self.shapes[f"{name}.weight"] = shape
        if bias:
            self.shapes[f"{name}.bias"] = shape[:1]
        self.prunable.append(name)

    def norm(self, name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            self.shapes[f"{name}.{part}"] = (channels,)
        self.shapes[f"{name}.num_batches_tracked"] = ()


def vgg2_bn(keys: Keys) -> None:
    keys.layer("features.0", 64, 3, 3, 3)
    keys.norm("features.1", 64)
    keys.layer("features.4", 64, 64, 3, 3)
    keys.norm("features.5", 64)
    for index, shape in ((0, (256, 256)), (2, (256, 256)), (4, (10, 256))):
        keys.layer(f"classifier.{index}", *shape, bias=True)


def cifar_model(keys: Keys) -> None:
    for name, shape in (("0", (16, 3, 4, 4)), ("2", (32, 16, 4, 4)), ("5", (100, 2048)), ("7", (10, 100))):
        keys.layer(name, *shape, bias=True)


def mnist_model(keys: Keys) -> None:
    for name, shape in (("0", (16, 1, 4, 4)), ("2", (32, 16, 4, 4)), ("5", (100, 1568)), ("7", (10, 100))):
        keys.layer(name, *shape, bias=True)


def wrn_28_1(keys: Keys) -> None:
    keys.layer("conv1", 16, 3, 3, 3)
    for block, before, after in (("block1", 16, 16), ("sub_block1", 16, 16), ("block2", 16, 32), ("block3", 32, 64)):
        for unit in range(4):
            name, channels = f"{block}.layer.{unit}", before if unit == 0 else after
            keys.norm(f"{name}.bn1", channels)
            keys.layer(f"{name}.conv1", after, channels, 3, 3)
            keys.norm(f"{name}.bn2", after)
            keys.layer(f"{name}.conv2", after, after, 3, 3)
            if channels != after:
                keys.layer(f"{name}.convShortcut", after, channels, 1, 1)
    keys.norm("bn1", 64)
    keys.layer("fc", 10, 64, bias=True)


def resnet(keys: Keys, first: int, projection: str, last: str, classes: int) -> None:
    keys.layer("conv1", 64, 3, first, first)
    keys.norm("bn1", 64)
    before = 64
    for stage, after in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for block in range(2):
            name = f"layer{stage}.{block}"
            keys.layer(f"{name}.conv1", after, before, 3, 3)
            keys.norm(f"{name}.bn1", after)
            keys.layer(f"{name}.conv2", after, after, 3, 3)
            keys.norm(f"{name}.bn2", after)
            if before != after:
                keys.layer(f"{name}.{projection}.0", after, before, 1, 1)
                keys.norm(f"{name}.{projection}.1", after)
            before = after
    keys.layer(last, classes, 512, bias=True)


TABLES = {
    "vgg2_bn": vgg2_bn,
    "wrn_28_1": wrn_28_1,
    "cifar_model": cifar_model,
    "mnist_model": mnist_model,
    "resnet18": lambda keys: resnet(keys, 3, "shortcut", "linear", 10),
    "ResNet18": lambda keys: resnet(keys, 7, "downsample", "fc", 1000),
}


def keys_of(arch: str) -> Keys:
    keys = Keys()
    TABLES[arch](keys)
    return keys


def original_mask(scores: torch.Tensor, k: float) -> torch.Tensor:
    """The rule of reference/hydra.md section 2.1, as it stands there."""
    flat = scores.abs().flatten()
    mask = torch.ones_like(flat)
    mask[torch.sort(flat, stable=True).indices[: int((1 - k) * flat.numel())]] = 0
    return mask.view_as(scores)


def masked_state(arch: str, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    keys, state = keys_of(arch), {}
    for key, shape in keys.shapes.items():
        state[key] = torch.rand(shape, generator=rng) + 0.5 if shape else torch.tensor(7)
        name, _, part = key.rpartition(".")
        if name in keys.prunable and part == "weight":
            state[key] = torch.randn(shape, generator=rng) * 0.05
            state[f"{name}.popup_scores"] = torch.randn(shape, generator=rng)
    return state


def dense_state(arch: str, k: float, seed: int = 0) -> dict[str, torch.Tensor]:
    state = masked_state(arch, seed)
    for name in keys_of(arch).prunable:
        state[f"{name}.weight"] = state[f"{name}.weight"] * original_mask(state.pop(f"{name}.popup_scores"), k)
    return state


def write(path: Path, state: dict, arch: str | None, *, prefix: str = "", new_format: bool = True) -> Path:
    values = {
        "epoch": 20,
        "arch": arch,
        "state_dict": {prefix + key: tensor for key, tensor in state.items()},
        "best_prec1": torch.tensor([51.25]),
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.zeros(3)}},
            "param_groups": [{"lr": 0.1, "weight_decay": 1e-4, "params": [0]}],
        },
    }
    if arch is None:
        del values["arch"]
    torch.save(values, path, _use_new_zipfile_serialization=new_format)
    return path


def imported(path: Path, **given) -> Checkpoint:
    """Import a file of a network for CIFAR-10, which no such file says, or for what is given."""
    return import_checkpoint(path, **{"dataset": "cifar10", **given})


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return state_of(checkpoint.network)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two states have the same names, shapes and bits (-0.0 is not 0.0)."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[key].dtype and tensor.numpy().tobytes() == other[key].numpy().tobytes()
        for key, tensor in one.items()
    )


def unused(key: str) -> bool:
    return key.startswith("sub_block1")


def refused(path: Path, message: str, **options) -> None:
    """Importing is refused in one line that starts or goes on with the file and says `message`."""
    with pytest.raises(CheckpointError, match=message) as error:
        imported(path, **options)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
