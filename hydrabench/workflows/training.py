"""The commands `train`, `prune` and `finetune`: from a recipe and a source checkpoint to a checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hydrabench.bounds import program_of
from hydrabench.checkpoints import (
    Checkpoint,
    Header,
    PhaseLabel,
    Selection,
    is_torch_file,
    load_state,
    open_ref,
    resolve,
    save_checkpoint,
    state_of,
)
from hydrabench.config import Normalization, PhaseRecipe, Recipe, sha256_of_values
from hydrabench.data import DATASETS, load_images, validation_split
from hydrabench.errors import CheckpointError, ConfigError, lookup
from hydrabench.ledger import RunFolder, open_run
from hydrabench.masking import Phase, attach_masks, bake_masks, score_masks, set_phase
from hydrabench.models import build_model
from hydrabench.runtime import environment, pick_device, stream
from hydrabench.workflows.loop import METRICS_FILE, STATE_FILE, Job, run_epochs
from hydrabench.workflows.machine import Machine
from hydrabench.workflows.progress import say

CHECKPOINT_FILE = "checkpoint.safetensors"
BOUND_OBJECTIVES = ("crown-ibp",)  # objectives that pass bounds through the network


@dataclass(frozen=True)
class _Start:
    """What a phase starts from."""

    network: nn.Module
    phase: Phase
    label: PhaseLabel
    density: float
    parent: str | None


def train(recipe: Recipe, out: Path, *, machine: Machine, resume: bool = False) -> dict[str, Any]:
    """Train a dense network from scratch. Returns the summary; writes `out/checkpoint.safetensors`."""
    start = _Start(fresh_network(recipe), "train", "train", 1.0, None)
    return _run(recipe, recipe.train, start, out, resume, machine)


def fresh_network(recipe: Recipe) -> nn.Module:
    """Build the recipe's network for its data set, with the initial weights of its seed."""
    dataset = lookup("data set", DATASETS, recipe.data.name)
    return build_model(
        recipe.model.arch,
        dataset.shape,
        dataset.num_classes,
        normalization=_normalization(recipe.model.normalization),
        generator=stream(recipe.seed, "initial weights"),
    )


def prune(recipe: Recipe, ref: str, out: Path, *, machine: Machine, resume: bool = False) -> dict[str, Any]:
    """Learn which weights to keep, starting from `ref`; writes a checkpoint in the masked layout.

    Raises: ConfigError if the recipe has no `prune:` section or no density is given.
    """
    if recipe.prune is None:
        raise ConfigError(f"recipe {recipe.name} has no `prune:` section; add one with epochs and lr")
    if recipe.prune.density is None:
        raise ConfigError("no density given: add --density 0.1 to keep a tenth of the weights of every layer")
    source = _open_source(recipe, ref)
    network = source.baked()
    attach_masks(network, recipe.prune.density)
    start = _Start(network, "prune", "prune", recipe.prune.density, source.sha256)
    return _run(recipe, recipe.prune, start, out, resume, machine)


