"""Checkpoint files: safetensors in the dense, the masked and the compact layout, read strictly, written whole.

Keys are those of the bare architecture; a normalisation in front of it lives in the header only. A file is read once,
and its hash is that of the bytes that were read. The sizes that it claims are compared with the architecture's,
which is built without memory first, before anything of these sizes is allocated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from hydrabench.checkpoints.compact import pack, positive_zeros, unpack
from hydrabench.checkpoints.header import Header, Layout, shown
from hydrabench.checkpoints.own_code import BY_NAME, Maker, UsedCode
from hydrabench.checkpoints.peeking import METADATA_KEY, not_whole, own_header
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.files import close_name, replacing, sha256_of
from hydrabench.masking import attach_masks, bake_masks, freeze_masks, kept_counts, prunable_layers, score_masks
from hydrabench.models import inner_network, normalized
from hydrabench.plugins import require

MASK = ".mask"
LARGEST_FILE = 16 << 30  # of a file; the largest network of the registry with scores and optimizer takes two
_ORIGINAL, _SCORES = ".parametrizations.weight.original", ".parametrizations.weight.0.scores"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. `network` is masked if the layout is, and carries its normalisation.

    sha256: of the bytes that were read; of two files, where a second one decided what the network is.
    notes: what a reader took off or filled in, one line each.
    code: what built the network; None for an architecture of the registry.
    size: bytes that were read.
    """

    path: Path
    sha256: str
    header: Header
    network: nn.Module
    notes: tuple[str, ...] = ()
    code: UsedCode | None = None
    size: int = 0

    def __str__(self) -> str:
        return str(self.path)

    def baked(self) -> nn.Module:
        """Return the network with plain layers, pruned weights being zero (the masks are gone afterwards)."""
        bake_masks(self.network)
        return self.network


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network under their names in a file: `NAME.weight` and, if masked, `NAME.scores`."""
    return {
        key.replace(_ORIGINAL, ".weight").replace(_SCORES, ".scores"): _plain(tensor)
        for key, tensor in inner_network(model).state_dict().items()
    }


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what a file holds of a network: `state_of` it and, if it is masked, its masks as `NAME.mask`.

    Masks are stored because scores alone do not tell them: which of two equal scores is kept is up to the device.
    """
    masks = score_masks(inner_network(model))
    return {**state_of(model), **{f"{name}{MASK}": _plain(mask.mask.bool()) for name, mask in masks.items()}}


def _plain(tensor: Tensor) -> Tensor:
    """The tensor as files hold it: training with channels last keeps weights and masks in another order."""
    return tensor.detach().cpu().contiguous()


def save_checkpoint(path: Path, state: Mapping[str, Tensor], header: Header) -> str:
    """Write a checkpoint, whole or not at all, and return its SHA-256.

    The same tensors and header give the same bytes.
    """
    tensors = pack(positive_zeros(state)) if header.layout == "compact" else _apart(state)
    with replacing(path) as scratch:
        save_file(tensors, scratch, metadata={METADATA_KEY: header.to_json()})
    return sha256_of(path)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors that share memory with others, as tied weights do, which safetensors refuses."""
    seen: set[int] = set()
    found = {}
    for key, tensor in state.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        found[key] = tensor.clone() if shared else tensor
    return found


def compact_size(model: nn.Module) -> int:
    """Return how many bytes the weights of a network take without their zeros, coded as in a compact file."""
    state = {name: one.float() if one.is_floating_point() else one for name, one in state_of(model).items()}
    return sum(stream.numel() * stream.element_size() for stream in pack(positive_zeros(state)).values())


def load_checkpoint(path: Path, *, model: str | nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint and rebuild its network, in eval mode, on the CPU.

    Args: model: the code of a network that is not of the registry, or a module of its layers, whose weights do not
        matter; None: what lies beside the file, see `own_code`.
    Raises: CheckpointError if the file is missing, damaged, of another kind, does not fit its
        architecture or density, or holds a value that is not finite; ConfigError if it needs a plugin.
    """
    data, maker = read_file(path), Maker(path.parent, model)
    header, state = _read(path, data, maker)
    state, masks = split_masks(state)
    network, code = build_network(header, state, str(path), maker)
    try:
        counts = kept_counts(network, header.density, header.kept)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_state(network, state, str(path))
    if header.layout == "masked":
        freeze_masks(network)  # of files without masks, the scores say what is kept
        restore_masks(network, masks, str(path))
    else:
        _check_density(network, header, counts, path)
    notes = maker.note(header, code, str(path))
    return Checkpoint(path, hashlib.sha256(data).hexdigest(), header, network.eval(), notes, code, len(data))


