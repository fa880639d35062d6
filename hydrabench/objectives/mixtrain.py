"""MixTrain: cross entropy, plus the certified loss of a few images of some minibatches, with a growing weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import TRAINING
from hydrabench.objectives.certified import certified
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class MixtrainSettings(ObjectiveSettings):
    """MixTrain (Wang et al. 2018): cross entropy + weight · sound loss of `samples` images of a minibatch.

    A minibatch gets the sound loss with `probability`. Its weight starts at `weight` and grows by the factor
    `weight_growth` every `weight_every` epochs after the radius has reached epsilon, up to `weight_max`.
    """

    name: Literal["mixtrain"]
    epsilon: Radius
    samples: PositiveInt
    probability: float = Field(0.8, ge=0, le=1)
    weight: PositiveFloat = 0.1
    weight_growth: float = Field(2.5, ge=1)
    weight_every: PositiveInt = 5
    weight_max: PositiveFloat = 50.0

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: the weight must not start above where it ends."""
        if self.weight > self.weight_max:
            yield f"weight {self.weight:g} exceeds weight_max {self.weight_max:g}"


def mixtrain_loss(network: nn.Module, x: Tensor, y: Tensor, settings: MixtrainSettings, step: TrainingStep) -> StepLoss:
    """CE(f(x), y), and sometimes weight · mean CE(-symbolic lower bounds of f_y - f_j, y) of a sample.

    A minibatch has a sample with `settings.probability`. It is `settings.samples` different images of the whole
    batch (the original may draw one twice); where only some of them are at hand, the totals of the parts still
    add up to that of the batch. It is too small for statistics of its own, so batch norm takes the running
    ones in its bounds.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Wang et al., arXiv:1811.02625, "stochastic robust approximation" and "dynamic mixed training";
        HYDRA's code.
    """
    from torch.nn import functional

    from hydrabench.bounds import symbolic_class_margins

    logits = network(x)
    total = functional.cross_entropy(logits, y)
    sample = _sample(x, settings, step)
    if len(sample):
        network.eval()
        lower = symbolic_class_margins(network, x[sample], y[sample], step.epsilon)
        network.train()
        summed = functional.cross_entropy(-lower, y[sample], reduction="sum")
        share = step.total(x) / len(x) / min(settings.samples, step.total(x))
        total = total + certified_weight(step.epoch, settings, ramp_epochs=step.ramp_epochs) * share * summed
    return StepLoss(total, logits)


def certified_weight(epoch: int, settings: MixtrainSettings, *, ramp_epochs: int) -> float:
    """Weight of the certified loss: `weight` · `weight_growth` ^ floor(max(epoch - S, 0) / `weight_every`), bounded.

    Args:
        epoch: 0-based.
        ramp_epochs: >= 1; S, the first epoch at the full radius (`schedule_length` of the original), is one less.
    Returns: a weight, at most `weight_max`.
    Source: HYDRA's code; its S = 10 is our 11 ramp epochs.
    """
    growths = max(epoch - (ramp_epochs - 1), 0) // settings.weight_every
    try:
        return min(settings.weight * settings.weight_growth**growths, settings.weight_max)
    except OverflowError:
        return settings.weight_max


def _sample(x: Tensor, settings: MixtrainSettings, step: TrainingStep) -> Tensor:
    """Return the indices, among the images at hand, of those that get the certified loss.

    The sample is drawn from the whole batch with the step's generator, so that all micro-batches draw the same one.
    """
    import torch

    whole = step.total(x)
    happens = torch.rand((), generator=step.generator) < settings.probability
    chosen = torch.zeros(whole, dtype=torch.bool)
    chosen[torch.randperm(whole, generator=step.generator)[: settings.samples]] = happens
    return step.mine(chosen).nonzero()[:, 0].to(x.device)


def mixtrain_verdicts(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: MixtrainSettings,  # noqa: ARG001
    step: TrainingStep,
) -> Tensor:
    """Return which images symbolic intervals certify at the full radius, (B,), bool."""
    import torch

    from hydrabench.bounds import symbolic_class_margins

    with torch.no_grad():
        return certified(symbolic_class_margins(network, x, y, step.epsilon), y)


def mixtrain_passes(settings: MixtrainSettings, work: Workload) -> float:
    """A pass with all gradients, and the symbolic bounds of the sampled images."""
    return TRAINING + TRAINING * settings.probability * settings.samples / work.batch * work.symbolic


MIXTRAIN = Objective(
    MixtrainSettings, mixtrain_loss, mixtrain_verdicts, "verified_accuracy", mixtrain_passes, uses_bounds=True
)
