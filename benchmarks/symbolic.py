"""MixTrain's symbolic margins of a few images in one batch, against the forward zonotope image by image.

Usage: python benchmarks/symbolic.py

`cifar_model` with random weights, 5 images, forward, and forward with backward. The zonotope carries every pixel and
every undecided ReLU forward as a matrix of its own as HYDRA's code has it. Both must agree to 1e-5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from hydrabench.bounds import program_of, read, symbolic_class_margins
from hydrabench.bounds.program.relu import Relu
from hydrabench.models import build_model
from hydrabench.threat import linf_box

IMAGES, REPEATS = 5, 3
Margins = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def zonotope_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    found = []
    for image, label in zip(x, y.tolist(), strict=True):
        lower, upper = linf_box(image.unsqueeze(0), epsilon)
        center = (lower + upper) / 2
        generators = torch.diag(((upper - lower) / 2).flatten()).view(-1, *image.shape)
        for node in read(program_of(network)):
            if not isinstance(node.operation, Relu):
                shift = node.operation.apply(torch.zeros_like(center))
                center, generators = node.operation.apply(center), node.operation.apply(generators) - shift
                continue
            radius = generators.abs().sum(0, keepdim=True)
            below = (center - radius).clamp(max=0)
            above = torch.maximum((center + radius).clamp(min=0), below + 1e-8)
            slope = above / (above - below)
            half = -slope * below / 2
            fresh = torch.diag(half.flatten())[half.flatten() != 0].view(-1, *center.shape[1:])
            center, generators = slope * center + half, torch.cat([generators * slope, fresh])
        found.append(center[0, label] - center[0] - (generators[:, label : label + 1] - generators).abs().sum(0))
    return torch.stack(found)


def seconds(margins: Margins, threat: tuple[nn.Module, Tensor, Tensor, float], *, backward: bool) -> float:
    start = time.process_time()
    with torch.set_grad_enabled(backward):
        found = margins(*threat)
    if backward:
        torch.autograd.grad(found.sum(), list(threat[0].parameters()))
    return time.process_time() - start


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    network = build_model("cifar_model", (3, 32, 32), 10, generator=generator).eval()
    x, y = torch.rand(IMAGES, 3, 32, 32, generator=generator), torch.arange(IMAGES)
    print(f"{torch.get_num_threads()} threads, {IMAGES} images, median of {REPEATS} runs, processor seconds")
    for epsilon in (0.1 / 255, 2 / 255, 8 / 255):
        threat = (network, x, y, epsilon)
        with torch.no_grad():
            torch.testing.assert_close(symbolic_class_margins(*threat), zonotope_margins(*threat), rtol=1e-5, atol=1e-5)
        for backward in (False, True):
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(REPEATS):
                for spent, margins in zip(times, (symbolic_class_margins, zonotope_margins), strict=True):
                    spent.append(seconds(margins, threat, backward=backward))
            ours, theirs = (median(spent) for spent in times)
            name = "forward and backward" if backward else "forward"
            print(f"epsilon {255 * epsilon:3.1f}/255  {name:21} ours {ours:6.3f}  zonotopes {theirs:6.3f}", end="")
            print(f"  ratio {theirs / ours:5.1f}", flush=True)


if __name__ == "__main__":
    main()
