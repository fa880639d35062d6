"""What PGD costs beside a plain loop and other libraries: equal losses, steps, step sizes and batches.

Usage: python benchmarks/attacks.py [--network digits-trades] [--images 500] [--steps 50] [--step 0.25] [--rounds 5]

A step is `--step` of the radius; 0.25 is the field's 2/255 at 8/255. The plain loop moves a batch by the gradient of
the cross entropy, clips it into the ball, and classifies the last points. Ours classifies every point and drops an
image once it is misclassified, so from equal starts its robust count can only be lower. Two radii: one at which about
half of the images break, found here, and one at which none does. Times are processor seconds of one thread, medians of
rounds in which all take turns. torchattacks and foolbox are timed if they are installed:
pip install --no-deps torchattacks foolbox eagerpy
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

import hydrabench
from hydrabench.data import load_block, load_images
from hydrabench.data.images import Block
from hydrabench.evaluators import PgdSettings
from hydrabench.evaluators.pgd import evaluate_pgd
from hydrabench.runtime import exact_arithmetic

Robust = Callable[[float], int]  # radius -> images that are right after the attack


def plain_points(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, steps: int, size: float) -> Tensor:
    """Return the last points of projected gradient ascent on the cross entropy, all images to the end."""
    points = (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(network(points), y, reduction="sum"), points)
        moved = points.detach() + size * gradient.sign()
        points = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return points


def attacks(network: nn.Module, block: Block, steps: int, share: float) -> dict[str, Robust]:
    """The attacks that are compared. share: length of a step over the radius."""
    x, y = block.images, block.labels

    def right(points: Tensor) -> int:
        with torch.no_grad():
            return int((network(points).argmax(1) == y).sum())

    def plain(epsilon: float) -> int:
        return right(plain_points(network, x, y, epsilon, steps=steps, size=share * epsilon))

    def ours(*losses: str) -> Robust:
        def run(epsilon: float) -> int:
            size = Fraction(share * epsilon)
            settings = PgdSettings(epsilon=Fraction(epsilon), steps=steps, losses=losses, step_size=size)
            return sum(record.robust for record in evaluate_pgd(network, block, settings))

        return run

    found: dict[str, Robust] = {"plain loop": plain, "hydrabench": ours("ce"), "two losses": ours("ce", "margin")}
    if find_spec("torchattacks"):
        import torchattacks  # noqa: PLC0415

        def by_torchattacks(epsilon: float) -> int:
            return right(torchattacks.PGD(network, eps=epsilon, alpha=share * epsilon, steps=steps)(x, y))

        found["torchattacks"] = by_torchattacks
    if find_spec("foolbox"):
        import foolbox  # noqa: PLC0415

        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")

        def by_foolbox(epsilon: float) -> int:
            attack = foolbox.attacks.LinfPGD(abs_stepsize=share * epsilon, steps=steps)
            return int((~attack(model, x, y, epsilons=epsilon)[2]).sum())

        found["foolbox"] = by_foolbox
    return found


def halving_radius(robust: Robust, right: int) -> float:
    """Return a radius at which about half of the images that are right as they are break."""
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if robust(middle) > right / 2 else (low, middle)
    return (low + high) / 2


def timed(run: Robust, epsilon: float) -> float:
    """Processor seconds."""
    started = time.process_time()
    run(epsilon)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="digits-trades", help="path or zoo id")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--step", type=float, default=0.25, help="length of a step over the radius")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    network, images = hydrabench.load(given.network), load_images("digits", "test")
    network.requires_grad_(False)
    block = load_block(images, 0, tuple(range(min(given.images, len(images)))))
    with torch.no_grad():
        right = int((network(block.images).argmax(1) == block.labels).sum())
    compared = attacks(network, block, given.steps, given.step)
    print(f"{given.network}, one batch of {len(block.indices)} images, {right} right")
    print(f"PGD-{given.steps}, L∞, steps of {given.step:g} radii")
    with exact_arithmetic():
        for title, epsilon in (("half break", halving_radius(compared["plain loop"], right)), ("none breaks", 1e-6)):
            print(f"\n{title}: radius {epsilon:.4f}\n{'attack':<14}{'robust':>8}{'seconds':>10}{'plain / it':>12}")
            spent: dict[str, list[float]] = {name: [] for name in compared}
            for _ in range(given.rounds):
                for name, run in compared.items():
                    spent[name].append(timed(run, epsilon))
            for name, run in compared.items():
                seconds, plain = median(spent[name]), median(spent["plain loop"])
                print(f"{name:<14}{run(epsilon):>8}{seconds:>10.3f}{plain / seconds:>12.2f}")
            print(f"two losses take {median(spent['two losses']) / median(spent['hydrabench']) / 2:.2f} of twice one")


if __name__ == "__main__":
    main()
