"""Exact robust accuracy: how many images complete verification leaves open, with how many subproblems, in what time.

Usage: python benchmarks/exact.py [--images N] [NETWORK ...]

Checkpoints of the zoo, files or run folders, at the radius that they were trained for; all digits checkpoints by
default. Time is that of the processor, in one thread, reading the network included.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence

import torch

from hydrabench.bounds import prepared
from hydrabench.checkpoints import open_ref
from hydrabench.data import block_indices, load_block, load_images
from hydrabench.evaluators import ExactSettings
from hydrabench.evaluators.decided import evaluate_exact
from hydrabench.evaluators.exact import DECIDED_BLOCK
from hydrabench.files import shipped
from hydrabench.process import prepare
from hydrabench.runtime import exact_arithmetic

IMAGES = 500


def measure(name: str, images: int) -> None:
    """Print a line."""
    checkpoint = open_ref(name)
    threat = checkpoint.header.default_threat()
    assert threat is not None, f"{name} was trained for no radius"
    test, start = load_images(checkpoint.header.dataset, "test"), time.process_time()
    network, settings = prepared(checkpoint.baked().eval().requires_grad_(False)), ExactSettings(**threat)
    records = []
    for number, indices in enumerate(block_indices(min(images, len(test)), DECIDED_BLOCK)):
        with exact_arithmetic():
            records += evaluate_exact(network, load_block(test, number, tuple(indices)), settings)
    verdicts, by = (Counter(getattr(record, field) for record in records) for field in ("verdict", "found_by"))
    counts = sorted(record.subproblems for record in records)
    n = len(records)
    print(
        f"{name:24} {threat['epsilon']:>7} {n:6} {n - by['clean']:6} {verdicts['verified']:8} "
        f"{n - verdicts['broken']:8} {verdicts['unknown']:7} {by['pgd']:5} {by['branch-and-bound']:7} "
        f"{sum(count > 0 for count in counts):8} {sum(counts):11,} {counts[-1]:8,} {time.process_time() - start:8.1f}",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    given = [*arguments]
    images = IMAGES
    if "--images" in given:
        place = given.index("--images")
        images = int(given[place + 1])
        del given[place : place + 2]
    torch.set_num_threads(1)
    print(
        f"{'':24} {'':7} {'':6} {'':6} {'':8} {'not':>8} {'':7} {'broken by':>13} {'searched':>8} {'subproblems':>20}"
    )
    print(
        f"{'network':24} {'epsilon':>7} {'images':>6} {'right':>6} {'verified':>8} {'broken':>8} {'unknown':>7} "
        f"{'pgd':>5} {'b&b':>7} {'images':>8} {'all':>11} {'most':>8} {'s':>8}"
    )
    for name in given or sorted(path.name for path in shipped("zoo").glob("digits-*")):
        measure(name, images)


if __name__ == "__main__":
    prepare()
    main(sys.argv[1:])