def finetune(
    recipe: Recipe, ref: str, out: Path, *, machine: Machine, lwm: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Train the kept weights of a pruned checkpoint, or with `lwm` those of largest magnitude of any.

    Writes a checkpoint in the dense layout: the masks are baked in.
    Raises: ConfigError or CheckpointError if there is nothing that says which weights to keep.
    """
    if recipe.finetune is None:
        raise ConfigError(f"recipe {recipe.name} has no `finetune:` section; add one with epochs and lr")
    source = _open_source(recipe, ref)
    density = recipe.finetune.density
    if lwm and density is None:
        raise ConfigError("--lwm needs --density, the fraction of weights kept by magnitude, for example 0.1")
    if not lwm and density is not None and density != source.header.density:
        raise ConfigError(f"{ref} keeps {source.header.density} of its weights; --density belongs to --lwm")
    if not lwm and source.header.density == 1:
        raise CheckpointError(f"{ref} is not pruned; run `hydrabench prune` first, or add --lwm --density 0.1")
    network = source.network
    if lwm:
        bake_masks(network)
    kept = density if lwm and density is not None else source.header.density
    if not score_masks(network):
        attach_masks(network, kept)
    start = _Start(network, "finetune", "lwm" if lwm else "finetune", kept, source.sha256)
    return _run(recipe, recipe.finetune, start, out, resume, machine)


def _run(
    recipe: Recipe, phase: PhaseRecipe, start: _Start, out: Path, resume: bool, machine: Machine
) -> dict[str, Any]:
    """Run one phase in its folder, or find it done."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("training runs in one process; start it without torchrun, which is for attack and certify")
    if recipe.objective.name in BOUND_OBJECTIVES:
        program_of(start.network)  # an unsupported layer is refused before the run folder is made
    device = pick_device(machine.device)
    images = load_images(recipe.data.name, "train", machine.data_dir, download=machine.download)
    training, validation = validation_split(images, recipe.data.validation_fraction)
    run = open_run(out, _run_header(recipe, start, device, len(training), len(validation)), resume=resume)
    if run.is_complete:
        (out / STATE_FILE).unlink(missing_ok=True)  # it may have been killed between finishing and tidying up
        say(f"{out} is complete already")
        return run.summary()
    set_phase(start.network, start.phase, freeze_batch_norm=bool(getattr(phase, "freeze_batch_norm", False)))
    job = Job(
        title=f"{start.label} {recipe.name}" + (f" density {start.density:g}" if start.density < 1 else ""),
        phase=start.label,
        seed=recipe.seed,
        recipe=phase,
        objective=recipe.objective,
        data=recipe.data,
        train=training.to(device),
        validation=validation.to(device),
        network=start.network.to(device),
        device=device,
    )
    best, selection = run_epochs(job, out)
    return _conclude(run, recipe, start, best, selection)


def _conclude(
    run: RunFolder, recipe: Recipe, start: _Start, best: dict[str, Tensor], selection: Selection
) -> dict[str, Any]:
    """Write the checkpoint of the best epoch and the summary; the state to resume from is not needed any more."""
    dataset = DATASETS[recipe.data.name]
    header = Header(
        schema="hydrabench.checkpoint/1",
        layout="masked" if start.label == "prune" else "dense",
        phase=start.label,
        arch=recipe.model.arch,
        dataset=recipe.data.name,
        shape=dataset.shape,
        num_classes=dataset.num_classes,
        normalization=recipe.model.normalization,
        density=start.density,
        objective=recipe.objective,
        recipe=recipe.name,
        recipe_sha256=sha256_of_values(recipe.of_phase(_section(start))),
        seed=recipe.seed,
        selection=selection,
        parent=start.parent,
    )
    load_state(start.network, best, "the best epoch")
    if header.layout == "dense":
        bake_masks(start.network)
    sha256 = save_checkpoint(run.path / CHECKPOINT_FILE, state_of(start.network), header)
    summary = {
        "n": selection.images,
        "checkpoint_sha256": sha256,
        "selection": selection.model_dump(mode="json"),
        "metrics": {f"validation_{selection.metric}": {"value": selection.value}},
    }
    run.finish(summary)
    (run.path / STATE_FILE).unlink(missing_ok=True)
    say(
        f"{run.path / CHECKPOINT_FILE}: epoch {selection.epoch}, {selection.metric} {selection.value:.3f} on "
        f"{selection.images} held-out images; history in {run.path / METRICS_FILE}"
    )
    return run.summary()


def _run_header(
    recipe: Recipe, start: _Start, device: torch.device, train_images: int, validation_images: int
) -> dict[str, Any]:
    """What `run.json` says of a training run."""
    return {
        "command": _section(start),
        "phase": start.label,
        "recipe": recipe.of_phase(_section(start)),
        "density": start.density,
        "parent": start.parent,
        "dataset": {"name": recipe.data.name, "train": train_images, "validation": validation_images},
        "precision": "float32",
        "environment": environment(device),
        "world_size": 1,
    }


def _section(start: _Start) -> Literal["train", "prune", "finetune"]:
    """The section of the recipe, and the command, that a phase belongs to."""
    return "finetune" if start.label == "lwm" else start.label


def _open_source(recipe: Recipe, ref: str) -> Checkpoint:
    """Load the checkpoint a phase starts from. Raises: CheckpointError if it is not of the recipe's network."""
    of_original = is_torch_file(resolve(ref))  # such a file does not say all of this itself
    source = open_ref(ref, arch=recipe.model.arch, dataset=recipe.data.name) if of_original else open_ref(ref)
    header = source.header
    if (header.arch, header.dataset) != (recipe.model.arch, recipe.data.name):
        raise CheckpointError(
            f"{ref} is a {header.arch} for {header.dataset}; recipe {recipe.name} wants a {recipe.model.arch} "
            f"for {recipe.data.name}"
        )
    if header.normalization != recipe.model.normalization:
        raise CheckpointError(
            f"{ref} normalises with {header.normalization}, recipe {recipe.name} with {recipe.model.normalization}"
        )
    return source


def _normalization(section: Normalization | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    return (section.mean, section.std) if section else None
