"""Checkpoint files of the original HYDRA code, read into our checkpoints; `exports.py` writes them.

Such a file is a dict: epoch, arch, state_dict, best_prec1, optimizer (reference/hydra.md section 4.7). A
masked one holds `NAME.popup_scores` beside each `NAME.weight`; a dense one holds weights with zeros where
they are pruned. A bare state dict, and RobustBench's file of Sehwag2020Hydra, are read too.

What the original's density and scores mean in our terms is told in `legacy.py`. A density that our exact
rule cannot express is refused in a masked file; a dense file then gets the next larger one, which its
layers fill only up to the weights that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hydrabench.checkpoints.format import Checkpoint, load_state
from hydrabench.checkpoints.header import Header, read_header
from hydrabench.checkpoints.legacy import exact_density, infer_density, keep, legacy_kept_count, sufficient_density
from hydrabench.checkpoints.torch_files import read_torch_file
from hydrabench.config import Normalization
from hydrabench.data import DATASETS
from hydrabench.errors import CheckpointError, ConfigError, lookup
from hydrabench.files import sha256_of
from hydrabench.masking import attach_masks, kept_counts, layer_densities, prunable_layers, score_masks
from hydrabench.models import build_model, inner_network

POPUP = ".popup_scores"
SUFFIXES = (".pth.tar", ".pth", ".pt")  # before which the dense twin of a masked file has "_dense"
HEADER_ENTRY = "hydrabench"  # our header in the files that we write; the original ignores it
# Of the kept weights of a network, the fraction that may be zero although a given density says that they are kept:
# training leaves a few at exactly zero. More means that the density is not the file's.
STRAY_ZEROS = 0.01
IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# The original's data sets: image shape (C, H, W), classes, and what its networks expect in front of them.
ORIGINAL: dict[str, tuple[tuple[int, int, int], int, Normalization | None]] = {
    "cifar10": ((3, 32, 32), 10, None),
    "cifar100": ((3, 32, 32), 100, None),
    "svhn": ((3, 32, 32), 10, None),
    "mnist": ((1, 28, 28), 10, None),
    "imagenet": ((3, 224, 224), 1000, IMAGENET),
}


def import_checkpoint(
    path: Path, *, arch: str | None = None, dataset: str | None = None, density: float | None = None
) -> Checkpoint:
    """Read a file of the original, masked or dense, with or without `module.` in front of its keys.

    Args:
        path: the file. It is read as tensors and plain values; code in it is refused.
        arch: a key of `MODELS`; None takes the file's entry `arch`.
        dataset: a key of `ORIGINAL` or `DATASETS`. None means "cifar10" for images of three channels and
            ten classes, and "imagenet" for three channels and 1000 classes; nothing in a file tells a
            network for SVHN from one for CIFAR-10, so for SVHN it must be given. It decides the size of the
            images, and that ImageNet's are normalised; all others are taken as they are, in [0, 1].
        density: the original's k. None finds it: in a dense file from its zeros; for a masked file from
            the zeros of its dense twin, `NAME_dense.pth.tar` beside `NAME.pth.tar`.
    Returns: a network in eval mode on the CPU, with masks if the file has scores. Its header has the
        phase "imported", the density that `legacy.py` explains, and nothing on how the network
        was trained. The scores of layers that are in the file but compute nothing (`sub_block1` of the wide
        ResNets) are dropped, their weights are kept and count nowhere. A file that we wrote brings its
        own header; then nothing need be given or found.
    Raises: CheckpointError or ConfigError, in one line, if the file cannot be read, does not fit the
        architecture or the density, or does not say what was not given.
    """
    source = _read(path)
    header = _own_header(source, arch, dataset, density) or _new_header(source, arch, dataset)
    network = _load(source, header)
    if source.header is None:
        density = _find_density(source, header, network) if density is None else density
        counts = {name: legacy_kept_count(layer.weight.numel(), density) for name, layer in _layers(network)}
        header = header.model_copy(update={"density": _header_density(source, network, counts, density)})
    else:
        density = header.density
        counts = _own_counts(source, network, source.header)
    for name, mask in score_masks(network).items():
        keep(mask, counts[name])
    if not source.masked:
        _check_zeros(source, network, counts, density)
    return Checkpoint(path, sha256_of(path), header, network)


@dataclass(frozen=True)
class _Source:
    """What a file holds: its tensors under our names, and what it says of itself."""

    path: Path
    state: Mapping[str, Tensor]
    arch: str | None
    header: Header | None

    @property
    def masked(self) -> bool:
        return any(key.endswith(".scores") for key in self.state)


def _read(path: Path) -> _Source:
    values = read_torch_file(path)
    entries: Mapping[str, Any] = values if isinstance(values, dict) else {}
    state = entries.get("state_dict", entries)
    if not isinstance(state, dict) or not state or not all(map(_is_weight, state.items())):
        found = ", ".join(map(str, list(entries)[:6])) or type(values).__name__
        raise CheckpointError(f"{path} holds no state dict of tensors (found: {found})")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    named = {renamed(key.removeprefix(prefix), POPUP, ".scores"): tensor.detach() for key, tensor in state.items()}
    header, arch = entries.get(HEADER_ENTRY), entries.get("arch")
    return _Source(
        path,
        named,
        arch if isinstance(arch, str) else None,
        read_header(header, str(path)) if isinstance(header, str) else None,
    )


def _is_weight(item: tuple[object, object]) -> bool:
    key, value = item
    return isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided


def renamed(key: str, old: str, new: str) -> str:
    """`key` with the end `new` in place of `old`, or as it is."""
    return key.removesuffix(old) + new if key.endswith(old) else key


def _own_header(source: _Source, arch: str | None, dataset: str | None, density: float | None) -> Header | None:
    """The header of a file that we wrote, unless it contradicts what was given."""
    for name, given in {"arch": arch, "dataset": dataset, "density": density}.items():
        if source.header and given not in (None, getattr(source.header, name)):
            raise CheckpointError(f"{source.path} has {name} {getattr(source.header, name)}, not {given}; leave it out")
    return source.header.model_copy(update={"layout": _layout(source)}) if source.header else None


def _layout(source: _Source) -> Literal["dense", "masked"]:
    return "masked" if source.masked else "dense"


def _new_header(source: _Source, arch: str | None, dataset: str | None) -> Header:
    """A header for a file of the original, with density 1 for now."""
    arch = arch or source.arch
    if arch is None:
        raise CheckpointError(f"{source.path} names no architecture; give it, for example --arch wrn_28_10")
    dataset, shape, num_classes, normalization = _find_dataset(source, dataset)
    return Header(
        schema="hydrabench.checkpoint/1",
        layout=_layout(source),
        phase="imported",
        arch=arch,
        dataset=dataset,
        shape=shape,
        num_classes=num_classes,
        normalization=normalization,
        density=1.0,
        objective=None,
        recipe=None,
        recipe_sha256=None,
        seed=None,
        selection=None,
        parent=None,
    )


def _find_dataset(source: _Source, dataset: str | None) -> tuple[str, tuple[int, int, int], int, Normalization | None]:
    """The data set that was given, or the usual one for the channels and classes of the first and last layer."""
    weights = [tensor for key, tensor in source.state.items() if key.endswith(".weight")]
    channels = next((weight.shape[1] for weight in weights if weight.dim() == 4), None)
    classes = next((weight.shape[0] for weight in reversed(weights) if weight.dim() == 2), None)
    if dataset is None:
        dataset = {(3, 10): "cifar10", (3, 1000): "imagenet"}.get((channels or 0, classes or 0))
    known = {name: (data.shape, data.num_classes, None) for name, data in DATASETS.items()} | ORIGINAL
    if dataset is None:
        raise CheckpointError(
            f"{source.path} takes {channels} channels and has {classes} classes; say which data set it is for: "
            f"--dataset, one of {', '.join(sorted(known))}"
        )
    shape, num_classes, normalization = lookup("data set", known, dataset)
    if (channels, classes) != (shape[0], num_classes):
        raise CheckpointError(
            f"{source.path} takes {channels} channels and has {classes} classes; "
            f"{dataset} has {shape[0]} channels and {num_classes} classes"
        )
    return dataset, shape, num_classes, normalization


def _own_counts(source: _Source, network: nn.Module, header: Header) -> dict[str, int]:
    try:
        return kept_counts(network, header.density, header.kept)
    except ConfigError as error:
        raise CheckpointError(f"{source.path}: {error}") from error


def _load(source: _Source, header: Header) -> nn.Module:
    """The network with the tensors of the file; masks, if any, keep everything for now."""
    normalization = (header.normalization.mean, header.normalization.std) if header.normalization else None
    try:
        network = build_model(header.arch, header.shape, header.num_classes, normalization=normalization)
    except ConfigError as error:
        raise CheckpointError(f"{source.path}: {error}") from error
    unused = {f"{name}.scores" for name in unused_layers(inner_network(network))}
    if source.masked:
        attach_masks(network, 1.0)
    load_state(network, {key: tensor for key, tensor in source.state.items() if key not in unused}, str(source.path))
    return network.eval()


def _layers(network: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    return list(prunable_layers(network).items())


def unused_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Layers that are in files, scores included, and compute nothing."""
    used = prunable_layers(network)
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and name not in used
    }


