"""How small the compact layout is, beside the dense file and beside the entropy bound, and how fast.

Usage: python benchmarks/compact_size.py

The networks have their initial weights, of which each layer keeps random ones, and random batch norm
parameters, biases and statistics; the unused `sub_block1` of wrn_28_4 is pruned as in the original's files.
The bound is the sum of n·H(k) + 32·kept bits over all weights. Everything else in the file (batch norm,
biases, table) counts on the compact side only, so compact/bound is not flattered by it; it falls below 1
because the exponents of the kept values are not random, which 32·kept does not use. Only the positions
are compared with n·H(k) alone in positions/bound. Times are medians and include the file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import product
from math import log2
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hydrabench.checkpoints.compact import pack, unpack
from hydrabench.masking import kept_count, top_k_mask
from hydrabench.models import build_model

ARCHS, DENSITIES, REPEATS = ("vgg16_bn", "wrn_28_4"), (0.1, 0.05, 0.01), 7


def pruned_state(arch: str, density: float) -> tuple[dict[str, Tensor], float, float]:
    """A pruned network; bytes that its weights take by the bound, and those of them that are for the positions."""
    generator = torch.Generator().manual_seed(0)
    state = build_model(arch, (3, 32, 32), 10, generator=generator).state_dict()
    positions = values = 0.0
    for name, tensor in state.items():
        if tensor.dim() > 1:
            n, kept = tensor.numel(), kept_count(tensor.numel(), density)
            tensor.mul_(top_k_mask(torch.rand(tensor.shape, generator=generator), kept)).add_(0.0)
            k = kept / n
            positions += n * -(k * log2(k) + (1 - k) * log2(1 - k)) / 8
            values += 4 * kept
        elif tensor.dim() == 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        else:
            state[name] = torch.tensor(39_100)
    return state, positions + values, positions


def seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def main() -> None:
    print(f"{torch.get_num_threads()} threads, median of {REPEATS} runs")
    print(
        f"{'network':9} {'density':>7} {'dense bytes':>12} {'compact bytes':>14} {'ratio':>6} {'bound bytes':>12} "
        f"{'compact/bound':>14} {'positions/bound':>16} {'write s':>8} {'read s':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        dense, compact = Path(folder) / "dense", Path(folder) / "compact"
        for arch, density in product(ARCHS, DENSITIES):
            state, bound, positions = pruned_state(arch, density)
            streams = pack(state)
            save_file(state, dense)
            write = seconds(lambda state=state: save_file(pack(state), compact))
            read = seconds(lambda: unpack(load_file(compact)))
            assert same(unpack(load_file(compact)), state)
            before, after = dense.stat().st_size, compact.stat().st_size
            coded = streams["unary"].numel() + streams["remainders"].numel()
            print(
                f"{arch:9} {density:7} {before:12,} {after:14,} {before / after:6.1f} {bound:12,.0f} "
                f"{after / bound:14.3f} {coded / positions:16.3f} {write:8.3f} {read:7.3f}"
            )


if __name__ == "__main__":
    main()
