"""What AutoAttack costs beside one plain call of the authors' code on the same images, and what certificates save.

Usage: python benchmarks/autoattack.py [--plain digits-trades] [--certified digits-crown-ibp-95] [--images 100]

Plain: upstream's own driver, all images in one batch. Ours: the same attacks as `attack --attack autoattack` runs them,
with a fresh forward pass of every point, padded batches and shared draws. Certified: crown-ibp first, then only the
images that it does not verify; its time is counted. The cascade puts ten steps of PGD first. Networks are attacked at
the radius that they were trained for, or --epsilon. Times are processor seconds of one thread, medians of --rounds
rounds in which all take turns. Starts differ between upstream and ours, so a close image may break in one of them only.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from statistics import median

import torch
from pyautoattack import AutoAttack
from torch import nn

from hydrabench.checkpoints import open_ref
from hydrabench.data import Block, load_block, load_images
from hydrabench.evaluators import AutoAttackSettings, VerifiedSettings
from hydrabench.evaluators.autoattack import evaluate_autoattack
from hydrabench.evaluators.verified import evaluate_verified
from hydrabench.runtime import exact_arithmetic


def seconds(work: Callable[[], list[bool]]) -> tuple[float, int]:
    """Processor seconds of a call, and how many images it found robust."""
    started = time.process_time()
    robust = work()
    return time.process_time() - started, sum(robust)


def plain(network: nn.Module, block: Block, settings: AutoAttackSettings) -> list[bool]:
    """One call of upstream's driver, as its readme has it."""
    logging.getLogger("auto-attack").disabled = True
    attack = AutoAttack(network, norm="Linf", eps=float(settings.epsilon), seed=0, version="standard")
    points, _ = attack.run_standard_evaluation(block.images, block.labels, batch_size=len(block.indices))
    with torch.no_grad():
        return (network(points).argmax(1) == block.labels).tolist()


def ours(network: nn.Module, block: Block, settings: AutoAttackSettings) -> list[bool]:
    """All attacks of ours on one block."""
    return [record.robust for record in evaluate_autoattack(network, block, settings)]


def certified(network: nn.Module, block: Block, settings: AutoAttackSettings) -> list[bool]:
    """Bounds first, attacks on what they leave."""
    bounds = VerifiedSettings(kind="crown-ibp", epsilon=settings.epsilon)
    found = [record.verified for record in evaluate_verified(network, block, bounds)]
    left = block.rows([row for row, verified in enumerate(found) if not verified])
    return [True] * sum(found) + (ours(network, left, settings) if left.indices else [])


def main() -> None:
    """Print a line for each way of attacking each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", default="digits-trades")
    parser.add_argument("--certified", default="digits-crown-ibp-95")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--epsilon", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for ref, names in ((given.plain, ("plain", "ours", "cascade")), (given.certified, ("ours", "certified"))):
        checkpoint = open_ref(ref)
        network = checkpoint.baked().eval().requires_grad_(False)
        threat = checkpoint.header.default_threat() or {}
        settings = AutoAttackSettings(epsilon=given.epsilon or threat["epsilon"])
        block = load_block(load_images(checkpoint.header.dataset, "test"), 0, tuple(range(given.images)))
        quick = settings.model_copy(update={"cascade": True})
        works: dict[str, Callable[[], list[bool]]] = {
            "plain": lambda: plain(network, block, settings),  # noqa: B023  (called before the loop goes on)
            "ours": lambda: ours(network, block, settings),  # noqa: B023
            "cascade": lambda: ours(network, block, quick),  # noqa: B023
            "certified": lambda: certified(network, block, settings),  # noqa: B023
        }
        with exact_arithmetic():
            times = {name: [seconds(works[name]) for _ in range(1)] for name in names}
            for _ in range(given.rounds - 1):
                for name in names:
                    times[name].append(seconds(works[name]))
        first = median(spent for spent, _ in times[names[0]])
        for name in names:
            spent = median(one for one, _ in times[name])
            print(
                f"{ref} {name:9} {spent:7.1f} s  {spent / first:.3f} of {names[0]}, {times[name][0][1]} robust",
                flush=True,
            )


if __name__ == "__main__":
    main()
