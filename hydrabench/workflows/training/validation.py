"""Validation on the held-out images, which chooses the best epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hydrabench.data import ImageSource, batches, pixels
from hydrabench.masking import shared_masks
from hydrabench.objectives import OBJECTIVES, ObjectiveSettings, TrainingStep
from hydrabench.runtime import World, exact_arithmetic, stream

LARGEST_BATCH = 500
BATCH_VALUES = 1 << 23  # pixel values of a batch: 500 images of CIFAR-10, 55 of ImageNet


def validate(
    network: nn.Module,
    images: ImageSource,
    objective: ObjectiveSettings,
    *,
    seed: int,
    device: torch.device,
    world: World,
    tell: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Return the clean accuracy and the objective's own verdict at the final radius, as fractions of `images`.

    Args: tell: called with how many images are done, after each batch of this process.

    The processes share the batches; a verdict does not depend on how many there are. The network is computed
    in float32 without TF32, and left in eval mode.
    """
    verdict = OBJECTIVES[objective.name]
    clean, verdicts, seen = 0, 0, 0
    network.eval()
    work = list(enumerate(batches(len(images), _batch_size(images))))[world.rank :: world.size]
    with exact_arithmetic(), shared_masks(network), torch.no_grad():
        for number, indices in work:
            chosen = indices.to(device)
            x, y = pixels(images.take(chosen)), images.labels[chosen]
            seen += len(y)
            clean += int((network(x).argmax(1) == y).sum())
            if verdict.metric != "clean_accuracy":
                step = TrainingStep(objective.full_radius, 1.0, stream(seed, "validation", number))
                verdicts += int(verdict.verdicts(network, x, y, objective, step).sum())
            if tell is not None:
                tell(f"{seen * world.size} of {len(images)} held-out images")
    clean, verdicts = (int(count) for count in world.total([clean, verdicts]))
    counts = {"clean_accuracy": clean} | ({} if verdict.metric == "clean_accuracy" else {verdict.metric: verdicts})
    return {name: count / len(images) for name, count in counts.items()}


def rehearse(network: nn.Module, images: ImageSource, objective: ObjectiveSettings, device: torch.device) -> None:
    """Validate on one image, so that a mistake in an objective's verdicts shows before the first epoch, not after it.

    Nothing that training draws or computes is changed.
    """
    network.eval()
    chosen = torch.tensor([0], device=device)
    x, y = pixels(images.take(chosen)), images.labels[chosen]
    step = TrainingStep(objective.full_radius, 1.0, stream(0, "rehearsal", 0))
    with exact_arithmetic(), shared_masks(network), torch.no_grad():
        OBJECTIVES[objective.name].verdicts(network, x, y, objective, step)


def _batch_size(images: ImageSource) -> int:
    """Return the batch size: the same on every machine, because attacks draw their noise batch by batch."""
    values = images.take(torch.tensor([0])).numel()
    return max(1, min(LARGEST_BATCH, BATCH_VALUES // values))
