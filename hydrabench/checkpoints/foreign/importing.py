"""Networks in files of torch.save, read into our checkpoints: HYDRA's own, RobustBench's, plain state dicts.

HYDRA's file is a dict: epoch, arch, state_dict, best_prec1, optimizer; `kept.py` tells
which of its weights are kept. Others hold a state dict under some name, or nothing else. Such a file says little of
its network: what it does not say must be given, because a wrong guess is a wrong number without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hydrabench.checkpoints.foreign.kept import STRAY_ZEROS, LayerCounts, counts_of_dense, counts_of_masked, keep
from hydrabench.checkpoints.foreign.normalization import FORMS, KNOWN
from hydrabench.checkpoints.foreign.state_dicts import HEADER_ENTRY, find_state_dict
from hydrabench.checkpoints.foreign.torch_files import read_torch_file
from hydrabench.checkpoints.format import Checkpoint, build_network, load_state, restore_masks, split_masks
from hydrabench.checkpoints.header import Header, read_header, shown
from hydrabench.config import Normalization
from hydrabench.data import DATASETS
from hydrabench.errors import CheckpointError, ConfigError, lookup
from hydrabench.masking import kept_counts, prunable_layers, score_masks
from hydrabench.models import inner_network
from hydrabench.plugins import require

TWIN_SUFFIXES = (".pth.tar", ".pth", ".pt")  # before which the dense twin of a masked file has "_dense"
Given = Normalization | Literal["none"] | None


def import_checkpoint(
    path: Path,
    *,
    arch: str | None = None,
    dataset: str | None = None,
    density: float | None = None,
    normalization: Given = None,
) -> Checkpoint:
    """Read a network from a file of torch.save.

    Args:
        path: the file. It is read as tensors and plain values; code in it is refused.
        arch: a key of `MODELS`; None takes the file's entry `arch`.
        dataset: a key of `DATASETS`. None takes the file's entry `dataset`, or the only data set that has
            its channels and classes.
        density: the fraction of weights that a masked file of HYDRA's keeps, its k. None finds it in the dense twin,
            `NAME_dense.pth.tar` beside `NAME.pth.tar`. A dense file keeps what is not zero; if a density is given,
            its zeros must fit it.
        normalization: what the network does to images in [0, 1] first, "none" for nothing. None takes that of a layer
            in the file, or HYDRA's for a file with HYDRA's entries: none but for ImageNet.
    Returns: a network in eval mode on the CPU, with masks if the file has scores. Its header has the phase "imported"
        and nothing on how the network was trained. Layers that compute nothing (`sub_block1` of the wide ResNets)
        keep their weights, lose their scores, and count nowhere. `notes` says what was taken off. A file that we
        wrote brings its own header; then nothing need be given.
    Raises: CheckpointError or ConfigError, in one line, if the file cannot be read, does not fit the architecture or
        the density, or does not say what was not given.
    """
    source = _read(path)
    given = {"arch": arch, "dataset": dataset, "density": density, "normalization": normalization}
    header = _own_header(source, given) or _new_header(source, arch, dataset, normalization)
    network = _load(source, header)
    sha256 = source.sha256
    if source.header is not None:
        _restore_own(source, header, network)
    else:
        header, sha256 = _masked(source, header, network, density)
    return Checkpoint(path, sha256, header, network, source.notes, size=source.size)


@dataclass(frozen=True)
class _Source:
    """The content of a file: its tensors under our names, and what it says of itself."""

    path: Path
    sha256: str
    state: Mapping[str, Tensor]
    kept: Mapping[str, int]
    entries: Mapping[str, Any]
    normalization: Normalization | None
    header: Header | None
    notes: tuple[str, ...]
    size: int

    @property
    def masked(self) -> bool:
        return any(key.endswith(".scores") for key in self.state)

    @property
    def of_hydra(self) -> bool:
        """True if it has the entries of HYDRA's files."""
        return {"arch", "state_dict"} <= set(self.entries)

    def says(self, name: str) -> str | None:
        value = self.entries.get(name)
        return shown(value) if isinstance(value, str) else None


