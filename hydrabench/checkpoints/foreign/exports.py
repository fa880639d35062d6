"""Every format that a checkpoint can be written in: ours, the original HYDRA code's, a plain state dict, ONNX."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hydrabench.checkpoints.foreign.importing import unused_layers
from hydrabench.checkpoints.foreign.kept import hydra_density, settled
from hydrabench.checkpoints.foreign.onnx_file import export_onnx
from hydrabench.checkpoints.foreign.state_dicts import HEADER_ENTRY, POPUP, renamed
from hydrabench.checkpoints.foreign.torch_files import write_torch_file
from hydrabench.checkpoints.format import Checkpoint, export_checkpoint, state_of
from hydrabench.errors import CheckpointError
from hydrabench.masking import bake_masks, scaled_scores, score_masks
from hydrabench.models import MODELS, inner_network


def export_original(checkpoint: Checkpoint, path: Path) -> str:
    """Write a file that the original can evaluate, prune and fine-tune, and return its SHA-256.

    It is masked if the checkpoint has masks, else dense. The entries `epoch`, `best_prec1` and `optimizer`
    hold nothing, so that code cannot resume a training run from it. Two entries are ours: `k`, the
    original's option --k under which it keeps the same weights, and our header, for `import_checkpoint`.
    Unused layers get scores made from their weights, because the original reads strictly.
    Raises: CheckpointError if the original's rule can keep these weights at no k, or it does not know the network.
    """
    if checkpoint.header.arch not in MODELS:
        raise CheckpointError(f"HYDRA's code has no {checkpoint.header.arch}; export --format state-dict or onnx")
    network = inner_network(checkpoint.network)
    masks = score_masks(network)
    state = state_of(network)
    density: float | None = checkpoint.header.density
    if masks:
        density = hydra_density([(mask.mask.numel(), mask.kept) for mask in masks.values()], checkpoint.header.density)
        if density is None:
            raise CheckpointError(
                f"{checkpoint.path}: at no k near {checkpoint.header.density} does HYDRA's rounding keep the weights "
                "of these masks; export --format dense, and that file to hydra"
            )
        for name, mask in masks.items():
            state[f"{name}.scores"] = settled(mask.scores.detach().cpu(), mask.mask.cpu())
        state |= {f"{name}.scores": scaled_scores(layer) for name, layer in unused_layers(network).items()}
    values = {
        "epoch": 0,
        "arch": checkpoint.header.arch,
        "state_dict": {renamed(key, ".scores", POPUP): tensor for key, tensor in state.items()},
        "best_prec1": 0.0,
        "optimizer": {},
        "k": density,
        HEADER_ENTRY: checkpoint.header.to_json(),
    }
    return write_torch_file(path, values)


def export_state_dict(checkpoint: Checkpoint, path: Path) -> str:
    """Write the plain state dict of the network, masks baked in; return the SHA-256.

    Its tensors are those of the bare architecture. Our header, and with it the normalisation, is in the dictionary's
    `_metadata`, where torch keeps versions of modules: `load_state_dict` passes over it, `import_checkpoint` reads it.
    """
    bake_masks(checkpoint.network)
    state = OrderedDict(state_of(checkpoint.network))
    header = checkpoint.header.model_copy(update={"layout": "dense"})
    state._metadata = OrderedDict({HEADER_ENTRY: header.to_json()})  # type: ignore[attr-defined]
    return write_torch_file(path, state)


# format -> (checkpoint, file to write) -> its SHA-256. Writing dense weights bakes the checkpoint's masks in.
EXPORTS: dict[str, Callable[[Checkpoint, Path], str]] = {
    "dense": partial(export_checkpoint, layout="dense"),
    "masked": partial(export_checkpoint, layout="masked"),
    "compact": partial(export_checkpoint, layout="compact"),
    "hydra": export_original,
    "state-dict": export_state_dict,
    "onnx": export_onnx,
}
