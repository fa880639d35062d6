"""What a cascade saves on trained networks, against its tightest method on every image, and CROWN against auto_LiRPA.

Usage: python benchmarks/cascade.py [CHECKPOINT ...]

Checkpoints of the zoo, those for digits by default, at the radius that they were trained for, all images of their test
set in one batch, networks read before, as `certify` reads them. A cascade proves what one of its methods proves, which
is asserted. Where auto_LiRPA is installed, its CROWN and alpha-CROWN, alone and at the end of a cascade, take part with
the first images of the test set.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from hydrabench.bounds import BOUNDS, Prepared, lirpa, prepared
from hydrabench.checkpoints import open_ref
from hydrabench.data import Block, load_block, load_images
from hydrabench.errors import HydrabenchError
from hydrabench.evaluators import AlphaCrownSettings, VerifiedSettings
from hydrabench.evaluators.verified import evaluate_verified
from hydrabench.files import shipped
from hydrabench.threat import parse_radius, radius_text

OWN = ("ibp", "crown-ibp", "crown")
REPEATS, SEARCHED, ITERATIONS = 3, 30, 20  # images and iterations of alpha-CROWN, which takes seconds


def medians(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds, all works in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if repeat:
                times[name].append(time.process_time() - start)
    return {name: median(values) for name, values in times.items()}


def compare_own(network: Prepared, block: Block, epsilon: float) -> str:
    """The cascade of our methods against CROWN on every image. Raises: AssertionError if it proves anything else."""
    threat = (network, block.images, block.labels, epsilon)
    works: dict[str, Callable[[], Tensor]] = {name: partial(BOUNDS[name], *threat) for name in (*OWN, "cascade")}
    proved = {name: work() > 0 for name, work in works.items()}
    assert torch.equal(proved["cascade"], proved["ibp"] | proved["crown-ibp"] | proved["crown"])
    spent = medians(works)
    counts = ", ".join(f"{name} {int(found.sum())}" for name, found in proved.items())
    times = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in spent.items())
    return (
        f"verified {counts} of {len(block.labels)}; ms {times}; crown / cascade {spent['crown'] / spent['cascade']:.1f}"
    )


def compare_search(network: Prepared, block: Block, epsilon: str) -> str:
    """A cascade that ends with alpha-CROWN against alpha-CROWN on every image, as `certify` evaluates them."""
    search = {"epsilon": epsilon, "iterations": ITERATIONS}
    cascade = VerifiedSettings(kind="cascade", methods=(*OWN, "alpha-crown"), **search)
    alone: list[VerifiedSettings | AlphaCrownSettings] = [VerifiedSettings(kind=k, epsilon=epsilon) for k in OWN]
    verdicts = [
        [record.verified for record in evaluate_verified(network, block, settings)]
        for settings in (cascade, *alone, AlphaCrownSettings(**search))
    ]
    assert verdicts[0] == [any(proofs) for proofs in zip(*verdicts[1:], strict=True)]
    works = {
        "alpha-crown": partial(evaluate_verified, network, block, AlphaCrownSettings(**search)),
        "cascade": partial(evaluate_verified, network, block, cascade),
    }
    spent = medians(works)
    return (
        f"alpha-crown {sum(verdicts[-1])}, cascade {sum(verdicts[0])} of {len(block.labels)}; "
        f"s {spent['alpha-crown']:.2f}, {spent['cascade']:.2f}; ratio {spent['alpha-crown'] / spent['cascade']:.1f}"
    )


def compare_crown(network: nn.Module, block: Block, epsilon: float) -> str:
    """CROWN by auto_LiRPA, which is asked for the whole batch, its fast way and the reason why it can be looser."""
    x, y = block.images, block.labels
    bounded = lirpa.bounded_module(network, x, sparse=True)
    rows = lirpa.margin_rows(y, bounded.final_shape[1], x.dtype)

    def theirs() -> Tensor:
        return lirpa.lower_bounds(bounded, lirpa.perturbed(x, epsilon), rows, "CROWN").min(1).values

    ours = partial(BOUNDS["crown"], prepared(network), x, y, epsilon)
    assert (ours() >= theirs() - 1e-3).all()
    spent = medians({"ours": ours, "theirs": theirs})
    times = f"auto_LiRPA {1e3 * spent['theirs']:.1f}, ours {1e3 * spent['ours']:.1f}"
    return f"crown, ms: {times}, ratio {spent['theirs'] / spent['ours']:.1f}"


def first_images(block: Block, count: int) -> Block:
    """The block's first images."""
    return replace(
        block,
        indices=block.indices[:count],
        images=block.images[:count],
        labels=block.labels[:count],
        shas=block.shas[:count],
    )


@torch.no_grad()
def main(names: Sequence[str]) -> None:
    try:
        lirpa.require_auto_lirpa()
        second = True
    except HydrabenchError as error:
        print(f"without auto_LiRPA: {error}")
        second = False
    print(f"{torch.get_num_threads()} threads, medians of processor times; alpha-crown: {ITERATIONS} iterations")
    for name in names or sorted(path.name for path in shipped("zoo").glob("digits-*")):
        checkpoint = open_ref(name)
        network = checkpoint.baked().eval().requires_grad_(False)
        ready = prepared(network)
        images = load_images(checkpoint.header.dataset, "test")
        block = load_block(images, 0, tuple(range(len(images))))
        epsilon = parse_radius((checkpoint.header.default_threat() or {"epsilon": "8/255"})["epsilon"])
        print(f"{name}, epsilon {radius_text(epsilon)}")
        print(f"  {compare_own(ready, block, float(epsilon))}", flush=True)
        if second:
            few = first_images(block, SEARCHED)
            print(f"  {compare_crown(network, few, float(epsilon))}")
            print(f"  {compare_search(ready, few, radius_text(epsilon))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
