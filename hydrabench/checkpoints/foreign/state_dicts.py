"""Remove what others wrap around a network's tensors: containers, prefixes, masks beside
weights, a normalisation in front.

Everything that was taken off is named, because it decides which network is read: a file may hold two (`model` and
`ema`), and the first of `CONTAINERS` is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hydrabench.checkpoints.foreign.unpickling import NumpyArray
from hydrabench.config import Normalization

POPUP = ".popup_scores"
HEADER_ENTRY = "hydrabench"  # our header in the files that we write; other programs ignore it
# Entries of a file under which training scripts keep the tensors; an average of weights comes last.
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
# Attributes in which wrappers (DataParallel, torch.compile, averages, attack libraries) hold the network.
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "encoder", "backbone", "ema_model")
# What attack libraries keep of a second copy of the network, and of averages beside it.
COPIES = ("attacker.", "n_averaged")
_MEANS = {"mean": "std", "new_mean": "new_std", "mu": "sigma", "_mean": "_std"}


@dataclass(frozen=True)
class StateDict:
    """The tensors of a network under the names of its architecture.

    tensors: `NAME.popup_scores` is called `NAME.scores`.
    kept: by layer, the weights that its mask keeps, where the file had masks beside weights.
    normalization: that of a layer in front of the network; None if there was none.
    taken_off: containers, prefixes and masks, in words.
    header: ours, if we wrote the file.
    """

    tensors: Mapping[str, Tensor]
    kept: Mapping[str, int]
    normalization: Normalization | None
    taken_off: tuple[str, ...]
    header: str | None


def find_state_dict(values: Any) -> StateDict | None:
    """Return the tensors of a file; None if it holds none that could be a network's."""
    found, containers = _contained(values, ())
    if found is None:
        return None
    metadata = getattr(found, "_metadata", None)
    header = metadata.get(HEADER_ENTRY) if isinstance(metadata, dict) else None
    tensors = {key: _tensor(value) for key, value in found.items()}
    notes = [f"the entry {container!r}" for container in containers if container != "state_dict"]
    named: dict[str, Tensor] = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    copies = [key for key in named if key.removeprefix("module.").startswith(COPIES)]
    named = {key: tensor.detach() for key, tensor in named.items() if key not in copies}
    named, normalization = _without_normalization(named)
    named, prefixes = without_prefixes(named, numbered=normalization is not None)
    if normalization is None:  # it may lie inside the wrapper
        named, normalization = _without_normalization(named)
        named, more = without_prefixes(named, numbered=normalization is not None)
        prefixes += more
    named, kept = _baked(named)
    notes += [f"the prefix {prefix!r}" for prefix in prefixes]
    notes += ["a normalisation layer"] * bool(normalization) + ["masks beside weights (NAME_mask)"] * bool(kept)
    return StateDict(
        {renamed(key, POPUP, ".scores"): tensor for key, tensor in named.items()},
        kept,
        normalization,
        tuple(notes),
        header if isinstance(header, str) else None,
    )


def plain_tensors(values: Any) -> dict[str, Tensor] | None:
    """The tensors of a file as its containers hold them, nothing else taken off; None if there are none."""
    found, _ = _contained(values, ())
    return None if found is None else {key: value for key in found if (value := _tensor(found[key])) is not None}


def renamed(key: str, old: str, new: str) -> str:
    """`key` with the end `new` in place of `old`, or as it is."""
    return key.removesuffix(old) + new if key.endswith(old) else key


def _contained(values: Any, path: tuple[str, ...]) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """The dictionary of tensors in a file, and the entries that lead to it."""
    if not isinstance(values, dict) or not values or len(path) > 4:
        return None, path
    if all(isinstance(key, str) and _tensor(value) is not None for key, value in values.items()):
        return values, path
    for name in CONTAINERS:
        found, where = _contained(values.get(name), (*path, name))
        if found is not None:
            return found, where
    return None, path


def _tensor(value: Any) -> Tensor | None:
    """A plain tensor with all its elements in memory; None for anything else."""
    if isinstance(value, NumpyArray):
        return value.tensor()
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return None
    # A stride of 0 lets a few bytes pass for any shape.
    return value if value.numel() * value.element_size() <= value.untyped_storage().nbytes() else None


def _without_normalization(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], Normalization | None]:
    """Take off a layer of a mean and a standard deviation per channel."""
    for key, mean in named.items():
        place, _, name = key.rpartition(".")
        std = named.get(f"{place}.{_MEANS[name]}" if place else _MEANS[name]) if name in _MEANS else None
        if std is not None and mean.numel() == std.numel() <= 4 and mean.numel() > 0:
            values = [tuple(round(value, 7) for value in part.double().flatten().tolist()) for part in (mean, std)]
            rest = {other: tensor for other, tensor in named.items() if tensor is not mean and tensor is not std}
            return rest, Normalization(mean=values[0], std=values[1])
    return named, None


def without_prefixes(named: dict[str, Tensor], *, numbered: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Take off what all names begin with, if it is a wrapper's: of a Sequential behind a normalisation, also "1."."""
    removed: list[str] = []
    while True:
        firsts = {key.partition(".")[0] for key in named if "." in key}
        if len(firsts) != 1 or not all("." in key for key in named):
            return named, removed
        (first,) = firsts
        if first not in WRAPPERS and not (numbered and first == "1"):
            return named, removed
        removed.append(f"{first}.")
        named = {key.removeprefix(f"{first}."): tensor for key, tensor in named.items()}


def _baked(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Replace the pairs NAME_orig and NAME_mask, which torch.nn.utils.prune leaves, by their product."""
    baked, kept = dict(named), {}
    for key, tensor in named.items():
        name = key.removesuffix("_orig")
        mask = named.get(f"{name}_mask")
        if name == key or mask is None or mask.shape != tensor.shape:
            continue
        baked[name] = baked.pop(key) * baked.pop(f"{name}_mask").to(tensor.dtype)
        if name.endswith(".weight"):
            kept[name.removesuffix(".weight")] = int(mask.count_nonzero())
    return baked, kept