def _read(path: Path) -> _Source:
    values, sha256, size = read_torch_file(path)
    entries: Mapping[str, Any] = values if isinstance(values, dict) else {}
    try:
        found = find_state_dict(values)
    except ValidationError as error:
        raise CheckpointError(
            f"{path} has a normalisation layer that images in [0, 1] cannot pass: {error.errors()[0]['msg']}; save "
            "the network behind it alone"
        ) from error
    if found is None:
        held = ", ".join(map(shown, list(entries)[:6])) or type(values).__name__
        raise CheckpointError(f"{path} holds no state dict of tensors (found: {held})")
    header = entries.get(HEADER_ENTRY, found.header)
    notes = (f"{path}: took off {', '.join(found.taken_off)}",) if found.taken_off else ()
    own = read_header(header, str(path)) if isinstance(header, str) else None
    return _Source(path, sha256, found.tensors, found.kept, entries, found.normalization, own, notes, size)


def _own_header(source: _Source, given: Mapping[str, Any]) -> Header | None:
    """The header of a file that we wrote, unless it contradicts what was given."""
    if source.header is None:
        return None
    for name, value in given.items():
        ours = getattr(source.header, name)
        if value not in (None, "none" if ours is None else ours):
            raise CheckpointError(f"{source.path} has {name} {ours}, not {value}; it says so itself, so give no other")
    require([plugin.plain() for plugin in source.header.plugins], str(source.path))
    return source.header.model_copy(update={"layout": _layout(source)})


def _layout(source: _Source) -> Literal["dense", "masked"]:
    return "masked" if source.masked else "dense"


def _new_header(source: _Source, arch: str | None, dataset: str | None, normalization: Given) -> Header:
    """A header for a file of others, with density 1 for now."""
    arch = arch or source.says("arch")
    if arch is None:
        raise CheckpointError(
            f"{source.path} names no architecture; give it, for example --arch wrn_28_10, or, of a network of your "
            f"own, --model FILE.py:NAME --weights {source.path} in place of --ckpt"
        )
    dataset, shape, num_classes = _find_dataset(source, dataset)
    return Header(
        layout=_layout(source),
        phase="imported",
        arch=arch,
        dataset=dataset,
        shape=shape,
        num_classes=num_classes,
        normalization=_find_normalization(source, dataset, normalization),
        density=1.0,
        objective=None,
        recipe=None,
        recipe_sha256=None,
        seed=None,
        selection=None,
        parent=None,
    )


def _find_dataset(source: _Source, dataset: str | None) -> tuple[str, tuple[int, int, int], int]:
    """The data set that was given or named, or the only one with the channels and classes of the network."""
    weights = [tensor for key, tensor in source.state.items() if key.endswith(".weight")]
    channels = next((weight.shape[1] for weight in weights if weight.dim() == 4), None)
    classes = next((weight.shape[0] for weight in reversed(weights) if weight.dim() == 2), None)
    known = {name: (data.shape, data.num_classes) for name, data in DATASETS.items()}
    fitting = [name for name, (shape, count) in known.items() if (shape[0], count) == (channels, classes)]
    said = (source.says("dataset") or "").lower()
    dataset = dataset or (said if said in known else None) or (fitting[0] if len(fitting) == 1 else None)
    takes = f"{source.path} takes {channels or 'unknown'} channels and has {classes or 'unknown'} classes"
    if dataset is None:
        raise CheckpointError(
            f"{takes}, and does not say for which data set; give --dataset, one of "
            f"{', '.join(sorted(fitting or known))}"
        )
    shape, num_classes = lookup("data set", known, dataset)
    if None not in (channels, classes) and (channels, classes) != (shape[0], num_classes):
        raise CheckpointError(f"{takes}; {dataset} has {shape[0]} channels and {num_classes} classes")
    return dataset, shape, num_classes


def _find_normalization(source: _Source, dataset: str, given: Given) -> Normalization | None:
    """Return what was given, is in the file, or is HYDRA's custom. Raises: CheckpointError if nothing says it."""
    inside = source.normalization
    if inside is not None:
        if given not in (None, inside):
            raise CheckpointError(
                f"{source.path} holds a normalisation with mean {inside.mean} and std {inside.std}, which is not what "
                "--normalization says; leave the option out"
            )
        return inside
    if given is None and source.of_hydra:
        given = KNOWN["imagenet"] if dataset == "imagenet" else "none"
    if given is None:
        raise CheckpointError(
            f"{source.path} does not say how its network normalises images; give --normalization, {FORMS}"
        )
    return None if isinstance(given, str) else given


