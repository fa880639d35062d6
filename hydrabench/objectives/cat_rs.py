"""CAT-RS: easy noise only for images that are hard to certify, worst-case noise only for those that are easy."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.fields import Noise
from hydrabench.config.passes import INPUT_GRADIENT, TRAINING
from hydrabench.errors import ConfigError
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.stability import smoothed_verdicts
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class CatRsSettings(ObjectiveSettings):
    """CAT-RS (Jeong et al. 2023): cross entropy of the least noisy copies, and divergence of worst-case noise.

    epsilon: L2 radius, in pixel units, within which an attack moves each noise; it grows by the schedule of the phase.
    weight: of the divergence (the paper's lambda). steps: of the attack, each of length 2 epsilon / steps. copies:
    noisy copies of each image (M).
    teacher: a checkpoint or zoo id of a network trained under Gaussian noise; the fractions of its votes are the target
    of the divergence. None: the votes of the network itself among the copies. votes, teacher_sigma: of the teacher,
    how many for an image in each step, and under which noise.

    The authors store 10,000 votes of a teacher (Gaussian training at sigma 0.25, whatever the sigma of the training)
    for each image before it is cropped and flipped. Here a teacher votes in every step on the images of that step. The
    divergence is linear in the fractions, up to a term without gradient, so few votes have the same mean gradient at
    given noise.
    """

    name: Literal["cat-rs"]
    norm: Literal["l2"] = "l2"
    epsilon: Radius
    sigma: Noise
    weight: NonNegativeFloat = 1.0
    steps: PositiveInt = 4
    copies: PositiveInt = 4
    teacher: str | None = None
    votes: PositiveInt = 20
    teacher_sigma: Noise = 0.25

    @cached_property
    def judge(self) -> nn.Module | None:
        """The teacher in eval mode, without gradients; None if there is none. Raises: as `open_ref`."""
        if self.teacher is None:
            return None
        from hydrabench.checkpoints import open_ref

        return open_ref(self.teacher).baked().eval().requires_grad_(False)


def cat_rs_loss(network: nn.Module, x: Tensor, y: Tensor, settings: CatRsSettings, step: TrainingStep) -> StepLoss:
    """Return the mean of (the K least of the M cross entropies) / M + lambda · [K = M] max_j KL(t ‖ s(x + d*_j)).

    The M cross entropies are those of the noisy copies x + d_j. K follows the binomial law of M trials whose
    probability is the fraction of the copies that the network classifies right, and is at least 1. t holds the votes
    of the teacher, as fractions; d*_j raises the mean divergence from t within `epsilon` of d_j, see `worst_noise`.
    The logits are those of the first copy.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Raises: ConfigError if the teacher knows other classes.
    Source: Jeong et al. (2023), arXiv:2212.09000, algorithm 1, and github.com/alinlab/smoothing-catrs.
    """
    import torch
    from torch.nn import functional

    from hydrabench.objectives.noise import noises, noisy_logits

    noise = noises(x, step, copies=settings.copies, sigma=settings.sigma)
    logits = noisy_logits(network, x, noise)
    own = _fractions(logits.detach())
    easy = own.gather(1, y[:, None])
    tried = step.mine(torch.rand(step.total(x), settings.copies, generator=step.generator)).to(own)
    counted = (tried < easy).sum(1).clamp_min(1)  # K: binomial with the probability `easy`
    losses = functional.cross_entropy(logits.flatten(0, 1), y.repeat(settings.copies), reduction="none")
    least = losses.view(settings.copies, -1).sort(0).values
    among = torch.arange(settings.copies, device=x.device)[:, None] < counted
    target = _votes(x, settings, step, own)
    moved = worst_noise(network, x, target, noise, epsilon=step.epsilon, steps=settings.steps)
    apart = divergences(noisy_logits(network, x, moved), target).max(0).values
    sure = (counted == settings.copies).to(apart)
    return StepLoss(((least * among).mean(0) + settings.weight * sure * apart).mean(), logits[0])


def worst_noise(network: nn.Module, x: Tensor, target: Tensor, noise: Tensor, *, epsilon: float, steps: int) -> Tensor:
    """Move every noise within L2 distance `epsilon` so that the divergences from the target rise, in `steps` steps.

    After each step of length 2 epsilon / steps the noise is projected to its ball, then shifted and scaled to the mean
    and the root mean square that it started with, as noise has them; pixels are not clamped. The network runs in eval
    mode and is left in train mode; its parameters get no gradients.

    Args:
        x: images, (B, C, H, W), in [0, 1]. target: probabilities of the classes, (B, K). noise: (M, B, C, H, W).
    Returns: the noise that is found, shaped as `noise`, detached.
    Source: the authors' code (github.com/alinlab/smoothing-catrs, train_catrs.py, KL_PGD).
    """
    import torch

    from hydrabench.objectives.noise import noisy_logits, unit

    start = noise.flatten(0, 1)
    mean, size = _moments(start)
    network.eval()
    here = start
    for _ in range(steps):
        here = here.detach().requires_grad_()
        with torch.enable_grad():
            value = divergences(noisy_logits(network, x, here.view_as(noise)), target).mean(0).sum()
        (gradient,) = torch.autograd.grad(value, here)
        moved = here.detach() + 2 * epsilon / steps * unit(gradient) - start
        here = start + moved.renorm(2, 0, epsilon)
        shifted, grown = _moments(here)
        here = mean + size * (here - shifted) / grown
    network.train()
    return here.detach().view_as(noise)


def divergences(logits: Tensor, target: Tensor) -> Tensor:
    """KL( target ‖ softmax(logits) ) of every copy, (M, B), in nats; logits: (M, B, K), target: (B, K)."""
    from torch.nn import functional

    return functional.kl_div(logits.log_softmax(2), target.expand_as(logits), reduction="none").sum(2)


def _moments(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and root mean square of each noise, shaped to combine with it; noise: (N, C, H, W)."""
    from hydrabench.attacks.ball import per_image

    flat = noise.flatten(1)
    return per_image(flat.mean(1), noise), per_image(flat.square().mean(1).sqrt(), noise)


def _fractions(logits: Tensor) -> Tensor:
    """Fractions of the votes for each class, (B, K); logits: (M, B, K)."""
    from torch.nn import functional

    return functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits).mean(0)


