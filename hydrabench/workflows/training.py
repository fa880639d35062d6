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
from hydrabench.data import DATASETS, ImageSource, TrainingBatches, TrainingImages, load_training_images, pixels
from hydrabench.errors import CheckpointError, ConfigError, lookup
from hydrabench.ledger import RunFolder, open_run
from hydrabench.masking import (
    SCORE_INITS,
    Phase,
    Scope,
    attach_masks,
    bake_masks,
    kept_counts,
    overall_density,
    rescale_weights,
    score_masks,
    set_phase,
)
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES
from hydrabench.runtime import environment, pick_device, stream
from hydrabench.workflows.loop import METRICS_FILE, STATE_FILE, Job, run_epochs
from hydrabench.workflows.machine import Machine
from hydrabench.workflows.progress import say

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class _Masks:
    """The masks that a phase begins with; the recipe's keys say what they mean."""

    density: float | dict[str, float]
    scope: Scope
    scores: str
    rescale_weights: bool = False

    def attach(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
        """Put them on a network without masks."""
        if self.rescale_weights:
            rescale_weights(network, self.density)
        scores = SCORE_INITS[self.scores](network, generator, batch)
        attach_masks(network, self.density, scope=self.scope, scores=scores)


@dataclass(frozen=True)
class _Start:
    """What a phase starts from. masks: those still to be put on; None if the network has all it needs."""

    network: nn.Module
    phase: Phase
    label: PhaseLabel
    density: float
    parent: str | None
    masks: _Masks | None = None


def train(
    recipe: Recipe, out: Path, *, machine: Machine, ref: str | None = None, resume: bool = False
) -> dict[str, Any]:
    """Train all weights, from scratch or from those of `ref`; writes `out/checkpoint.safetensors`, dense.

    With `train.density` below 1, the network is sparse: `train.scores` choose its masks before the first
    step, and they stay.
    Returns: the summary. Raises: CheckpointError if `ref` does not fit the recipe, or is pruned.
    """
    section = recipe.train
    source = _open_source(recipe, ref) if ref else None
    if source and source.header.density < 1:
        raise CheckpointError(
            f"{ref} is pruned, and `train` would fill its zeros; use `hydrabench finetune` to keep them"
        )
    network = source.baked() if source else fresh_network(recipe)
    density = overall_density(network, section.density, section.scope)
    masks = _Masks(section.density, section.scope, section.scores, section.rescale_weights)
    parent = source.sha256 if source else None
    start = _Start(network, "train", "train", density, parent, masks if density < 1 else None)
    return _run(recipe, section, start, out, resume, machine)


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

    Raises: ConfigError if the recipe has no `prune:` section, no density is given, or it does not fit the
        layers.
    """
    if recipe.prune is None:
        raise ConfigError(f"recipe {recipe.name} has no `prune:` section; add one with epochs and lr")
    if recipe.prune.density is None:
        raise ConfigError("no density given: add --density 0.1 to keep a tenth of the weights of every layer")
    source = _open_source(recipe, ref)
    network = source.baked()
    section = recipe.prune
    density = overall_density(network, recipe.prune.density, section.scope)
    masks = _Masks(recipe.prune.density, section.scope, section.scores)
    start = _Start(network, "prune", "prune", density, source.sha256, masks)
    return _run(recipe, section, start, out, resume, machine)


def finetune(
    recipe: Recipe, ref: str, out: Path, *, machine: Machine, lwm: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Train the kept weights of a pruned checkpoint, or with `lwm` those of largest magnitude of any.

    Magnitudes are those of the scaled scores, with which pruning starts by default: layer by layer they rank as
    the weights do; under a global budget, a weight counts relative to its layer's largest and fan-in.
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
    if lwm and density is not None:
        bake_masks(network)
        overall = overall_density(network, density, recipe.finetune.scope)
        attach_masks(network, density, scope=recipe.finetune.scope)
        start = _Start(network, "finetune", "lwm", overall, source.sha256)
    else:
        if not score_masks(network):
            attach_masks(network, source.header.density, kept=source.header.kept)
        start = _Start(network, "finetune", "finetune", source.header.density, source.sha256)
    return _run(recipe, recipe.finetune, start, out, resume, machine)


def _run(
    recipe: Recipe, phase: PhaseRecipe, start: _Start, out: Path, resume: bool, machine: Machine
) -> dict[str, Any]:
    """Run one phase in its folder, or find it done."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("training runs in one process; start it without torchrun, which is for attack and certify")
    if OBJECTIVES[recipe.objective_of(_section(start)).name].passes_bounds:
        program_of(start.network)  # an unsupported layer is refused before the run folder is made
    device = pick_device(machine.device)
    images = load_training_images(recipe.data, machine.data_dir, seed=recipe.seed, download=machine.download)
    run = open_run(out, _run_header(recipe, start, device, images), resume=resume)
    if run.is_complete:
        (out / STATE_FILE).unlink(missing_ok=True)  # it may have been killed between finishing and tidying up
        say(f"{out} is complete already")
        return run.summary()
    if start.masks is not None:
        generator = stream(recipe.seed, start.label, "scores")
        start.masks.attach(start.network, _one_batch(recipe, phase, start, images.labelled), generator)
    set_phase(start.network, start.phase, freeze_batch_norm=bool(getattr(phase, "freeze_batch_norm", False)))
    job = Job(
        title=f"{start.label} {recipe.name}" + (f" density {start.density:g}" if start.density < 1 else ""),
        phase=start.label,
        seed=recipe.seed,
        recipe=phase,
        objective=recipe.objective_of(_section(start)),
        batches=TrainingBatches(
            images.labelled,
            images.pseudo,
            recipe.data,
            batch_size=phase.batch_size,
            key=(recipe.seed, start.label),
            device=device,
        ),
        validation=images.validation.to(device),
        network=start.network.to(device),
        device=device,
    )
    best, selection = run_epochs(job, out)
    return _conclude(run, recipe, start, best, selection)


def _one_batch(recipe: Recipe, phase: PhaseRecipe, start: _Start, training: ImageSource) -> tuple[Tensor, Tensor]:
    """Random training images for scores that need some, as they are: pixels and labels."""
    order = torch.randperm(len(training), generator=stream(recipe.seed, start.label, "scores batch"))
    chosen = order[: phase.batch_size]
    return pixels(training.take(chosen)), training.labels[chosen]


def _conclude(
    run: RunFolder, recipe: Recipe, start: _Start, best: dict[str, Tensor], selection: Selection
) -> dict[str, Any]:
    """Write the checkpoint of the best epoch and the summary; the state to resume from is not needed any more."""
    dataset = DATASETS[recipe.data.name]
    load_state(start.network, best, "the best epoch")
    budgets = _budgets(start.network)
    counts = {name: layer["kept"] for name, layer in budgets.items()}
    even = not counts or counts == kept_counts(start.network, start.density)
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
        objective=recipe.objective_of(_section(start)),
        recipe=recipe.name,
        recipe_sha256=sha256_of_values(recipe.of_phase(_section(start))),
        seed=recipe.seed,
        selection=selection,
        parent=start.parent,
        kept=None if even else counts,
    )
    if header.layout == "dense":
        bake_masks(start.network)
    sha256 = save_checkpoint(run.path / CHECKPOINT_FILE, state_of(start.network), header)
    summary: dict[str, Any] = {
        "n": selection.images,
        "checkpoint_sha256": sha256,
        "selection": selection.model_dump(mode="json"),
        "metrics": {f"validation_{selection.metric}": {"value": selection.value}},
    }
    if budgets:
        kept, weights = (sum(layer[key] for layer in budgets.values()) for key in ("kept", "weights"))
        summary["density"] = {"global": kept / weights, "layers": budgets}
    run.finish(summary)
    (run.path / STATE_FILE).unlink(missing_ok=True)
    say(
        f"{run.path / CHECKPOINT_FILE}: epoch {selection.epoch}, {selection.metric} {selection.value:.3f} on "
        f"{selection.images} held-out images; history in {run.path / METRICS_FILE}"
    )
    return run.summary()


def _budgets(network: nn.Module) -> dict[str, dict[str, int]]:
    """Weights of every masked layer, and how many of them its mask keeps."""
    return {
        name: {"weights": mask.mask.numel(), "kept": int(mask.mask.count_nonzero())}
        for name, mask in score_masks(network).items()
    }


def _run_header(recipe: Recipe, start: _Start, device: torch.device, images: TrainingImages) -> dict[str, Any]:
    """What `run.json` says of a training run."""
    return {
        "command": _section(start),
        "phase": start.label,
        "recipe": recipe.of_phase(_section(start)),
        "density": start.density,
        "parent": start.parent,
        "dataset": {"name": recipe.data.name, **images.counts()},
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
