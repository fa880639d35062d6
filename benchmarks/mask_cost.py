"""What the masks cost: seconds to select all of them, beside one forward pass of the same network.

Usage: python benchmarks/mask_cost.py

vgg16_bn and wrn_28_4 at 32x32 with scaled scores; the pass is one of 128 images in eval mode, without
gradients and without masks. The columns: `per layer` selects in every layer, as the prune phase
does once per optimizer step; `global` finds the share of every layer first; `full sort` sorts every layer,
which is what the original does in every forward pass of every phase. Medians of the repeats, all works in
turn; a ratio is to the forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor

from hydrabench.masking import kept_counts, scaled_scores, share_budget, top_k_mask, total_kept
from hydrabench.masking.density import prunable_layers
from hydrabench.models import build_model

ARCHS, DENSITIES = ("vgg16_bn", "wrn_28_4"), (0.1, 0.01)
BATCH, REPEATS, WARM_UP = 128, 7, 1


def full_sort_mask(scores: Tensor, kept: int) -> Tensor:
    """The same mask by sorting all |scores|."""
    order = scores.abs().flatten().argsort()
    mask = torch.ones(scores.numel(), device=scores.device)
    mask[order[: scores.numel() - kept]] = 0
    return mask.view_as(scores)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call, to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def medians(works: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Median seconds of each work; all take turns, so that a busy moment of the machine hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(WARM_UP + REPEATS):
        for name, work in works.items():
            spent = seconds(work, device)
            if repeat >= WARM_UP:
                times[name].append(spent)
    return {name: median(spent) for name, spent in times.items()}


def measure(arch: str, density: float, device: torch.device) -> dict[str, float]:
    """Median seconds of a forward pass and of the three ways to select all masks of one network."""
    network = build_model(arch, (3, 32, 32), 10, generator=torch.Generator().manual_seed(0)).to(device).eval()
    scores = {name: scaled_scores(layer) for name, layer in prunable_layers(network).items()}
    counts, total = kept_counts(network, density), total_kept(network, density)
    x = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)

    def globally() -> list[Tensor]:
        shares = share_budget(list(scores.values()), total)
        return [top_k_mask(layer, kept) for layer, kept in zip(scores.values(), shares, strict=True)]

    for name, layer in scores.items():  # both ways keep the same; only then is their time comparable
        assert (
            (top_k_mask(layer, counts[name]) * layer)
            .abs()
            .sum()
            .isclose((full_sort_mask(layer, counts[name]) * layer).abs().sum())
        )
    assert sum(int(mask.sum()) for mask in globally()) == total
    works: dict[str, Callable[[], object]] = {
        "forward": lambda: network(x),
        "per layer": lambda: [top_k_mask(layer, counts[name]) for name, layer in scores.items()],
        "global": globally,
        "full sort": lambda: [full_sort_mask(layer, counts[name]) for name, layer in scores.items()],
    }
    return medians(works, device)


@torch.no_grad()
def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{name}, batch {BATCH}, seconds, median of {REPEATS} runs; in brackets: of one forward pass")
    print(f"{'network':9} {'density':>7} {'forward':>9} {'per layer':>18} {'global':>18} {'full sort':>18}")
    for arch in ARCHS:
        for density in DENSITIES:
            found = measure(arch, density, device)
            cells = [
                f"{found[way]:.4f} ({found[way] / found['forward']:.3f})".rjust(18)
                for way in ("per layer", "global", "full sort")
            ]
            print(f"{arch:9} {density:7} {found['forward']:9.4f} {' '.join(cells)}")


if __name__ == "__main__":
    main()
