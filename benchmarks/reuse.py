"""What reusing a parent's certificates saves: forward passes of every way to certify a pruned network.

Usage: python benchmarks/reuse.py [--child digits-trades-90] [--images 100] [--samples 100000] [--sigma 0.12]

The parent (the child's, by the zoo's manifest) is certified first, in Cohen's mode and in mode adaptive; that cost is
shown apart, because it is paid once for all children. Passes are forward passes for each image: of the child and,
for reuse, of the parent beside it, selection draws included, counted in the ledgers. `saved` compares with Cohen's
mode on the child. The last columns are certified accuracy at each radius: savings count only where it is equal.
"lost" is the mean fraction of lost votes where votes were compared. `direct` reuses with certificates of the child's
own where that falls short. Everything is determined by the seed; no times are taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from hydrabench.checkpoints import find_entry, open_ref
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


def compare(child_name: str, images: int, samples: int, sigma: float) -> None:
    """Print the table."""
    parent_name = find_entry(child_name).parent or ""
    child, parent = network_of(child_name), network_of(parent_name)
    source = load_images(open_ref(child_name).header.dataset, "test")
    blocks = [load_block(source, 0, tuple(range(i, min(i + BLOCK, images)))) for i in range(0, images, BLOCK)]
    modes = {
        mode: SmoothingSettings.model_validate({"mode": mode, "sigma": sigma, "samples": samples, "radii": RADII})
        for mode in ("cohen", "adaptive")
    }
    of_parent = {mode: evaluate(parent, blocks, settings) for mode, settings in modes.items()}
    alone = {mode: evaluate(child, blocks, settings) for mode, settings in modes.items()}
    basis = sum(map(passes, alone["cohen"])) / images
    print(f"{child_name} from {parent_name}: {images} images, sigma {sigma}, N = {samples}, alpha 0.001")
    print(f"{'':<28}{'passes':>10}{'saved':>9}{'lost':>8}  certified at {', '.join(map(str, RADII))}")
    for mode in modes:
        show(f"(parent, {mode})", of_parent[mode], basis)
    for mode in modes:
        show(f"{mode}", alone[mode], basis)
    for mode, asked in modes.items():
        ledger = {record.index: asdict(record) for record in of_parent[mode]}
        for share in SHARES:
            for direct in (False, True):
                values = {**asked.model_dump(exclude={"mode"}), "parent_mode": mode, "direct": direct}
                settings = ReuseSettings(**values, reuse_samples=max(1, round(share * samples)))
                name = f"reuse {share:.0%} of {mode}{' + direct' * direct}"
                show(name, reuse(child, parent, blocks, ledger, settings), basis)


def main() -> None:
    """Read the options and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", default="digits-trades-90")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--sigma", type=float, default=0.12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with exact_arithmetic():
        compare(given.child, given.images, given.samples, given.sigma)


if __name__ == "__main__":
    main()
