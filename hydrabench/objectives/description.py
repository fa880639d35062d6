"""The description of an objective: its settings, its loss, what a step costs, how its best epoch is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydrabench.config.fields import Section
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class ObjectiveSettings(Section):
    """Base of the settings of an objective, an `objective:` section.

    A subclass narrows `name` to its key in `OBJECTIVES`: `name: Literal["trades"]`. Three names mean the same in all:
    `epsilon` is the radius, `norm` its norm and `sigma` the noise that the network is trained for, which evaluations
    inherit. `epsilon` grows by the schedule of the phase.
    """

    name: str

    @property
    def full_radius(self) -> float:
        """The radius at the end of the ramp, in pixel units; 0 for an objective without one."""
        return float(getattr(self, "epsilon", 0))


@dataclass(frozen=True)
class Workload:
    """The sizes that the cost of a training step depends on.

    batch: images of a step. ramp: share of the steps at which the radius still grows, in [0, 1]. classes: outputs.
    symbolic: how many forward passes the symbolic bounds of one image take, if every neuron is bounded.
    """

    batch: int
    ramp: float
    classes: int
    symbolic: float


def once(settings: Any) -> int:  # noqa: ARG001 - every objective has the same signature
    """Number of steps in a row that most objectives train on each minibatch."""
    return 1


def nothing(settings: Any) -> None:
    """Do nothing: most objectives need no files."""


@dataclass(frozen=True)
class Objective:
    """A training objective; an entry of `OBJECTIVES`. Its functions are given its settings.

    settings: model of its `objective:` section.
    loss: what a step minimises, for images (B, C, H, W) in [0, 1] and labels (B,).
    verdicts: which validation images count for the choice of the best epoch, (B,) bool; at the full radius.
    metric: the name of their fraction.
    passes: forward passes for each image that a step is given.
    uses_bounds: whether bounds go through the network, so that every operation must have rules.
    repeats: how often in a row its settings train on each minibatch.
    prepare: opens the files that its settings name; called before a run folder is made.
    """

    settings: type[ObjectiveSettings]
    loss: Callable[[nn.Module, Tensor, Tensor, Any, TrainingStep], StepLoss]
    verdicts: Callable[[nn.Module, Tensor, Tensor, Any, TrainingStep], Tensor]
    metric: str
    passes: Callable[[Any, Workload], float]
    uses_bounds: bool = False
    repeats: Callable[[Any], int] = once
    prepare: Callable[[Any], None] = nothing
