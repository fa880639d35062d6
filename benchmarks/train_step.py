"""What one TRADES-10 step costs, beside a plain reading of the original's step and beside a floor.

Usage: python benchmarks/train_step.py [--quick] [--arch A ...] [--batch B ...] [--phase prune|dense ...] [--repeats N]
       [--threads N] [--clock wall|cpu]

Every step is for random 32x32 images, SGD with momentum and weight decay included. The prune phase keeps a tenth of
every layer. The contenders of a row take turns; a ratio is the median over the repeats of that of the same turn.
Threads are torch's default, all cores; the command line, whose runs must end with the same bytes on every machine,
computes with one, which `--threads 1` shows. `--clock cpu` counts the seconds that this process computed instead of
those that passed, for a machine that others use; with one thread, they are those that would pass on an idle one. A
turn of the whole table computes for about fifteen minutes on one slow core.

`plain` is HYDRA's step as its authors' code takes it: a forward pass in train mode for
the logged accuracy; ten steps of attack in eval mode, each with a fresh forward pass of the clean images, and
differentiated with respect to the images alone; the loss from three forward passes in train mode, clean for the
cross entropy, adversarial, and clean for the divergence. While pruning, every layer of every one of these 24 passes
sorts all its |scores| for its mask, whose gradient passes straight through. In the dense phase there are no masks.

`ours` is the step of `hydrabench prune` and `hydrabench train`. `floor` is what the objective needs on the dense
network and nothing else: one forward pass, ten with the gradient of the images, two with the gradient of the
weights; no masks, no steps of the attack, no optimizer.

With a GPU, there is a second table: ours in float32 without TF32 against ours in bfloat16, channels last, compiled.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

# As the command line does, before torch is imported: see hydrabench/process.py. Its other variable,
# MKL_NUM_THREADS=1, leaves all of torch with one thread.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from hydrabench.masking import attach_masks, prunable_layers, scaled_scores, set_phase, shared_masks
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.trades import TradesSettings
from hydrabench.runtime import exact_arithmetic, stream

DENSITY, STEPS, BETA = 0.1, 10, 6.0
EPSILON, STEP_SIZE, START_DEVIATION = 8 / 255, 2 / 255, 0.001
SETTINGS = TradesSettings(name="trades", epsilon="8/255", beta=BETA, steps=STEPS)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
ARCHS, BATCHES, PHASES = ("vgg16_bn", "wrn_28_4"), (32, 128), ("prune", "dense")
# Times that plain must take ours, and that ours may take the floor.
PRUNE_GOALS = {("vgg16_bn", 32): 10, ("vgg16_bn", 128): 3.5, ("wrn_28_4", 32): 2.5, ("wrn_28_4", 128): 1.5}
DENSE_GOAL, FLOOR_GOAL = 1.3, 1.15
GPU_ARCH, GPU_BATCH, GPU_GOAL, GPU_REPEATS = "wrn_28_4", 256, 3, 11

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Work = Callable[[], object]
Clock = Callable[[], float]


class SortedMask(torch.autograd.Function):
    """The original's mask of |scores|: zeros at the first int((1 - k) n) places of a full sort, ones at the others."""

    @staticmethod
    def forward(_ctx: Any, magnitudes: Tensor) -> Tensor:
        """Return the mask, which needs nothing for the way back."""
        pruned = int((1 - DENSITY) * magnitudes.numel())
        order = magnitudes.flatten().argsort()
        mask = torch.empty_like(magnitudes)
        flat = mask.view(-1)
        flat[order[:pruned]] = 0
        flat[order[pruned:]] = 1
        return mask

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        """Pass the gradient straight through."""
        return gradient


class PlainMask(nn.Module):
    """A parametrization that makes its mask anew whenever the weight is read, which a forward pass does once."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight."""
        return weight * SortedMask.apply(self.scores.abs())


def attach_plain_masks(network: nn.Module) -> None:
    """Prepare a network for the original's prune phase: all but scores and batch norm is frozen."""
    for layer in prunable_layers(network).values():
        scores = scaled_scores(layer)
        layer.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", PlainMask(scores))


def plain_attack(network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """Ten steps of ascent on the divergence, whose clean side is computed anew in each."""
    network.eval()
    points = x + START_DEVIATION * torch.randn(x.shape, generator=generator).to(x)
    for _ in range(STEPS):
        points.requires_grad_()
        clean = functional.softmax(network(x), dim=1)
        value = functional.kl_div(functional.log_softmax(network(points), dim=1), clean, reduction="sum")
        (gradient,) = torch.autograd.grad(value, [points])
        points = points.detach() + STEP_SIZE * gradient.sign()
        points = torch.min(torch.max(points, x - EPSILON), x + EPSILON).clamp(0, 1)
    network.train()
    return points


def plain_step(
    network: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[float, int]:
    """One step of the original; returns its loss and how many images it logs as correct."""
    logged = network(x)
    adversarial = plain_attack(network, x, generator)
    natural = functional.cross_entropy(network(x), y)
    shifted = functional.log_softmax(network(adversarial), dim=1)
    divergence = functional.kl_div(shifted, functional.softmax(network(x), dim=1), reduction="batchmean")
    loss = natural + BETA * divergence
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logged.argmax(1) == y).sum())


