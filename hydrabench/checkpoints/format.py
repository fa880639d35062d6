"""Checkpoint files: safetensors in the dense, the masked and the compact layout, read strictly, written whole.

Keys are those of the bare architecture; a normalisation in front of it lives in the header only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hydrabench.checkpoints.compact import pack, positive_zeros, unpack
from hydrabench.checkpoints.header import Header, Layout, read_header
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.files import replacing, sha256_of
from hydrabench.masking import attach_masks, bake_masks, freeze_masks, kept_counts, prunable_layers, score_masks
from hydrabench.models import build_model, inner_network
from hydrabench.plugins import require

METADATA_KEY = "hydrabench"
_ORIGINAL, _SCORES = ".parametrizations.weight.original", ".parametrizations.weight.0.scores"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. `network` is masked if the layout is, and carries its normalisation."""

    path: Path
    sha256: str
    header: Header
    network: nn.Module

    def baked(self) -> nn.Module:
        """Return the network with plain layers, pruned weights being zero (the masks are gone afterwards)."""
        bake_masks(self.network)
        return self.network


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network under their names in a file: `NAME.weight` and, if masked, `NAME.scores`."""
    return {
        key.replace(_ORIGINAL, ".weight").replace(_SCORES, ".scores"): tensor.detach().cpu().contiguous()
        for key, tensor in inner_network(model).state_dict().items()
    }


def save_checkpoint(path: Path, state: Mapping[str, Tensor], header: Header) -> str:
    """Write a checkpoint, whole or not at all, and return its SHA-256.

    The same tensors and header give the same bytes.
    """
    tensors = pack(positive_zeros(state)) if header.layout == "compact" else dict(state)
    with replacing(path) as scratch:
        save_file(tensors, scratch, metadata={METADATA_KEY: header.to_json()})
    return sha256_of(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and rebuild its network, in eval mode, on the CPU.

    Raises: CheckpointError if the file is missing, damaged, of another kind, does not fit its
        architecture or density, or holds a value that is not finite; ConfigError if it needs a plugin.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    header, state = _read(path)
    require([plugin.plain() for plugin in header.plugins], str(path))
    try:
        normalization = (header.normalization.mean, header.normalization.std) if header.normalization else None
        model = build_model(header.arch, header.shape, header.num_classes, normalization=normalization)
        if header.layout == "masked":
            attach_masks(model, header.density, kept=header.kept)
        counts = kept_counts(model, header.density, header.kept)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_state(model, state, str(path))
    if header.layout != "masked":
        _check_density(model, header, counts, path)
    return Checkpoint(path, sha256_of(path), header, model.eval())


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors of a file into a network of the same layout, strictly, and renew its masks.

    Raises: CheckpointError naming missing, unexpected and misshapen tensors, or values that are not finite.
    """
    network = inner_network(model)
    wanted = state_of(model)
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"{source} does not fit the architecture it names: {shown}")
    broken = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{source} holds values that are not finite (NaN or infinity) in {', '.join(broken[:4])}")
    names = dict(zip(network.state_dict(), wanted, strict=True))
    network.load_state_dict({key: state[name] for key, name in names.items()})
    freeze_masks(network)


def export_checkpoint(checkpoint: Checkpoint, path: Path, layout: Layout) -> str:
    """Write `checkpoint` to `path` in another layout and return the file's SHA-256.

    From masked to dense or compact the masks are baked in; from these to masked, scores are made from the
    magnitudes, so that the mask keeps exactly the weights that are there.
    """
    model = checkpoint.network
    if layout != "masked":
        bake_masks(model)
    elif not score_masks(model):
        attach_masks(model, checkpoint.header.density, kept=checkpoint.header.kept)
    header = checkpoint.header.model_copy(update={"layout": layout})
    return save_checkpoint(path, state_of(model), header)


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); fetch or write it again, "
            "or, if it is a .pt or .pth file, convert it first"
        ) from error
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file without a hydrabench header; it names no architecture")
    header = read_header(metadata[METADATA_KEY], str(path))
    if header.layout == "compact":
        try:
            state = unpack(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return header, state


def _check_density(model: nn.Module, header: Header, counts: Mapping[str, int], path: Path) -> None:
    """A dense file may not hold more weights than the budget in its header allows."""
    budget = f"density {header.density}" if header.kept is None else "its header"
    for name, layer in prunable_layers(model).items():
        nonzero, allowed = int(layer.weight.count_nonzero()), counts[name]
        if nonzero > allowed:
            raise CheckpointError(
                f"{path}: layer {name} has {nonzero} weights that are not zero, but {budget} keeps {allowed}"
            )