def _votes(x: Tensor, settings: CatRsSettings, step: TrainingStep, own: Tensor) -> Tensor:
    """The target of the divergence: fractions of the votes of the teacher, or `own` without one; (B, K)."""
    import torch

    if settings.judge is None:
        return own
    teacher = settings.judge.to(x.device, x.dtype)
    total = torch.zeros_like(own)
    with torch.no_grad():
        for _ in range(settings.votes):
            logits = teacher(x + settings.teacher_sigma * step.normal(x))
            if logits.shape != own.shape:
                raise ConfigError(
                    f"teacher {settings.teacher} knows {logits.shape[1]} classes, the data {own.shape[1]}; "
                    "name a network that was trained on the same classes"
                )
            total += _fractions(logits[None]).to(total)
    return total / settings.votes


def cat_rs_passes(settings: CatRsSettings, work: Workload) -> float:  # noqa: ARG001
    """Return the passes of the copies, of the attack and its result, and of the teacher."""
    votes = 0 if settings.teacher is None else settings.votes
    return settings.copies * (INPUT_GRADIENT * settings.steps + 2 * TRAINING) + votes


def load_teacher(settings: CatRsSettings) -> None:
    """Load the teacher. Raises: CheckpointError or ConfigError if it cannot be opened."""
    _ = settings.judge


CAT_RS = Objective(
    CatRsSettings, cat_rs_loss, smoothed_verdicts, "smoothed_accuracy", cat_rs_passes, prepare=load_teacher
)
