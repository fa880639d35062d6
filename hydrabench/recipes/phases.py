"""The sections `train:`, `prune:` and `finetune:` of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hydrabench.config.fields import Densities, Section
from hydrabench.recipes.choice import ObjectiveSection

Share = Annotated[float, Field(gt=0, le=1)]
# How importance scores start: the keys of `SCORE_INITS` in hydrabench.masking.
Scores = Literal["scaled", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "snip"]


class PhaseRecipe(Section):
    """Settings that the three phases have in common."""

    objective: ObjectiveSection | None = None  # None: the recipe's own
    epochs: PositiveInt  # passes over the training images
    batch_size: PositiveInt = 128  # of one optimizer step, over all processes and micro-batches
    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 1e-4
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd and rmsprop; adam ignores it
    nesterov: bool = False  # of sgd
    schedule: Literal["cosine", "constant", "step", "cosine-epoch", "milestones"] = "cosine"
    warmup_epochs: NonNegativeInt = 0  # the first epochs, over which the learning rate grows linearly to lr
    milestones: dict[PositiveInt, Share] = Field(default_factory=dict)  # for schedule milestones: epoch -> factor
    gradient_norm: PositiveFloat | None = None  # longer gradients are cut to this L2 norm
    ema_decay: float = Field(0.0, ge=0, lt=1)  # decay of averaged weights, which are validated and kept; 0: none
    epsilon_ramp_epochs: PositiveInt = 1  # the radius grows over these; 1: full from the first step
    epsilon_schedule: Literal["linear", "smoothed", "epoch"] = "linear"  # how it grows
    sync_batch_norm: bool = False  # batch statistics over the images of all processes; GPUs only

    population_statistics: bool = False  # batch norm: after an epoch, the average over its batches, as in CTBench

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: ramp and warm-up take place within the epochs; Nesterov momentum needs SGD."""
        if self.epsilon_ramp_epochs > self.epochs:
            yield (
                f"epsilon_ramp_epochs {self.epsilon_ramp_epochs} exceeds epochs {self.epochs}, which it is part of; "
                "lower it, too, or raise epochs"
            )
        if self.warmup_epochs >= self.epochs:
            yield (
                f"warmup_epochs {self.warmup_epochs} are part of epochs {self.epochs} and must leave one; raise epochs"
            )
        if self.schedule == "cosine-epoch" and self.epochs - self.warmup_epochs == 1:
            yield "cosine-epoch has learning rate 0 throughout a single epoch; take schedule cosine"
        if (self.schedule == "milestones") != bool(self.milestones):
            yield (
                f"schedule {self.schedule} with milestones {self.milestones}; schedule milestones takes factors on "
                "lr by epoch, such as milestones: {120: 0.2, 140: 0.04}, and no other schedule does"
            )
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            yield f"nesterov needs optimizer sgd and a momentum above 0, got {self.optimizer} and {self.momentum:g}"


class BudgetRecipe(PhaseRecipe):
    """A phase that may choose which weights to keep.

    `scope: layer` gives every layer the density, or its own if `density` is a mapping from layer names;
    `scope: global` gives all layers one budget together.
    """

    density: Densities | None = None  # k: fraction of weights kept
    scope: Literal["layer", "global"] = "layer"

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: a global budget is one number."""
        yield from super().conflicts()
        if self.scope != "layer" and isinstance(self.density, dict):
            yield f"scope {self.scope} takes one density for all layers together, not one for each layer"


class TrainRecipe(BudgetRecipe):
    """The `train:` section. Below density 1 a sparse network is trained from scratch, with a mask that stays."""

    density: Densities = 1.0
    scores: Scores = "snip"  # what chooses the mask; snip looks at one batch, random scores give a random mask
    rescale_weights: bool = False  # multiply the initial weights by 1 / sqrt(density)
    initialization: Literal["default", "ibp"] = "default"  # the architecture's own, or weights for interval bounds

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: weights drawn for interval bounds are scaled for layers that keep all of them."""
        yield from super().conflicts()
        if self.initialization == "ibp" and (self.density != 1 or self.rescale_weights):
            yield (
                f"initialization ibp sizes weights for layers that keep all of them, got density {self.density} and "
                f"rescale_weights {str(self.rescale_weights).lower()}; train dense and prune then, or take default"
            )


class PruneRecipe(BudgetRecipe):
    """The `prune:` section. `--density` overrides the density.

    `scope: learned` gives all layers one budget together, which they share by keep rates that are learned with the
    scores (HARP, arXiv:2412.14714).
    """

    scope: Literal["layer", "global", "learned"] = "layer"  # type: ignore[assignment]
    scores: Scores = "scaled"
    freeze_batch_norm: bool = False
    initial_density: Share | None = None  # scope learned: what every layer keeps at first; None: 0.1
    budget_weight: PositiveFloat | None = None  # scope learned: of the penalty, in epoch 1, growing by it; None: 0.01
    rate_lr: PositiveFloat | None = None  # scope learned: learning rate of the keep rates; None: lr

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: weights are frozen while pruning, and averaged scores define no averaged mask."""
        yield from super().conflicts()
        if self.ema_decay:
            yield f"ema_decay averages weights, which `prune` does not train; leave it out ({self.ema_decay:g})"
        for key in ("initial_density", "budget_weight", "rate_lr"):
            if self.scope != "learned" and (value := getattr(self, key)) is not None:
                yield f"{key} {value:g} is for scope learned, not {self.scope}; leave it out"


class FinetuneRecipe(BudgetRecipe):
    """The `finetune:` section. Its density and scope are for `--lwm` only, which keeps by scaled magnitude."""
