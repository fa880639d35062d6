"""The start of a training phase: its network, initialised and with the masks that it begins with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydrabench.bounds import keep_widths
from hydrabench.checkpoints import HeldOut, PhaseLabel
from hydrabench.checkpoints.own_code import UsedCode
from hydrabench.data import ImageSource, TrainingImages, pixels
from hydrabench.masking import INITIAL_DENSITY, SCORE_INITS, Phase, Scope, attach_masks, rescale_weights, set_phase
from hydrabench.recipes import PhaseRecipe, Recipe, SectionName, TrainRecipe
from hydrabench.runtime import World, stream
from hydrabench.workflows.run_options import RunOptions


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

    @property
    def section(self) -> SectionName:
        """The section of the recipe, and the command, that the phase belongs to."""
        return "finetune" if self.label == "lwm" else self.label


def prepare(
    recipe: Recipe, phase: PhaseRecipe, start: Start, images: TrainingImages, options: RunOptions, world: World
) -> None:
    """Initialise the network, attach its masks and set its phase, in place."""
    if fills(phase):
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


def fills(phase: PhaseRecipe) -> bool:
    """Return whether a phase draws its initial weights for interval bounds."""
    return isinstance(phase, TrainRecipe) and phase.initialization == "ibp"


def _one_batch(
    recipe: Recipe, phase: PhaseRecipe, start: Start, training: ImageSource, key: str
) -> tuple[Tensor, Tensor]:
    """Return a batch of training images drawn by the stream `key`, not augmented: pixels and labels."""
    order = torch.randperm(len(training), generator=stream(recipe.seed, start.label, key))
    chosen = order[: phase.batch_size]
    return pixels(training.take(chosen)), training.labels[chosen]
