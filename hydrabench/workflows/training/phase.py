"""One training phase in its run folder: checks before it, preparing its network, writing its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.bounds import keep_widths, program_of
from hydrabench.checkpoints import Header, HeldOut, PhaseLabel, PluginFile, load_state, save_checkpoint, stored_state
from hydrabench.checkpoints.own_code import UsedCode
from hydrabench.data import ImageSource, TrainingBatches, TrainingImages, load_training_images, pixels
from hydrabench.errors import ConfigError, lookup
from hydrabench.ledger import RunFolder
from hydrabench.masking import (
    INITIAL_DENSITY,
    SCORE_INITS,
    Phase,
    Scope,
    attach_masks,
    bake_masks,
    kept_counts,
    rescale_weights,
    score_masks,
    set_phase,
)
from hydrabench.models.own_code import short_spec
from hydrabench.objectives import OBJECTIVES
from hydrabench.plugins import loaded
from hydrabench.recipes import PhaseRecipe, Recipe, SectionName, TrainRecipe, sha256_of_values
from hydrabench.runtime import TRAINING_PRECISIONS, World, environment, pick_device, stream
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training.held_out import held_out_of, require_held_out
from hydrabench.workflows.training.loop import DivergedError, Loop, PhaseJob, Trained
from hydrabench.workflows.training.resume import METRICS_FILE, STATE_FILE, note_environment, open_training
from hydrabench.workflows.training.tensorboard import require_tensorboard
from hydrabench.workflows.writer import one_writer

CHECKPOINT_FILE = "checkpoint.safetensors"
OTHER_FILE = "checkpoint_{layout}.safetensors"


@dataclass(frozen=True)
class Masks:
    """The masks that a phase begins with; the recipe's keys say what they mean."""

    density: float | dict[str, float]
    scope: Scope
    scores: str
    rescale_weights: bool = False
    initial_density: float = INITIAL_DENSITY

    def attach(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
        """Attach them to a network without masks."""
        if self.rescale_weights:
            rescale_weights(network, self.density)
        scores = SCORE_INITS[self.scores](network, generator, batch)
        attach_masks(network, self.density, scope=self.scope, scores=scores, initial_density=self.initial_density)


@dataclass(frozen=True)
class Start:
    """The starting point of a phase.

    masks: to be attached first; None if the network has its masks, or needs none.
    code: what built the network, if it is not of the registry.
    held_out: of the checkpoint that it starts from, if that says it.
    """

    network: nn.Module
    phase: Phase
    label: PhaseLabel
    density: float
    parent: str | None
    masks: Masks | None = None
    code: UsedCode | None = None
    held_out: HeldOut | None = None


def run_phase(
    recipe: Recipe, phase: PhaseRecipe, start: Start, out: Path, resume: bool, options: RunOptions
) -> dict[str, Any]:
    """Run one phase in its folder, which no other process may write meanwhile, or find it done."""
    world = World()
    with one_writer(out, world):
        return _run_phase(recipe, phase, start, out, resume, options, world)


def _run_phase(
    recipe: Recipe, phase: PhaseRecipe, start: Start, out: Path, resume: bool, options: RunOptions, world: World
) -> dict[str, Any]:
    device = pick_device(options.device)
    check_phase(recipe, _section(start), start.network, device=device, options=options, world=world)
    images = _images(recipe, options, world)
    require_held_out(start.held_out, recipe, images.validation, options)
    batches = TrainingBatches(
        images.labelled,
        images.pseudo,
        recipe.data,
        batch_size=phase.batch_size,
        key=(recipe.seed, start.label),
        device=device,
    )
    header = _run_header(recipe, start, options) | {
        "dataset": {"name": recipe.data.name, **images.counts()},
        "world_size": world.size,
    }
    run = world.on_main(lambda: open_training(out, header, images, resume=resume))
    if run.is_complete:
        if world.is_main:
            (out / STATE_FILE).unlink(missing_ok=True)  # left if the process was killed right after finishing
            say(f"{out} is complete already")
        return run.summary()
    _prepare(recipe, phase, start, images, options, world)
    job = PhaseJob(
        title=f"{start.label} {recipe.name}" + (f" density {start.density:g}" if start.density < 1 else ""),
        phase=start.label,
        seed=recipe.seed,
        recipe=phase,
        objective=recipe.objective_of(_section(start)),
        batches=batches,
        validation=images.validation.to(device),
        network=start.network.to(device),
        device=device,
        options=options,
        world=world,
    )
    try:
        loop = Loop(job, out)
        world.on_main(lambda: note_environment(run, environment(device), loop.done.epochs))
        trained = loop.run()
    except DivergedError as error:
        if error.trained and world.is_main:
            _write_network(run, recipe, start, error.trained, images.validation)
        raise
    return world.on_main(lambda: _conclude(run, recipe, start, trained, images.validation))


def check_phase(
    recipe: Recipe, section: SectionName, network: nn.Module, *, device: torch.device, options: RunOptions, world: World
) -> None:
    """Raise for everything that cannot work, before the run folder is made.

    Args:
        section: of the recipe, which has it. network: the recipe's; its weights do not matter.
    Raises: ConfigError naming the option or key; UnsupportedLayerError naming a layer that the bounds of the objective
        cannot pass.
    """
    lookup("precision", TRAINING_PRECISIONS, options.precision)
    if options.micro_batch is not None and options.micro_batch < 1:
        raise ConfigError(f"--micro-batch {options.micro_batch}: give 1 or more images")
    if options.tensorboard:
        require_tensorboard()
    phase: PhaseRecipe = getattr(recipe, section)
    objective = recipe.objective_of(section).name
    bounds = OBJECTIVES[objective].uses_bounds
    if bounds or _fills(phase):
        program_of(network)
    if phase.sync_batch_norm and world.size > 1 and (bounds or device.type == "cpu"):
        reason = f"no bound can pass it, and {objective} needs one" if bounds else "it needs GPUs"
        raise ConfigError(f"{section}.sync_batch_norm: {reason}; set it to false")


def _images(recipe: Recipe, options: RunOptions, world: World) -> TrainingImages:
    """Load the training images. One process downloads and decodes them first, then the others read the cache."""

    def load() -> TrainingImages:
        return load_training_images(
            recipe.data, options.data_dir, seed=recipe.seed, download=options.download, images=options.images
        )

    if world.size > 1:
        world.on_main(lambda: len(load().labelled))
    return load()


def _prepare(
    recipe: Recipe, phase: PhaseRecipe, start: Start, images: TrainingImages, options: RunOptions, world: World
) -> None:
    """Initialise the network, attach its masks and set its phase, in place."""
    if _fills(phase):
        pictures, _ = _one_batch(recipe, phase, start, images.labelled, "initialization batch")
        keep_widths(start.network, pictures, stream(recipe.seed, start.label, "initialization"))
    if start.masks is not None:
        generator = stream(recipe.seed, start.label, "scores")
        batch = _one_batch(recipe, phase, start, images.labelled, "scores batch")
        start.masks.attach(start.network, batch, generator)
    set_phase(start.network, start.phase, freeze_batch_norm=bool(getattr(phase, "freeze_batch_norm", False)))
    if phase.sync_batch_norm and world.size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(start.network)  # type: ignore[no-untyped-call]
    if options.channels_last:
        start.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fills(phase: PhaseRecipe) -> bool:
    """Return whether a phase draws its initial weights for interval bounds."""
    return isinstance(phase, TrainRecipe) and phase.initialization == "ibp"


def _one_batch(
    recipe: Recipe, phase: PhaseRecipe, start: Start, training: ImageSource, key: str
) -> tuple[Tensor, Tensor]:
    """Return a batch of training images drawn by the stream `key`, not augmented: pixels and labels."""
    order = torch.randperm(len(training), generator=stream(recipe.seed, start.label, key))
    chosen = order[: phase.batch_size]
    return pixels(training.take(chosen)), training.labels[chosen]


def _conclude(
    run: RunFolder, recipe: Recipe, start: Start, trained: Trained, validation: ImageSource
) -> dict[str, Any]:
    """Write the checkpoint of the best epoch and the summary; the state to resume from is not needed any more."""
    sha256, budgets = _write_network(run, recipe, start, trained, validation)
    selection = trained.selection
    summary: dict[str, Any] = {
        "n": selection.images,
        "checkpoint_sha256": sha256,
        "selection": selection.model_dump(mode="json"),
        "metrics": {f"validation_{selection.metric}": {"value": selection.value}},
    }
    if budgets:
        kept, weights = (sum(layer[key] for layer in budgets.values()) for key in ("kept", "weights"))
        summary["density"] = {"global": kept / weights, "layers": budgets}
    if trained.micro_batch is not None:
        summary["micro_batch"] = trained.micro_batch
    run.finish(summary)
    (run.path / STATE_FILE).unlink(missing_ok=True)
    say(
        f"{run.path / CHECKPOINT_FILE}: epoch {selection.epoch}, {selection.metric} {selection.value:.3f} on "
        f"{selection.images} held-out images; history in {run.path / METRICS_FILE}"
    )
    return run.summary()


def _write_network(
    run: RunFolder, recipe: Recipe, start: Start, trained: Trained, validation: ImageSource
) -> tuple[str, dict[str, dict[str, int]]]:
    """Write the checkpoint of the best epoch; return its SHA-256 and what the masks of its layers keep.

    A masked network is written in both layouts: with its scores and masks, and with pruned weights at zero. The one
    that the next step starts from is `CHECKPOINT_FILE`, the other lies beside it under its layout's name.
    """
    load_state(start.network, trained.tensors, "the best epoch")
    budgets = _budgets(start.network)
    counts = {name: layer["kept"] for name, layer in budgets.items()}
    even = not counts or counts == kept_counts(start.network, start.density)
    header = Header(
        schema="hydrabench.checkpoint/1",
        layout="masked" if start.label == "prune" else "dense",
        phase=start.label,
        arch=short_spec(recipe.network().arch),
        dataset=recipe.data.name,
        shape=validation.shape,
        num_classes=validation.num_classes,
        normalization=recipe.network().normalization,
        density=start.density,
        objective=recipe.objective_of(_section(start)).plain(),
        recipe=recipe.name,
        recipe_sha256=sha256_of_values(recipe.of_phase(_section(start))),
        seed=recipe.seed,
        selection=trained.selection,
        parent=start.parent,
        kept=None if even else counts,
        plugins=tuple(PluginFile.model_validate(plugin) for plugin in loaded()),
        code=start.code.record if start.code else None,
        held_out=held_out_of(recipe, validation),
    )
    if start.code:
        start.code.keep_in(run.path)
    hashes = {}
    for layout in ("masked", "dense") if budgets else ("dense",):  # in this order: masks are gone once they are baked
        if layout == "dense":
            bake_masks(start.network)
        name = CHECKPOINT_FILE if layout == header.layout else OTHER_FILE.format(layout=layout)
        described = header.model_copy(update={"layout": layout})
        hashes[layout] = save_checkpoint(run.path / name, stored_state(start.network), described)
    return hashes[header.layout], budgets


def _budgets(network: nn.Module) -> dict[str, dict[str, int]]:
    """Weights of every masked layer, and how many of them its mask keeps."""
    return {
        name: {"weights": mask.mask.numel(), "kept": int(mask.mask.count_nonzero())}
        for name, mask in score_masks(network).items()
    }


def _run_header(recipe: Recipe, start: Start, options: RunOptions) -> dict[str, Any]:
    """Return the header in `run.json` of a training run, without the data and the machine itself."""
    return {
        "command": _section(start),
        "phase": start.label,
        "recipe": recipe.of_phase(_section(start)),
        "density": start.density,
        "parent": start.parent,
        "precision": options.precision,
        "micro_batch": options.micro_batch,
        "compile": options.compile,
        "channels_last": options.channels_last,
        **({"code": start.code.record.model_dump(mode="json")} if start.code else {}),
    }


def _section(start: Start) -> SectionName:
    """The section of the recipe, and the command, that a phase belongs to."""
    return "finetune" if start.label == "lwm" else start.label
