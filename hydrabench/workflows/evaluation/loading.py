"""The subject of `attack` and `certify`: a checkpoint on its device, and the settings that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydrabench.checkpoints import Checkpoint, better_normalization, checkpoint_name, compact_size, read_zoo
from hydrabench.data import DATASETS, ImageSource, load_images, pixels
from hydrabench.data.forms import is_given, is_own
from hydrabench.data.registry import data_folder
from hydrabench.errors import DataError, lookup
from hydrabench.evaluators import EvaluationSettings
from hydrabench.ledger import read_run
from hydrabench.masking import prunable_layers, used_parameters
from hydrabench.runtime import PRECISIONS, pick_device
from hydrabench.workflows.evaluation.reuse import Parent, open_parent
from hydrabench.workflows.evaluation.settings import complete_settings
from hydrabench.workflows.opening import NOTHING, open_checkpoint
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions

# Of weights and images; in bfloat16 only the forward passes of smoothing are computed, see `smoothing.forward`.
STORED_IN = {**PRECISIONS, "bfloat16": torch.float32}


@dataclass(frozen=True)
class Subject:
    """A checkpoint on its device, as it is evaluated: masks baked in, eval mode.

    parent: the run whose certificates are to be reused, for `ReuseSettings`.
    external: of a network that hydrabench did not build, what decides it beside its tensors, and their `bytes`; see
    `external.external_subject`. None: it is a checkpoint.
    images: what it is judged on; None: the test images of its data set.
    """

    name: str
    checkpoint: Checkpoint
    network: nn.Module
    device: torch.device
    precision: str
    parent: Parent | None = None
    external: Mapping[str, Any] | None = None
    images: ImageSource | None = None

    def test_images(self, options: RunOptions) -> ImageSource:
        """The images that it is judged on. Raises: as `load_images`."""
        if self.images is not None:
            return self.images
        name = self.checkpoint.header.dataset
        if is_own(name) or is_given(name):
            raise DataError(
                f"{self.name} was trained on {name}, whose test images it does not know; name them with --dataset (in "
                "Python as data), such as --dataset folder:images/val"
            )
        images = load_images(name, "test", options.data_dir, download=options.download)
        if data_folder(options.data_dir) is None and name in DATASETS and len(images) < DATASETS[name].test:
            say(
                f"{name}: {len(images)} of its {DATASETS[name].test:,} test images come with hydrabench and are taken; "
                "name a folder with all of them by --data-dir or HYDRABENCH_DATA"
            )
        return images

    def describe(self) -> dict[str, Any]:
        """Return the entry of the checkpoint in `run.json`."""
        header = self.checkpoint.header
        parameters = used_parameters(self.network)
        front = header.normalization if header.phase == "imported" else None  # there, an option may decide it
        normalization = {"normalization": front.model_dump(mode="json")} if front else {}
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
            "bytes": self.external["bytes"] if self.external else self.checkpoint.size,
            **normalization,
            **({"external": True, **self.external} if self.external else {}),
        }

    def origin(self) -> dict[str, Any]:
        """Return how the network came about, beside `describe`; for the rows of a report."""
        header = self.checkpoint.header
        pruned = not self.external and header.density < 1
        return {
            "recipe": header.recipe,
            "seed": header.seed,
            "selection": header.selection.split if header.selection else None,
            "parent": header.parent,
            "additional_data": None if self.external else additional_data(self.checkpoint),
            **({"compact_bytes": compact_size(self.network)} if pruned else {}),
        }


def additional_data(checkpoint: Checkpoint) -> bool | None:
    """Return whether a checkpoint was trained on images that are not in its data set; None if that is not known.

    The zoo's manifest says so, or the recipe of the run that wrote it.
    """
    for entry in read_zoo().values():
        if entry.sha256 == checkpoint.sha256:
            return entry.additional_data
    folder = checkpoint.path.parent
    if not (folder / "run.json").is_file():
        return None
    recipe = read_run(folder).header.get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    return data.get("pseudo_labels") is not None if isinstance(data, dict) else None


def open_subject(
    ref: str,
    *,
    options: RunOptions,
    precision: str = "float32",
    name: str | None = None,
    described: Mapping[str, Any] = NOTHING,
) -> Subject:
    """Load a checkpoint for evaluation.

    Args:
        described: what a file of others does not say of itself, see `open_checkpoint`.
    Raises: CheckpointError or ConfigError if it, the device or the precision is not to be had.
    """
    dtype = lookup("precision", STORED_IN, precision)
    device = pick_device(options.device)
    checkpoint = open_checkpoint(ref, **described)
    network = checkpoint.baked().to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Subject(name or checkpoint_name(ref), checkpoint, network, device, precision)


def doubt_of_normalization(subject: Subject, images: ImageSource) -> str | None:
    """Warn if an imported network is far more accurate on one batch of images under another normalisation."""
    if subject.checkpoint.header.phase != "imported" or subject.external:  # these are guarded, see `guards`
        return None
    few = torch.arange(min(len(images), 256 if images.shape[1] <= 64 else 64))
    x, y = pixels(images.take(few)).to(subject.device, STORED_IN[subject.precision]), images.labels[few]
    better = better_normalization(subject.network, x, y.to(subject.device))
    if better is None:
        return None
    return (
        f"warning: {subject.name} is right on {100 * better.instead_of:.1f}% of {len(y)} images as it is, and on "
        f"{100 * better.accuracy:.1f}% under --normalization {better.name}; was it trained on images normalised so?"
    )


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
    return complete_settings(subject.name, subject.checkpoint.header, values)
