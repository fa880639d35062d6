"""Networks that hydrabench did not build, as subjects of an evaluation: any module that maps images to logits."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from hydrabench.checkpoints import Checkpoint, Header
from hydrabench.config import Normalization
from hydrabench.errors import CheckpointError, lookup
from hydrabench.models import inner_network
from hydrabench.runtime import pick_device
from hydrabench.workflows.evaluation.loading import STORED_IN, Subject


def external_subject(
    module: nn.Module,
    *,
    name: str,
    dataset: str,
    shape: tuple[int, int, int],
    num_classes: int,
    device: str = "auto",
    precision: str = "float32",
    identity: Mapping[str, Any],
) -> Subject:
    """Make a subject of any network. The module itself stays as it is; a copy is judged, in eval mode.

    Pruning and parametrizations of torch.nn.utils are baked into the copy's weights.

    Args:
        module: images (B, C, H, W) in [0, 1] to logits (B, K). A `models.Normalize` in front is named in run.json.
        name: in tables and folder names.
        dataset: the name of its images, as for `data.load_images`.
        shape: of one image, (C, H, W). num_classes: K.
        device, precision: as for `open_subject`.
        identity: what else decides the network, as JSON has it. `spec` is where it comes from, and is the `arch` of
            run.json; `file_sha256`, if there is one, is of the file that defines it.
    Raises: ConfigError for an unknown device or precision; CheckpointError if a value is not finite, or every weight
        is zero.
    """
    dtype = lookup("precision", STORED_IN, precision)
    network = baked_copy(module)
    tensors = dict(_tensors(network))
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{name} holds values that are not finite (NaN or infinity) in {', '.join(broken[:4])}")
    known = {"dataset": dataset, "shape": shape, "num_classes": num_classes, "arch": str(identity.get("spec", name))}
    header = _header({**known, "density": _measured_density(network, name)}, network)
    sha256 = _sha256(tensors, identity)
    where = pick_device(device)
    network = network.to(device=where, dtype=dtype)
    external = {**identity, "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())}
    return Subject(name, Checkpoint(Path(name), sha256, header, network), network, where, precision, external=external)


def _header(known: Mapping[str, Any], network: nn.Module) -> Header:
    """A header that says nothing of how the network was trained."""
    unknown = dict.fromkeys(("objective", "recipe", "recipe_sha256", "seed", "selection", "parent"))
    fixed = {"layout": "dense", "phase": "imported", "normalization": _normalization_of(network)}
    return Header.model_validate({**unknown, **fixed, **known})


def baked_copy(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose weights are plain parameters that need no gradient."""
    for part in module.modules():
        for hook in _pruned(part):  # the masked weight of the last forward pass; deepcopy takes no such tensors
            setattr(part, hook._tensor_name, getattr(part, hook._tensor_name).detach())
    with torch.no_grad():  # otherwise the copies of TorchScript's parameters are no leaves
        network = copy.deepcopy(module)
    for part in list(network.modules()):
        for hook in _pruned(part):
            prune.remove(part, hook._tensor_name)  # type: ignore[no-untyped-call]
        if parametrize.is_parametrized(part):
            parametrizations: Any = part.parametrizations
            for key in list(parametrizations):
                parametrize.remove_parametrizations(part, key, leave_parametrized=True)
    # Not eval() and requires_grad_() of the whole, which the programs of torch.export and TorchScript refuse.
    for part in network.modules():
        part.training = False
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def _normalization_of(network: nn.Module) -> Normalization | None:
    """Return what our own layer in front of a network does."""
    if inner_network(network) is network:
        return None
    front: Any = network[0]  # type: ignore[index]
    mean, std = ([round(value, 7) for value in side.double().flatten().tolist()] for side in (front.mean, front.std))
    return Normalization(mean=tuple(mean), std=tuple(std))


def _pruned(part: nn.Module) -> list[Any]:
    """The hooks of torch.nn.utils.prune on one module."""
    return [hook for hook in part._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, those outside the state dict included, by name."""
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        yield key, tensor.detach().cpu().contiguous()


def _measured_density(network: nn.Module, name: str) -> float:
    """The fraction of weights, in all parameters of two dimensions or more, that are not zero; 1 without any."""
    weights = [parameter for parameter in network.parameters() if parameter.dim() >= 2]
    if not weights:
        return 1.0
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    if kept == 0:
        raise CheckpointError(f"every weight of {name} is zero; give its trained weights with --weights")
    return kept / sum(weight.numel() for weight in weights)


def _sha256(tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> str:
    """Hash names, shapes, types and bytes of all tensors, and what else decides the network."""
    digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"\n{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
