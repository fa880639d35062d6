"""What training and evaluating cost, counted in forward passes of the network before anything runs.

A gradient with respect to the image costs as much again as the forward pass, one to image and parameters
twice as much again (Kaplan et al., arXiv:2001.08361, section 2.1, count the same way).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hydrabench.evaluators import Sizes
from hydrabench.masking import used_modules

INPUT_GRADIENT, TRAINING = 2, 3  # forward passes of one pass with its gradient: to the image, to everything
BOXES = 2  # interval bounds: centers and widths
MEASURED_SECONDS = 0.3


@dataclass(frozen=True)
class Schedule:
    """batch: images of a step. ramp: share of the steps at which the radius still grows, in [0, 1]."""

    batch: int
    ramp: float


def _ibp(objective: Any, _schedule: Schedule, _sizes: Sizes) -> float:
    mixes = bool(max(objective.kappa_start, objective.kappa_end) > 0)
    return (TRAINING if mixes else 1) + TRAINING * BOXES


def _crown_ibp(objective: Any, schedule: Schedule, sizes: Sizes) -> float:
    share = 1.0 if objective.beta_end > 0 else schedule.ramp
    return _ibp(objective, schedule, sizes) + TRAINING * share * (sizes.classes - 1)


def _mixtrain(objective: Any, schedule: Schedule, sizes: Sizes) -> float:
    sampled = objective.probability * objective.samples / schedule.batch
    return float(TRAINING + TRAINING * sampled * sizes.symbolic)


# Forward passes for each image that a training step is given.
TRAINING_PASSES: dict[str, Callable[[Any, Schedule, Sizes], float]] = {
    "natural": lambda _objective, _schedule, _sizes: TRAINING,
    "trades": lambda objective, _schedule, _sizes: 1 + INPUT_GRADIENT * objective.steps + 2 * TRAINING,
    "pgd": lambda objective, _schedule, _sizes: INPUT_GRADIENT * objective.steps + TRAINING,
    "free": lambda objective, _schedule, _sizes: TRAINING * objective.repeats,
    "stability": lambda objective, _schedule, _sizes: TRAINING * (2 if objective.variant == "stability" else 1),
    "ibp": _ibp,
    "crown-ibp": _crown_ibp,
    "mixtrain": _mixtrain,
}


def sizes_of(network: nn.Module, shape: tuple[int, int, int], classes: int) -> Sizes:
    """Count the operations of one forward pass, without computing it.

    Args:
        network: in eval mode; left as it is. shape: (C, H, W) of its images.
    """
    outline = copy.deepcopy(network).to("meta")
    neurons: list[tuple[float, int]] = []  # operations up to a layer, and the neurons that it has
    counter = FlopCounterMode(display=False)

    def note(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        neurons.append((counter.get_total_flops(), output.numel()))

    layers = [layer for _, layer in used_modules(outline) if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with counter, torch.no_grad():
        outline(torch.zeros(1, *shape, device="meta"))
    for hook in hooks:
        hook.remove()
    total = float(counter.get_total_flops())
    return Sizes(total, sum(flops * count for flops, count in neurons) / total, classes)


def measured_rate(network: nn.Module, shape: tuple[int, int, int], sizes: Sizes, device: torch.device) -> float:
    """Floating-point operations per second of forward passes on `device`, from a third of a second of them.

    Args:
        network: in eval mode, on the CPU; left as it is.
    """
    network = copy.deepcopy(network).to(device)
    images, spent = 1, 0.0
    with torch.inference_mode():
        while True:
            batch = torch.zeros(images, *shape, device=device)
            started = time.perf_counter()
            network(batch).sum().item()  # a number that is here has been computed
            spent = time.perf_counter() - started
            if spent >= MEASURED_SECONDS or images >= 4096:
                return sizes.flops * images / spent
            images *= 2