def our_step(
    network: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[float, int]:
    """One step as the training loop takes it; returns its loss and how many images it logs as correct."""
    with shared_masks(network):
        losses = OBJECTIVES["trades"].loss(network, x, y, SETTINGS, TrainingStep(EPSILON, 1.0, generator))
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
    value = losses.total.item()
    optimizer.step()
    return value, int((losses.logits.argmax(1) == y).sum())


def floor_step(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """The passes that TRADES-10 cannot do without, on a network without masks."""
    network.zero_grad(set_to_none=True)
    network.eval()
    with torch.no_grad():
        network(x)
    for _ in range(STEPS):
        points = x.detach().clone().requires_grad_()
        torch.autograd.grad(functional.cross_entropy(network(points), y), points)
    network.train()
    for _ in range(2):
        functional.cross_entropy(network(x), y).backward()


def network_and_optimizer(
    arch: str, device: torch.device, prepare: Callable[[nn.Module], None] | None = None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Build a network in train mode, with masks if `prepare` attaches them, and the optimizer of what is trained."""
    network = build_model(arch, (3, 32, 32), 10, generator=stream("weights")).train()
    if prepare:
        prepare(network)
    network.to(device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return network, torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def attach_our_masks(network: nn.Module) -> None:
    """Prepare a network for our prune phase."""
    attach_masks(network, DENSITY)
    set_phase(network, "prune")


def problem(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    x = torch.rand(batch, 3, 32, 32, generator=stream("images")).to(device)
    return x, torch.randint(0, 10, (batch,), generator=stream("labels")).to(device)


def contenders(arch: str, batch: int, phase: str, device: torch.device) -> dict[str, Work]:
    """The three steps of one row of the table."""
    x, y = problem(batch, device)
    pruning = phase == "prune"
    plain, plain_optimizer = network_and_optimizer(arch, device, attach_plain_masks if pruning else None)
    ours, our_optimizer = network_and_optimizer(arch, device, attach_our_masks if pruning else None)
    dense, _ = network_and_optimizer(arch, device)
    return {
        "floor": lambda: floor_step(dense, x, y),
        "ours": lambda: our_step(ours, x, y, our_optimizer, stream("noise")),
        "plain": lambda: plain_step(plain, x, y, plain_optimizer, stream("noise")),
    }


def turns(works: Mapping[str, Work], repeats: int, device: torch.device, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each work in each turn; on a GPU, which compiles and chooses kernels first, after an untimed one."""
    times: dict[str, list[float]] = {name: [] for name in works}
    if device.type == "cuda":
        for work in works.values():
            work()
    for _ in range(repeats):
        for name, work in works.items():
            synchronize(device)
            start = clock()
            work()
            synchronize(device)
            times[name].append(clock() - start)
    return times


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Median over the turns of how many times `slow` takes `fast`."""
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def print_row(arch: str, batch: int, phase: str, times: Mapping[str, list[float]]) -> None:
    goal = PRUNE_GOALS.get((arch, batch)) if phase == "prune" else DENSE_GOAL
    asked = f"at least {goal:g}" if goal else ""
    limit = f"at most {FLOOR_GOAL:g}" if phase == "prune" else ""
    seconds = " ".join(f"{median(times[name]):8.3f}" for name in ("plain", "ours", "floor"))
    faster, above = ratio(times, "plain", "ours"), ratio(times, "ours", "floor")
    print(f"{arch:9} {batch:5} {phase:5} {seconds} {faster:11.2f} {asked:12} {above:10.3f} {limit}", flush=True)


def reduced(arch: str, batch: int, device: torch.device) -> dict[str, Work]:
    """Our prune step in float32, and in bfloat16 with channels last and compiled."""
    x, y = problem(batch, device)
    exact, exact_optimizer = network_and_optimizer(arch, device, attach_our_masks)
    fast, fast_optimizer = network_and_optimizer(arch, device, attach_our_masks)
    fast.to(memory_format=torch.channels_last)
    fast.compile()
    nearby = x.contiguous(memory_format=torch.channels_last)

    def reduced_step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            our_step(fast, nearby, y, fast_optimizer, stream("noise"))

    return {
        "float32": lambda: our_step(exact, x, y, exact_optimizer, stream("noise")),
        "bfloat16": reduced_step,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of one TRADES-10 step: plain, ours, floor.")
    parser.add_argument("--arch", nargs="+", default=ARCHS)
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--phase", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which medians are taken")
    parser.add_argument("--quick", action="store_true", help="one turn, and batches of 32 only")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is counted; a GPU needs wall")
    given = parser.parse_args()
    if given.quick:
        given.batch, given.repeats = [32], 1
    return given


def main() -> None:
    given = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = CLOCKS[given.clock]
    if given.threads:
        torch.set_num_threads(given.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(
        f"{name}, torch {torch.__version__}, TRADES-{STEPS}, {given.clock} seconds of a step, median of {given.repeats}"
    )
    columns = f"{'plain':>8} {'ours':>8} {'floor':>8} {'plain/ours':>11} {'goal':12} {'ours/floor':>10} goal"
    print(f"{'network':9} {'batch':>5} phase {columns}", flush=True)
    with exact_arithmetic():
        for arch in given.arch:
            for batch in given.batch:
                for phase in given.phase:
                    times = turns(contenders(arch, batch, phase, device), given.repeats, device, clock)
                    print_row(arch, batch, phase, times)
        if device.type == "cuda":
            times = turns(reduced(GPU_ARCH, GPU_BATCH, device), GPU_REPEATS, device, clock)
            found = f"{median(times['float32']):.3f} in float32, {median(times['bfloat16']):.3f} in bfloat16"
            faster = ratio(times, "float32", "bfloat16")
            print(f"{GPU_ARCH}, batch {GPU_BATCH}, prune: {found}: {faster:.2f} times (goal: at least {GPU_GOAL})")


if __name__ == "__main__":
    main()
