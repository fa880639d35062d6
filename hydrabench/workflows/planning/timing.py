"""The time of training and evaluating: short pieces of both, measured on random images.

For tiny images the overhead of Python, kernel launches and the optimizer exceeds the arithmetic; for large ones it is
negligible. So pieces that are expected to be short are timed; for long ones `planning` counts operations.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from hydrabench.data import Block
from hydrabench.evaluators import EVALUATORS, Computing, EvaluationSettings, Sizes
from hydrabench.evaluators.blocks import BLOCK_SIZE
from hydrabench.masking import Phase, attach_masks, set_phase, shared_masks
from hydrabench.objectives import OBJECTIVES, ObjectiveSettings, TrainingStep
from hydrabench.recipes import PhaseRecipe
from hydrabench.runtime import exact_arithmetic
from hydrabench.workflows.training.optimizer import build_optimizer

LONGEST_PIECE = 1.0  # seconds that a piece may be expected to take; beside more, fixed costs are a few percent at most
ENOUGH = 0.3  # seconds after which no more calls are timed


@dataclass(frozen=True)
class Trainee:
    """A phase to be timed. density: 1 if it has no masks. images: of one optimizer step."""

    network: nn.Module
    phase: Phase
    recipe: PhaseRecipe
    objective: ObjectiveSettings
    density: float
    images: int


def seconds_of(work: Callable[[int], object], device: torch.device) -> float:
    """Mean wall time of calls of `work`, which gets their number, after one to warm up."""
    work(0)
    _wait(device)
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < ENOUGH:
        calls += 1
        work(calls)
    _wait(device)
    return (time.perf_counter() - started) / calls


def step_seconds(trainee: Trainee, shape: tuple[int, int, int], classes: int, device: torch.device) -> float:
    """Seconds of an optimizer step of a phase: the mean over the steps of its ramp, at half the radius, and the others.

    Args:
        trainee: its network is left as it is. shape: (C, H, W) of its images. device: where to train.
    """
    recipe, settings = trainee.recipe, trainee.objective
    network = copy.deepcopy(trainee.network)
    if trainee.density < 1:
        attach_masks(network, trainee.density)
    set_phase(network, trainee.phase)
    network.to(device).train()
    optimizer = build_optimizer(network, recipe)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(trainee.images, *shape, generator=generator).to(device)
    y = torch.randint(classes, (trainee.images,), generator=generator).to(device)
    memory: dict[str, torch.Tensor] = {}

    def step(number: int, ramp: float) -> None:
        optimizer.zero_grad()
        epsilon = ramp * settings.full_radius
        random = torch.Generator().manual_seed(number)
        given = TrainingStep(epsilon, ramp, random, memory=memory, ramp_epochs=recipe.epsilon_ramp_epochs)
        with exact_arithmetic(), shared_masks(network):
            losses = OBJECTIVES[settings.name].loss(network, x, y, settings, given)
            losses.total.backward()  # type: ignore[no-untyped-call]
        losses.total.item()
        optimizer.step()

    share = (recipe.epsilon_ramp_epochs - 1) / recipe.epochs
    seconds = (1 - share) * seconds_of(lambda number: step(number, 1.0), device)
    return seconds + (share * seconds_of(lambda number: step(number, 0.5), device) if share else 0.0)


@dataclass(frozen=True)
class Piece:
    """Some of an evaluation. passes: forward passes of one image that it takes, all in all."""

    work: Callable[[int], object]
    passes: float


def piece_of(network: nn.Module, settings: EvaluationSettings, shape: tuple[int, int, int], sizes: Sizes) -> Piece:
    """The piece of an evaluation that its description names, or a block of it, on random images.

    Args:
        network: in eval mode, on the device to time. settings: of an evaluator whose passes are known.
    """
    device = next(network.parameters()).device
    piece = EVALUATORS[settings.kind].piece
    short, count = piece(settings) if piece else (settings, BLOCK_SIZE)
    evaluator = EVALUATORS[short.kind]
    assert evaluator.passes is not None
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    ready = evaluator.ready(network, short, Computing(device))

    def evaluate(number: int) -> object:
        with exact_arithmetic(), torch.no_grad():
            labels = network(images).argmax(1)
            return ready.evaluate(Block(number, tuple(range(count)), images, labels, ("",) * count))

    return Piece(evaluate, count * evaluator.passes(short, sizes))


def _wait(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
