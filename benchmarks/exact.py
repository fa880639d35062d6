"""Exact robust accuracy: how many images complete verification leaves open, with how many subproblems, in what time.

Usage: python benchmarks/exact.py [--images 500] [--engines branch-and-bound,milp] [--time-limit SECONDS] [NETWORK ...]

Checkpoints of the zoo, files or run folders, at the radius that they were trained for; all digits checkpoints by
default. Time is that of the processor, in one thread, reading the network included. With two engines and a time limit
for each image, they are compared at equal time; every image that one calls verified and the other broken is counted
under "against".
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from hydrabench.bounds import prepared
from hydrabench.checkpoints import open_ref
from hydrabench.data import block_indices, load_block, load_images
from hydrabench.evaluators import ExactSettings
from hydrabench.evaluators.decided import evaluate_exact
from hydrabench.evaluators.exact import DECIDED_BLOCK
from hydrabench.files import shipped
from hydrabench.ledger import ExactRecord
from hydrabench.process import prepare
from hydrabench.runtime import exact_arithmetic


def judged(name: str, images: int, limits: dict[str, Any]) -> tuple[list[ExactRecord], str, float]:
    """Return the records of a network's first images, the radius, and the processor seconds that they took."""
    checkpoint = open_ref(name)
    threat = checkpoint.header.default_threat()
    assert threat is not None, f"{name} was trained for no radius"
    test, start = load_images(checkpoint.header.dataset, "test"), time.process_time()
    network = prepared(checkpoint.baked().eval().requires_grad_(False))
    settings = ExactSettings(**threat, **limits)
    records: list[ExactRecord] = []
    for number, indices in enumerate(block_indices(min(images, len(test)), DECIDED_BLOCK)):
        with exact_arithmetic():
            records += evaluate_exact(network, load_block(test, number, tuple(indices)), settings)
    return records, str(threat["epsilon"]), time.process_time() - start


def show(name: str, engine: str, epsilon: str, seconds: float, records: Sequence[ExactRecord], against: int) -> None:
    """Print a line."""
    verdicts, by = (Counter(getattr(record, field) for record in records) for field in ("verdict", "found_by"))
    counts = sorted(record.subproblems for record in records)
    n, searched = len(records), verdicts["broken"] - by["clean"] - by["pgd"]
    print(
        f"{name:24} {engine:16} {epsilon:>7} {n:6} {n - by['clean']:6} {verdicts['verified']:8} "
        f"{n - verdicts['broken']:8} {verdicts['unknown']:7} {by['pgd']:5} {searched:7} "
        f"{sum(count > 0 for count in counts):8} {sum(counts):11,} {counts[-1]:8,} {against:7} {seconds:8.1f}",
        flush=True,
    )


def main() -> None:
    """Judge every network by every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--engines", default="branch-and-bound")
    parser.add_argument("--time-limit", type=float, help="seconds for an image; default: none")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'':24} {'':16} {'':7} {'':6} {'':6} {'':8} {'not':>8} {'':7} {'broken by':>13} {'searched':>8} "
        f"{'subproblems':>20}"
    )
    print(
        f"{'network':24} {'engine':16} {'epsilon':>7} {'images':>6} {'right':>6} {'verified':>8} {'broken':>8} "
        f"{'unknown':>7} {'pgd':>5} {'search':>7} {'images':>8} {'all':>11} {'most':>8} {'against':>7} {'s':>8}"
    )
    for name in given.networks or sorted(path.name for path in shipped("zoo").glob("digits-*")):
        first: list[ExactRecord] = []
        for engine in given.engines.split(","):
            limits = {"engine": engine, "time_limit": given.time_limit}
            records, epsilon, seconds = judged(name, given.images, limits)
            first = first or records
            pairs = [{one.verdict, other.verdict} for one, other in zip(first, records, strict=True)]
            show(name, engine, epsilon, seconds, records, pairs.count({"verified", "broken"}))


if __name__ == "__main__":
    prepare()
    main()
