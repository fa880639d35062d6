"""Free adversarial training: one backward pass updates the network and a perturbation that outlives the minibatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.pgd import survivors
from hydrabench.objectives.step import StepLoss, TrainingStep
from hydrabench.threat import PIXEL_MAX, PIXEL_MIN

if TYPE_CHECKING:
    from torch import Tensor, nn


PERTURBATION = "perturbation"  # its key in the memory of a step


class FreeSettings(ObjectiveSettings):
    """Free adversarial training (Shafahi et al. 2019): every minibatch `repeats` times in a row."""

    name: Literal["free"]
    epsilon: Radius
    repeats: PositiveInt = 4


def free_loss(network: nn.Module, x: Tensor, y: Tensor, settings: FreeSettings, step: TrainingStep) -> StepLoss:  # noqa: ARG001
    """CE(f(x + δ), y), whose gradient also moves δ by a signed step of the radius, in the L∞ ball.

    δ has a row for each place in the batch and stays from minibatch to minibatch and from epoch to epoch,
    as the authors have it; HYDRA's code starts each epoch with zeros. The loop trains `settings.repeats`
    times in a row on a minibatch. The clean images do not pass through the network: the logits are those of x + δ.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Shafahi et al., arXiv:1904.12843, algorithm 1.
    """
    import torch
    from torch.nn import functional

    from hydrabench.attacks import steepest

    rows = step.mine(_perturbation(x, step)[: step.total(x)])
    delta = rows.clone().requires_grad_()
    logits = network((x + delta).clamp(PIXEL_MIN, PIXEL_MAX))

    def move() -> None:
        assert delta.grad is not None, "called after backward"
        with torch.no_grad():
            rows.copy_(steepest(delta, delta.grad, step.epsilon, norm="linf").clamp(-step.epsilon, step.epsilon))

    return StepLoss(functional.cross_entropy(logits, y), logits, after=move)


def _perturbation(x: Tensor, step: TrainingStep) -> Tensor:
    """Return the perturbation kept from the last minibatch, with zeros up to the size of this batch."""
    import torch

    kept = step.memory.get(PERTURBATION, x.new_zeros(0, *x.shape[1:])).to(x)
    missing = max(0, step.total(x) - len(kept))
    step.memory[PERTURBATION] = torch.cat([kept, x.new_zeros(missing, *x.shape[1:])]) if missing else kept
    return step.memory[PERTURBATION]


def free_repeats(settings: FreeSettings) -> int:
    """Number of steps in a row on each minibatch, m."""
    return settings.repeats


def free_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: FreeSettings, step: TrainingStep) -> Tensor:
    """Return which images are right under PGD-10 with steps of a quarter of the radius, (B,), bool."""
    return survivors(network, x, y, step, norm="linf", step_size=float(settings.epsilon / 4))


def free_passes(settings: FreeSettings, work: Workload) -> float:  # noqa: ARG001
    """A pass with all gradients each time that a minibatch is repeated."""
    return TRAINING * settings.repeats


FREE = Objective(FreeSettings, free_loss, free_verdicts, "robust_accuracy", free_passes, repeats=free_repeats)