def _find_density(source: _Source, header: Header, network: nn.Module) -> float:
    """Read k off the zeros of the file or its twin."""
    if not source.masked:
        return _density_of(source.path, network)
    name = source.path.name
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    twin = source.path.with_name(name.removesuffix(suffix) + "_dense" + suffix)
    if not twin.is_file():
        raise CheckpointError(
            f"{source.path} is masked, and such files do not say how many weights they keep; give --density (the "
            f"original's --k, for example `hydrabench zoo export FILE --density 0.1 --format dense --out NEW`), "
            f"or put {twin.name} beside it"
        )
    other = _read(twin)
    if other.masked:
        raise CheckpointError(f"{twin} is masked, too, so it does not tell what {source.path.name} keeps")
    return _density_of(twin, _load(other, header))


def _density_of(path: Path, network: nn.Module) -> float:
    layers = layer_densities(network)
    density = infer_density(layers)
    if density is None:
        least, most = (choose(layers, key=lambda layer: layer.density) for choose in (min, max))
        raise CheckpointError(
            f"the zeros in {path} do not come from one density: {least.name} keeps {least.nonzero} of {least.weights} "
            f"weights, {most.name} {most.nonzero} of {most.weights}; give --density if you know it"
        )
    return density


def _header_density(source: _Source, network: nn.Module, counts: Mapping[str, int], density: float) -> float:
    """The density of ours at which the original's `counts` are kept."""
    sizes = [(layer.weight.numel(), counts[name]) for name, layer in _layers(network)]
    found = exact_density(sizes, density)
    if found is None and not source.masked:
        found = sufficient_density(sizes, density)
    if found is None:
        raise CheckpointError(
            f"{source.path}: at density {density}, HYDRA's rounding keeps one weight too many in some layers "
            "and not in others, which our masked layout cannot express; import the dense file"
        )
    return found


def _check_zeros(source: _Source, network: nn.Module, counts: Mapping[str, int], density: float) -> None:
    """Refuse a dense file whose zeros are not those of its density."""
    layers = layer_densities(network)
    fitting = infer_density(layers)
    hint = f"its zeros fit {fitting}" if fitting else "its zeros do not come from one density"
    for layer in layers:
        if layer.nonzero > counts[layer.name]:
            raise CheckpointError(
                f"density {density} does not fit the zeros in {source.path}: layer {layer.name} has {layer.nonzero} "
                f"weights that are not zero instead of {counts[layer.name]}; {hint}"
            )
    nonzero, kept = sum(layer.nonzero for layer in layers), sum(counts.values())
    if source.header is None and nonzero < (1 - STRAY_ZEROS) * kept:
        raise CheckpointError(
            f"density {density} does not fit the zeros in {source.path}: it keeps {kept} weights, the file has "
            f"{nonzero} that are not zero; {hint}"
        )
