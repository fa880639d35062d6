"""Data for figures beside ledgers: weights of networks, epochs of training runs, adversarial images.

No torch here, but for files in the compact layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrabench.errors import CheckpointError
from hydrabench.ledger import RunFolder
from hydrabench.reporting.leaderboard import Leaderboard
from hydrabench.reporting.rows import Row

if TYPE_CHECKING:
    import pandas as pd

BINS = 40
COMPACT = {"values", "unary", "remainders", "table"}  # the tensors of a file in the compact layout
LARGEST_CHECKPOINT = 1 << 28  # bytes of a checkpoint that is read for a figure
Layers = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class ShownExample:
    """An adversarial image and its image. network: its label. threat: protocol and radius. prediction: its class."""

    network: str
    threat: str
    index: int
    label: int
    prediction: int
    image: np.ndarray[Any, Any]
    adversarial: np.ndarray[Any, Any]

    @property
    def perturbation(self) -> np.ndarray[Any, Any]:
        """Their difference, (C, H, W), in float64."""
        found: np.ndarray[Any, Any] = self.adversarial.astype(np.float64) - self.image
        return found


@dataclass(frozen=True)
class Material:
    """checkpoints: files of networks by SHA-256. training: runs with a history of epochs. examples: to be shown."""

    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    training: Sequence[RunFolder] = ()
    examples: Sequence[ShownExample] = ()


def layers_of(path: Path) -> Layers:
    """Return the weights of the layers that can be pruned, by name; nothing of a file of others or too large.

    Weights of convolutions and linear layers have two dimensions or more; those of a masked file are masked.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if path.stat().st_size > LARGEST_CHECKPOINT:
            return {}
        tensors = load_file(path)
        if set(tensors) == COMPACT:
            tensors = _unpacked(tensors)
    except (OSError, SafetensorError, TypeError, CheckpointError):  # gone, no such file, or a type that numpy has not
        return {}
    found = {}
    for name, values in tensors.items():
        if name.endswith(".weight") and values.ndim > 1:
            found[name.removesuffix(".weight")] = values * tensors.get(name.removesuffix("weight") + "mask", 1)
    return found


def _unpacked(streams: Layers) -> Layers:
    """Return the tensors of a compact file. Raises: CheckpointError if it is damaged."""
    import torch

    from hydrabench.checkpoints.compact import unpack

    state = unpack({name: torch.from_numpy(stream) for name, stream in streams.items()})
    return {name: tensor.numpy() for name, tensor in state.items()}


def kept_weights(board: Leaderboard, material: Material) -> pd.DataFrame:
    """Return histograms of weights: all of a dense network, and those that its pruned networks keep.

    One row a bin: network, method, density, objective, low, high (magnitudes), count, and fraction of the bin's weights
    that are kept.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for dense in board.rows:
        pruned = [row for row in board.rows if _descends(row, dense)]
        before = _layers(dense, material) if pruned else {}
        if not before:
            continue
        magnitudes = np.abs(np.concatenate([values.ravel() for values in before.values()]))
        edges = np.linspace(0, float(np.quantile(magnitudes, 0.999)), BINS + 1)
        every = np.histogram(magnitudes, edges)[0]
        rows += _bins(dense, "dense", edges, every, every)
        for row in pruned:
            after = _layers(row, material)
            if {name: values.shape for name, values in after.items()} != {n: v.shape for n, v in before.items()}:
                continue
            kept = np.concatenate([after[name].ravel() != 0 for name in before])
            method = "LWM" if row.checkpoint.phase == "lwm" else "HYDRA"
            rows += _bins(row, method, edges, np.histogram(magnitudes[kept], edges)[0], every)
    columns = ["network", "method", "density", "objective", "low", "high", "count", "fraction"]
    return pd.DataFrame(rows, columns=columns)


def _bins(
    row: Row, method: str, edges: np.ndarray[Any, Any], counts: np.ndarray[Any, Any], every: np.ndarray[Any, Any]
) -> list[dict[str, Any]]:
    about = {"network": row.label, "method": method, "density": row.checkpoint.density}
    return [
        {**about, "objective": row.checkpoint.objective, "low": low, "high": high, "count": count, "fraction": part}
        for low, high, count, part in zip(
            edges[:-1].tolist(),
            edges[1:].tolist(),
            counts.tolist(),
            (counts / np.maximum(every, 1)).tolist(),
            strict=True,
        )
    ]


def _descends(row: Row, dense: Row) -> bool:
    """Return whether a pruned network comes from a dense one: the same recipe, architecture and seed."""
    a, b = row.checkpoint, dense.checkpoint
    same = (a.recipe, a.arch, a.objective, a.seed) == (b.recipe, b.arch, b.objective, b.seed)
    return bool(a.recipe) and same and b.phase == "train" and a.phase in ("finetune", "lwm")


def _layers(row: Row, material: Material) -> Layers:
    path = material.checkpoints.get(row.checkpoint.sha256)
    return layers_of(path) if path else {}


def layer_densities(board: Leaderboard, material: Material) -> pd.DataFrame:
    """Return one row a layer of each pruned network: how many weights it has, and the fraction that is not zero."""
    import pandas as pd

    rows = []
    for row in board.rows:
        if row.checkpoint.density is not None and row.checkpoint.density < 1:
            for place, (name, values) in enumerate(_layers(row, material).items()):
                about = {"network": row.label, "layer": name, "place": place, "weights": values.size}
                rows.append({**about, "density": float(np.count_nonzero(values) / values.size)})
    return pd.DataFrame(rows, columns=["network", "layer", "place", "weights", "density"])


def example_lengths(material: Material) -> pd.DataFrame:
    """Return one row an adversarial image that is shown: of what, its class, and how far it lies from its image.

    linf, l2: lengths of the perturbation in pixel units. scale: by what the figure multiplies it.
    """
    import pandas as pd

    rows = []
    for one in material.examples:
        size = np.abs(one.perturbation).max()
        about: dict[str, Any] = {"network": one.network, "attack": one.threat, "image": one.index, "label": one.label}
        lengths = {"linf": float(size), "l2": float(np.sqrt((one.perturbation**2).sum()))}
        rows.append({**about, "class": one.prediction, **lengths, "scale": float(0.5 / size) if size else 1.0})
    return pd.DataFrame(rows)


def training_curves(material: Material) -> pd.DataFrame:
    """Return one row an epoch of each training run: the metric that chooses the epoch."""
    import pandas as pd

    parts = []
    for run in material.training:
        history = run.path / "metrics.csv"
        metric = run.summary().get("selection", {}).get("metric") if run.is_complete else None
        if metric is None or not history.is_file():
            continue
        epochs = pd.read_csv(history)
        name = next((one for one in epochs.columns if one in (metric, f"validation_{metric}")), None)
        if name is not None and "epoch" in epochs.columns:
            about = {"run": f"{run.path.parent.name}/{run.path.name}", "metric": metric}
            parts.append(pd.DataFrame({"epoch": epochs["epoch"], "value": epochs[name]}).assign(**about))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["epoch", "value", "run", "metric"])
