"""What reusing a parent's certificates saves: forward passes of every way to certify a network made from another.

Usage: python benchmarks/reuse.py [--parent digits-trades] [--child bfloat16] [--images 40] [--samples 100000]

The child is the parent with its weights rounded to float16 or bfloat16, or a checkpoint of the zoo. The parent is
certified first, in Cohen's mode; that cost is shown apart, because it is paid once for all children. Passes are forward
passes for each image: of the child and, for reuse, of the parent beside it, selection draws included, counted in the
ledgers. The last columns are certified accuracy at each radius: savings count only where it is equal. "lost" is the
mean fraction of lost votes where votes were compared. Everything is determined by the seed; no times are taken.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from hydrabench.checkpoints import open_ref
from hydrabench.data import load_block, load_images
from hydrabench.data.images import Block
from hydrabench.evaluators import ReuseSettings, SmoothingSettings
from hydrabench.evaluators.reuse import evaluate_reuse
from hydrabench.evaluators.smoothed import evaluate_smoothed
from hydrabench.ledger import SmoothedRecord
from hydrabench.runtime import exact_arithmetic

BLOCK = 32
RADII = (0.0, 0.1, 0.2, 0.3)
SHARES = (0.02, 0.1, 0.3)  # of the parent's draws that are shared at most
ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def network_of(name: str) -> nn.Module:
    """A checkpoint of the zoo, ready to be evaluated."""
    return open_ref(name).baked().eval().requires_grad_(False)


def passes(record: SmoothedRecord) -> int:
    """Forward passes that one image took."""
    return int(getattr(record, "passes", sum(record.selection) + record.samples))


def certified(records: Sequence[SmoothedRecord], radius: float) -> float:
    """Certified accuracy."""
    return sum(r.prediction == r.label and not r.abstain and r.radius >= radius for r in records) / len(records)


def show(name: str, records: Sequence[SmoothedRecord], basis: float) -> None:
    """Print one line of the table."""
    spent = sum(map(passes, records)) / len(records)
    compared = [record for record in records if getattr(record, "disagreements", None) is not None and record.samples]
    shared = [r.lost / r.samples for r in compared if r.certificate == "reused"]  # type: ignore[attr-defined]
    lost = f"{sum(shared) / len(shared):.2%}" if shared else ""
    cells = " ".join(f"{certified(records, radius):6.1%}" for radius in RADII)
    print(f"{name:<28}{spent:>10.0f}{1 - spent / basis:>9.1%}{lost:>8}  {cells}")


def evaluate(network: nn.Module, blocks: Sequence[Block], settings: SmoothingSettings) -> list[SmoothedRecord]:
    """Certify without a parent."""
    return [record for block in blocks for record in evaluate_smoothed(network, block, settings)]


def reuse(
    network: nn.Module, parent: nn.Module, blocks: Sequence[Block], ledger: Mapping[int, Any], settings: ReuseSettings
) -> list[SmoothedRecord]:
    """Certify by the parent's ledger."""
    return [
        record for block in blocks for record in evaluate_reuse(network, block, settings, parent=parent, ledger=ledger)
    ]


def child_of(parent: nn.Module, name: str) -> nn.Module:
    """The parent in fewer bits, or a checkpoint of the zoo."""
    if name not in ROUNDED:
        return network_of(name)
    child = copy.deepcopy(parent)
    for weights in child.parameters():
        weights.data = weights.data.to(ROUNDED[name]).to(weights.dtype)
    return child


def compare(parent_name: str, child_name: str, images: int, samples: int, sigma: float) -> None:
    """Print the table."""
    parent = network_of(parent_name)
    child = child_of(parent, child_name)
    source = load_images(open_ref(parent_name).header.dataset, "test")
    blocks = [load_block(source, 0, tuple(range(i, min(i + BLOCK, images)))) for i in range(0, images, BLOCK)]
    asked = {"sigma": sigma, "samples": samples, "radii": RADII}
    cohen, adaptive = (SmoothingSettings.model_validate({"mode": mode, **asked}) for mode in ("cohen", "adaptive"))
    of_parent = evaluate(parent, blocks, cohen)
    basis = float(cohen.n0 + samples)
    print(f"{child_name} from {parent_name}: {images} images, sigma {sigma}, N = {samples}, alpha 0.001")
    print(f"{'':<28}{'passes':>10}{'saved':>9}{'lost':>8}  certified at {', '.join(map(str, RADII))}")
    show("(parent, cohen)", of_parent, basis)
    show("cohen", evaluate(child, blocks, cohen), basis)
    show("adaptive", evaluate(child, blocks, adaptive), basis)
    ledger = {record.index: asdict(record) for record in of_parent}
    for share in SHARES:
        settings = ReuseSettings(**cohen.model_dump(exclude={"mode"}), reuse_samples=max(1, round(share * samples)))
        show(f"reuse {share:.0%}", reuse(child, parent, blocks, ledger, settings), basis)


def main() -> None:
    """Read the options and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", default="digits-trades")
    parser.add_argument("--child", default="bfloat16")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--sigma", type=float, default=0.25)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with exact_arithmetic():
        compare(given.parent, given.child, given.images, given.samples, given.sigma)


if __name__ == "__main__":
    main()
