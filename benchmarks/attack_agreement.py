"""PGD held against other libraries, and security curves of a network and its pruned children.

Usage: python benchmarks/attack_agreement.py [--out reports/attacks] [--images 500] [--steps 40]

The table counts the images that are right after PGD on the cross entropy, from the image itself as the start, with
equal steps and step sizes (2.5 radii over the steps): the last points of torchattacks, foolbox, ART and of ours, and
ours as it is evaluated, where every point on the way counts. Libraries that are not installed are left out:
pip install --no-deps torchattacks foolbox eagerpy adversarial-robustness-toolbox six
The curves are those of `hydrabench attack --epsilon 0:80/255:4/255`, one line for each network and radius.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import hydrabench
from hydrabench.attacks import LOSSES, ExactBall, Moves, ascend, search
from hydrabench.data import load_block, load_images
from hydrabench.data.images import Block
from hydrabench.evaluators import PgdSettings
from hydrabench.evaluators.pgd import evaluate_pgd
from hydrabench.runtime import exact_arithmetic
from hydrabench.threat import Norm, radius_text

NETWORKS = ("digits-trades", "digits-trades-99", "digits-crown-ibp-99")
RADII: dict[Norm, tuple[float, ...]] = {"linf": (16 / 255, 32 / 255), "l2": (0.5, 0.75)}
FAMILY = ("digits-trades", "digits-trades-90", "digits-trades-95", "digits-trades-99")
CURVE = "0:80/255:4/255"
Points = Callable[[nn.Module, Tensor, Tensor, float, float, int], Tensor]  # network, x, y, radius, step size, steps


def by_torchattacks(norm: Norm) -> Points:
    """Its PGD or PGDL2."""
    import torchattacks  # noqa: PLC0415

    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    return lambda network, x, y, epsilon, size, steps: kind(
        network, eps=epsilon, alpha=size, steps=steps, random_start=False
    )(x, y)


def by_foolbox(norm: Norm) -> Points:
    """Its LinfPGD or L2PGD."""
    import foolbox  # noqa: PLC0415

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]

    def points(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, size: float, steps: int) -> Tensor:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        found: Tensor = kind(abs_stepsize=size, steps=steps, random_start=False)(model, x, y, epsilons=epsilon)[1]
        return found

    return points


def by_art(norm: Norm) -> Points:
    """Its ProjectedGradientDescentPyTorch."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch  # noqa: PLC0415
    from art.estimators.classification import PyTorchClassifier  # noqa: PLC0415

    def points(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, size: float, steps: int) -> Tensor:
        loss, shape = nn.CrossEntropyLoss(reduction="sum"), tuple(x.shape[1:])
        model = PyTorchClassifier(network, loss, shape, 10, clip_values=(0.0, 1.0), device_type="cpu")
        attack = ProjectedGradientDescentPyTorch(
            model,
            norm={"linf": "inf", "l2": 2}[norm],
            eps=epsilon,
            eps_step=size,
            max_iter=steps,
            num_random_init=0,
            batch_size=len(x),
            verbose=False,
        )
        return torch.from_numpy(attack.generate(x.numpy(), nn.functional.one_hot(y, 10).numpy()))

    return points


def by_us(norm: Norm) -> Points:
    """The last points of our ascent."""
    return lambda network, x, y, epsilon, size, steps: ascend(
        x, x, epsilon, lambda points: LOSSES["ce"](network(points), y), norm=norm, steps=steps, step_size=size
    )


def robust_on_the_way(network: nn.Module, block: Block, epsilon: float, *, norm: Norm, steps: int) -> int:
    """Count the images of which no point on the way is misclassified."""
    ball = ExactBall.around(block.images, epsilon, norm)
    how = Moves(steps, 2.5 * epsilon / steps)
    start = block.images.clone()
    found = search(network, ball, start, (block.labels,), LOSSES["ce"], how=how, check=lambda *_: None)
    return int((found.broke_at < 0).sum())


def table(block: Block, steps: int) -> list[list[str]]:
    """One line for each network and radius, one column for each library."""
    libraries = {"torchattacks": by_torchattacks, "foolbox": by_foolbox, "art": by_art}
    present = {name: make for name, make in libraries.items() if find_spec(name)}
    makers = {**present, "ours, last point": by_us}
    rows = [["network", "norm", "radius", *makers, "ours, any point"]]
    for name in NETWORKS:
        network = hydrabench.load(name).requires_grad_(False)
        for norm, radii in RADII.items():
            for epsilon in radii:
                row = [name, norm, f"{epsilon:.4f}"]
                for make in makers.values():
                    points = make(norm)(network, block.images, block.labels, epsilon, 2.5 * epsilon / steps, steps)
                    with torch.no_grad():
                        row.append(str(int((network(points).argmax(1) == block.labels).sum())))
                row.append(str(robust_on_the_way(network, block, epsilon, norm=norm, steps=steps)))
                rows.append(row)
                print("  ".join(row), flush=True)
    return rows


def curves(block: Block) -> list[list[str]]:
    """Robust accuracy of each network of the family at each radius, from one run each."""
    rows = [["network", "epsilon", "robust_accuracy", "images"]]
    for name in FAMILY:
        settings = PgdSettings.model_validate({"epsilon": CURVE})
        records = evaluate_pgd(hydrabench.load(name).requires_grad_(False), block, settings)
        for radius in settings.epsilons:
            distances = [record.__dict__["distance"] for record in records]
            robust = sum(distance is None or distance > float(radius) for distance in distances)
            rows.append([name, radius_text(radius), f"{robust / len(records):.4f}", str(len(records))])
        print(name, " ".join(row[2] for row in rows if row[0] == name), flush=True)
    return rows


def write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/attacks"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = load_images("digits", "test")
    block = load_block(images, 0, tuple(range(min(given.images, len(images)))))
    given.out.mkdir(parents=True, exist_ok=True)
    with exact_arithmetic():
        write(given.out / "agreement.csv", table(block, given.steps))
        write(given.out / "curves.csv", curves(block))


if __name__ == "__main__":
    main()