def read_file(path: Path) -> bytes:
    """Return the bytes of a checkpoint file. Raises: CheckpointError if it is missing, or cannot be read."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}{close_name(path)}")
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            most = LARGEST_FILE >> 30
            raise CheckpointError(f"{path} has {size / 1e9:.0f} GB; no checkpoint has more than {most}, so it is none")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); see to it that you may, or copy it"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} has {size / 1e9:.0f} GB, more than the memory that is left") from error


def build_network(
    header: Header, state: Mapping[str, Tensor] | None, source: str, maker: Maker = BY_NAME
) -> tuple[nn.Module, UsedCode | None]:
    """Build the network of a header, with masks if its layout has them, after comparing its sizes with `state`'s.

    Returns: also the code that built it; None for an architecture of the registry.
    Raises: CheckpointError if the header names no network, or one that `state` does not fit.
    """
    if state is not None:
        _require_shapes(expected_shapes(header, source, maker), _shapes(state), source)
    try:
        model, code = maker.build(header, source)
        if front := header.normalization:
            if len(front.mean) != header.shape[0]:
                raise ConfigError(f"normalization has {len(front.mean)} channels, the images have {header.shape[0]}")
            model = normalized(model, front.mean, front.std)
        if header.layout == "masked" and state is not None:
            attach_masks(model, header.density, kept=header.kept)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{source}: no {header.arch} can be built for images of shape {header.shape} and {header.num_classes} "
            "classes; its header is wrong"
        ) from error
    return model, code


def expected_shapes(header: Header, source: str, maker: Maker = BY_NAME) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors, masks left out, that a file with this header has.

    Allocates nothing but for a network of somebody's code, which may not build without memory.
    """
    with torch.device("meta") if header.code is None else nullcontext():
        network = inner_network(build_network(header, None, source, maker)[0])
    shapes = _shapes(network.state_dict())
    if header.layout == "masked":
        layers = prunable_layers(network)
        shapes |= {f"{name}.scores": tuple(layer.weight.shape) for name, layer in layers.items()}
    return shapes


def split_masks(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a state without its masks, and the masks by layer."""
    masks = {key.removesuffix(MASK): tensor for key, tensor in state.items() if key.endswith(MASK)}
    return {key: tensor for key, tensor in state.items() if not key.endswith(MASK)}, masks


def restore_masks(network: nn.Module, masks: Mapping[str, Tensor], source: str) -> None:
    """Give the masks of a network the values that a file holds; without any, they stay as they are.

    Raises: CheckpointError if they are not those of the network's layers, or keep other numbers of weights.
    """
    own = score_masks(inner_network(network))
    if not masks:
        return
    if set(masks) != set(own):
        raise CheckpointError(
            f"{source} has masks of {shown(', '.join(sorted(masks)), 400)}; its masked layers are {', '.join(own)}"
        )
    for name, mask in own.items():
        stored = masks[name]
        if stored.dtype != torch.bool or stored.shape != mask.mask.shape:
            raise CheckpointError(f"{source}: {name}{MASK} is no mask of {name}.weight; write the file again")
        if int(stored.count_nonzero()) != mask.kept:
            raise CheckpointError(
                f"{source}: the mask of layer {name} keeps {int(stored.count_nonzero())} weights, its header says "
                f"{mask.kept}; write the file again"
            )
        mask.restore(stored)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors of a file into a network of the same layout, strictly.

    Masks that follow the scores are renewed; constant ones stay as they are.
    Raises: CheckpointError naming missing, unexpected and misshapen tensors, or values that are not finite.
    """
    network = inner_network(model)
    wanted = state_of(model)
    _require_shapes(_shapes(wanted), _shapes(state), source)
    converted = {key: tensor.to(wanted[key].dtype) for key, tensor in state.items() if not tensor.is_complex()}
    broken = [key for key in state if key not in converted or not torch.isfinite(converted[key]).all()]
    if broken:
        raise CheckpointError(f"{source} holds values that are not finite (NaN or infinity) in {', '.join(broken[:4])}")
    names = dict(zip(network.state_dict(), wanted, strict=True))
    network.load_state_dict({key: converted[name] for key, name in names.items()})
    if any(mask.selecting for mask in score_masks(network).values()):
        freeze_masks(network)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _require_shapes(wanted: Shapes, found: Shapes, source: str) -> None:
    """Refuse tensors that are not those of an architecture."""
    problems = [f"missing {key}" for key in wanted if key not in found]
    problems += [f"unexpected {shown(key)}" for key in found if key not in wanted]
    problems += [
        f"{key} has shape {found[key]}, expected {shape}"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    if problems:
        listed = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"{source} does not fit the architecture it names: {listed}")


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
    return save_checkpoint(path, stored_state(model), header)


def _read(path: Path, data: bytes, maker: Maker) -> tuple[Header, dict[str, Tensor]]:
    try:
        state = load_tensors(data)  # refuses sizes and offsets that do not add up to those of the file
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise not_whole(path, str(error)) from error
    header = own_header(metadata, path)
    require([plugin.plain() for plugin in header.plugins], str(path))
    maker.require(header, str(path))
    if header.layout == "compact":
        fits = lambda shapes: _require_shapes(expected_shapes(header, str(path), maker), shapes, str(path))  # noqa: E731
        try:
            state = unpack(state, fits)
        except CheckpointError as error:
            raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
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