def _load(source: _Source, header: Header) -> nn.Module:
    """The network with the tensors of the file; masks, if any, keep everything for now."""
    name = str(source.path)
    state, _ = split_masks(source.state)
    with torch.device("meta"):
        bare = inner_network(build_network(header, None, name)[0])
    unused = {f"{layer}.scores" for layer in unused_layers(bare)}
    counters = {key: torch.tensor(0) for key in bare.state_dict() if key.endswith(".num_batches_tracked")}
    state = {**{key: zero for key, zero in counters.items() if key not in state}, **state}
    state = {key: tensor for key, tensor in state.items() if key not in unused}
    network, _ = build_network(header.model_copy(update={"density": 1.0, "kept": None}), state, name)
    load_state(network, state, name)
    return network.eval()


def unused_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Layers that are in files, scores included, and compute nothing."""
    used = prunable_layers(network)
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and name not in used
    }


def _restore_own(source: _Source, header: Header, network: nn.Module) -> None:
    """Put the masks of a file that we wrote on its network, or check its zeros."""
    try:
        counts = kept_counts(network, header.density, header.kept)
    except ConfigError as error:
        raise CheckpointError(f"{source.path}: {error}") from error
    for name, mask in score_masks(network).items():
        keep(mask, counts[name])
    _, masks = split_masks(source.state)
    restore_masks(network, masks, str(source.path))
    if not source.masked:
        counts_of_dense(source.path, network, header.density, at_most=counts)


def _masked(source: _Source, header: Header, network: nn.Module, density: float | None) -> tuple[Header, str]:
    """Set the masks of a network whose file is not ours; return its header with the counts, and its SHA-256."""
    kept, sha256 = _kept(source, header, network, density)
    for name, mask in score_masks(network).items():
        keep(mask, kept.counts[name])
    even = kept_counts(network, kept.density) == kept.counts
    return header.model_copy(update={"density": kept.density, "kept": None if even else kept.counts}), sha256


def _kept(source: _Source, header: Header, network: nn.Module, density: float | None) -> tuple[LayerCounts, str]:
    """Return what every layer keeps, and the SHA-256 of all files that decide it."""
    if not source.masked:
        return counts_of_dense(source.path, network, density, masks=source.kept), source.sha256
    if density is not None:
        return counts_of_masked(network, density), source.sha256
    name = source.path.name
    suffix = next((suffix for suffix in TWIN_SUFFIXES if name.endswith(suffix)), "")
    twin = source.path.with_name(name.removesuffix(suffix) + "_dense" + suffix)
    if not twin.is_file():
        raise CheckpointError(
            f"{source.path} is masked, and such files do not say how many weights they keep; give --source-density "
            f"(the original's --k, for example --source-density 0.1), or put {twin.name} beside it"
        )
    other = _read(twin)
    if other.masked:
        raise CheckpointError(f"{twin} is masked, too, so it does not tell what {source.path.name} keeps")
    dense = _load(other, header.model_copy(update={"layout": "dense"}))
    kept = counts_of_dense(twin, dense, None)
    whole = counts_of_masked(network, kept.density)  # where a kept weight is zero, the dense file shows one less
    if all(
        kept.counts[name] <= count <= kept.counts[name] * (1 + STRAY_ZEROS) + 1 for name, count in whole.counts.items()
    ):
        kept = whole
    _require_twins(source, network, twin, dense, kept)
    return kept, hashlib.sha256(f"{source.sha256} {other.sha256}".encode()).hexdigest()


def _require_twins(source: _Source, network: nn.Module, twin: Path, dense: nn.Module, kept: LayerCounts) -> None:
    """Refuse a dense file that is not the masked one with its masks applied: it may be of another epoch."""
    plain = prunable_layers(dense)
    for name, mask in score_masks(network).items():
        keep(mask, kept.counts[name])
        layer = prunable_layers(network)[name]
        differing = int((layer.weight != plain[name].weight).count_nonzero())
        if differing:
            raise CheckpointError(
                f"{twin} is not {source.path.name} with its masks applied: {differing} weights of layer {name} differ; "
                "put the right file beside it, or give --source-density and take the other away"
            )
