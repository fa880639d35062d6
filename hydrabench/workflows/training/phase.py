"""One training phase in its run folder: checks before it, its start, its loop, its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydrabench.bounds import program_of
from hydrabench.data import TrainingBatches, TrainingImages, load_training_images
from hydrabench.errors import ConfigError, lookup
from hydrabench.objectives import OBJECTIVES
from hydrabench.recipes import PhaseRecipe, Recipe, SectionName
from hydrabench.runtime import TRAINING_PRECISIONS, World, environment, pick_device
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training.held_out import require_held_out
from hydrabench.workflows.training.loop import DivergedError, Loop, PhaseJob
from hydrabench.workflows.training.outcome import conclude, write_network
from hydrabench.workflows.training.resume import STATE_FILE, note_environment, open_training
from hydrabench.workflows.training.start import Start, fills, prepare
from hydrabench.workflows.training.tensorboard import require_tensorboard
from hydrabench.workflows.writer import one_writer


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
    check_phase(recipe, start.section, start.network, device=device, options=options, world=world)
    images = _images(recipe, options, world)
    require_held_out(start.held_out, recipe, images.validation, options)
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
    prepare(recipe, phase, start, images, options, world)
    try:
        loop = Loop(_job(recipe, phase, start, images, options, world), out)
        world.on_main(lambda: note_environment(run, environment(device), loop.done.epochs))
        trained = loop.run()
    except DivergedError as error:
        if error.trained and world.is_main:
            write_network(run, recipe, start, error.trained, images.validation)
        raise
    return world.on_main(lambda: conclude(run, recipe, start, trained, images.validation))


def _job(
    recipe: Recipe, phase: PhaseRecipe, start: Start, images: TrainingImages, options: RunOptions, world: World
) -> PhaseJob:
    """Put the network and its images on the device, and name all that the loop needs."""
    device = pick_device(options.device)
    key = (recipe.seed, start.label)
    return PhaseJob(
        title=f"{start.label} {recipe.name}" + (f" density {start.density:g}" if start.density < 1 else ""),
        phase=start.label,
        seed=recipe.seed,
        recipe=phase,
        objective=recipe.objective_of(start.section),
        batches=TrainingBatches(
            images.labelled, images.pseudo, recipe.data, batch_size=phase.batch_size, key=key, device=device
        ),
        validation=images.validation.to(device),
        network=start.network.to(device),
        device=device,
        options=options,
        world=world,
    )


def check_phase(
    recipe: Recipe, section: SectionName, network: nn.Module, *, device: torch.device, options: RunOptions, world: World
) -> None:
    """Raise for everything that cannot work, before the run folder is made.

    Args:
        section: of the recipe, which has it. network: the recipe's; its weights do not matter.
    Raises: ConfigError naming the option or key; UnsupportedLayerError naming a layer that the bounds of the objective
        cannot pass; CheckpointError for a file that the objective needs.
    """
    lookup("precision", TRAINING_PRECISIONS, options.precision)
    if options.micro_batch is not None and options.micro_batch < 1:
        raise ConfigError(f"--micro-batch {options.micro_batch}: give 1 or more images")
    if options.tensorboard:
        require_tensorboard()
    phase: PhaseRecipe = getattr(recipe, section)
    settings = recipe.objective_of(section)
    objective, bounds = settings.name, OBJECTIVES[settings.name].uses_bounds
    OBJECTIVES[objective].prepare(settings)
    if bounds or fills(phase):
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


def _run_header(recipe: Recipe, start: Start, options: RunOptions) -> dict[str, Any]:
    """Return the header in `run.json` of a training run, without the data and the machine itself."""
    return {
        "command": start.section,
        "phase": start.label,
        "recipe": recipe.of_phase(start.section),
        "density": start.density,
        "parent": start.parent,
        "precision": options.precision,
        "micro_batch": options.micro_batch,
        "compile": options.compile,
        "channels_last": options.channels_last,
        **({"code": start.code.record.model_dump(mode="json")} if start.code else {}),
    }
