"""What `attack` and `certify` judge: a checkpoint on its device, and the settings that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from hydrabench.checkpoints import Checkpoint, checkpoint_name
from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, parse_settings, with_default_threat
from hydrabench.masking import prunable_layers, used_parameters
from hydrabench.runtime import PRECISIONS, pick_device
from hydrabench.threat import Norm
from hydrabench.workflows.evaluation.reuse import Parent, open_parent
from hydrabench.workflows.opening import open_checkpoint
from hydrabench.workflows.run_options import RunOptions

# Of weights and images; in bfloat16 only the forward passes of smoothing are computed, see `smoothing.forward`.
STORED_IN = {**PRECISIONS, "bfloat16": torch.float32}


@dataclass(frozen=True)
class Subject:
    """A checkpoint on its device, as it is evaluated: masks baked in, eval mode.

    parent: the run whose certificates are to be reused, for `ReuseSettings`.
    """

    name: str
    checkpoint: Checkpoint
    network: nn.Module
    device: torch.device
    precision: str
    parent: Parent | None = None

    def describe(self) -> dict[str, Any]:
        """What `run.json` says of the checkpoint."""
        header = self.checkpoint.header
        parameters = used_parameters(self.network)
        return {
            "name": self.name,
            "sha256": self.checkpoint.sha256,
            "arch": header.arch,
            "dataset": header.dataset,
            "objective": header.objective["name"] if header.objective else "unknown",
            "phase": header.phase,
            "density": header.density,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "nonzero_parameters": sum(int(parameter.count_nonzero()) for parameter in parameters),
            "prunable_layers": len(prunable_layers(self.network)),
            "bytes": self.checkpoint.path.stat().st_size,
        }


def open_subject(ref: str, *, options: RunOptions, precision: str = "float32", name: str | None = None) -> Subject:
    """Load a checkpoint for evaluation.

    Raises: CheckpointError or ConfigError if it, the device or the precision is not to be had.
    """
    dtype = lookup("precision", STORED_IN, precision)
    device = pick_device(options.device)
    checkpoint = open_checkpoint(ref)
    network = checkpoint.baked().to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Subject(name or checkpoint_name(ref), checkpoint, network, device, precision)


def with_parent(subject: Subject, run: Path, ref: str | None) -> Subject:
    """Add the run of a parent, whose certificates are to be reused; for its Args and Raises see `open_parent`.

    Raises: also CheckpointError if the parent is about other images.
    """
    parent = open_parent(run, ref, device=subject.device, dtype=STORED_IN[subject.precision])
    parent.require_dataset(subject.checkpoint)
    return replace(subject, parent=parent)


def settings_for(subject: Subject, values: Mapping[str, Any]) -> EvaluationSettings:
    """Complete evaluation options with the radius that the checkpoint was trained for, and check them.

    Args:
        values: `kind` and whatever was given of its settings.
    Raises: ConfigError naming every option that is wrong or missing.
    """
    threat = subject.checkpoint.header.default_threat()
    complete = with_default_threat(dict(values), threat) if threat else dict(values)
    known_norm = complete.get("norm", "linf") in get_args(Norm)
    needs_radius = "epsilon" in EVALUATORS[complete["kind"]].conditions()
    if known_norm and needs_radius and "epsilon" not in complete:
        raise ConfigError(
            f"{subject.name} names no radius in this norm that it was trained for; add --epsilon, for example "
            f"{'0.25' if complete.get('norm') == 'l2' else '8/255'}"
        )
    return parse_settings(complete)
