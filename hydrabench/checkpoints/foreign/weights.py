"""Weights for a network that somebody's own code builds: safetensors, and what torch.save leaves of a state dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from hydrabench.checkpoints.foreign.state_dicts import find_state_dict, plain_tensors, without_prefixes
from hydrabench.checkpoints.foreign.torch_files import read_torch_file
from hydrabench.checkpoints.format import read_file
from hydrabench.checkpoints.header import Header, read_header, shown
from hydrabench.checkpoints.peeking import METADATA_KEY, is_torch_file
from hydrabench.config import Normalization
from hydrabench.errors import CheckpointError
from hydrabench.files import close_name

COUNTER = ".num_batches_tracked"  # of batch norm; old files have none, and nothing is computed with it


def load_weights(network: nn.Module, path: Path) -> Normalization | None:
    """Copy the tensors of a file into a network, strictly.

    The names in the file may be those of the network, or these behind containers and prefixes that wrappers leave (see
    `state_dicts`), or those of torch.nn.utils.prune.
    Returns: the normalisation that the file has in front of the network and the network itself does not have.
    Raises: CheckpointError naming what is missing, unexpected or of another shape.
    """
    if not path.is_file():
        raise CheckpointError(f"--weights {path}: there is no such file{close_name(path)}")
    if is_torch_file(path):
        values, header = read_torch_file(path)[0], None
    else:
        values, header = _safetensors(path)
    plain, found = plain_tensors(values), find_state_dict(values)
    if plain is None or found is None:
        raise CheckpointError(f"--weights {path} holds no state dict of tensors")
    wanted = network.state_dict()
    variants = (plain, without_prefixes(plain, numbered=False)[0])  # `mean` and `std` may be the network's own
    for tensors in variants:
        if not _problems(wanted, tensors):
            network.load_state_dict({**wanted, **tensors})
            return header.normalization if header else None
    _require_fit(wanted, min((found.tensors, *variants), key=lambda one: len(_problems(wanted, one))), path)
    network.load_state_dict({**wanted, **found.tensors})
    return header.normalization if header else found.normalization


def _safetensors(path: Path) -> tuple[dict[str, Tensor], Header | None]:
    """The tensors of a file, and our header if it is one of our checkpoints."""
    data = read_file(path)
    try:
        tensors: dict[str, Tensor] = load_safetensors(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"--weights {path} is neither a safetensors file nor one of torch.save ({shown(str(error), 100)})"
        ) from error
    header = read_header(metadata[METADATA_KEY], str(path)) if METADATA_KEY in metadata else None
    if header is not None and header.layout != "dense":
        raise CheckpointError(
            f"--weights {path} is a {header.layout} checkpoint; open it with --ckpt in place of --weights"
        )
    return tensors, header


def _problems(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    lacking = [f"missing {key}" for key in wanted if key not in tensors and not key.endswith(COUNTER)]
    strange = [f"unexpected {shown(key)}" for key in tensors if key not in wanted]
    shapes = [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    return [*shapes, *lacking, *strange]


def _require_fit(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    problems = _problems(wanted, tensors)
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(f"--weights {path} does not fit the network of --model: {'; '.join(problems[:4])}{more}")
