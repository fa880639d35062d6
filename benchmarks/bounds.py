"""Our margin bounds against auto_LiRPA's and against the work that no implementation can avoid.

Usage: python benchmarks/bounds.py

One network (reference/hydra.md section 4.5, `cifar_model`), one batch, no gradients, medians of the
repeats. The floor of `ibp` is two passes of the plain network, one for centers and one for widths; that
of `crown-ibp` adds one transposed pass for the margins of 9 classes, without its ReLUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.bounds import BOUNDS, lirpa
from hydrabench.errors import HydrabenchError

BATCH, CLASSES, EPSILON, REPEATS = 32, 10, 2 / 255, 31


def cifar_model(generator: torch.Generator) -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 100),
        nn.ReLU(),
        nn.Linear(100, CLASSES),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return network


def transposed_pass(network: nn.Sequential, rows: Tensor) -> Tensor:
    """Carry (B, S, K) to (B · S, 3, 32, 32) through the transposed linear layers alone."""
    value = rows.flatten(0, 1)
    for layer in reversed(network):
        if isinstance(layer, nn.Linear):
            value = value @ layer.weight
        elif isinstance(layer, nn.Flatten):
            value = value.view(-1, 32, 8, 8)
        elif isinstance(layer, nn.Conv2d):
            value = F.conv_transpose2d(value, layer.weight, stride=2, padding=1)
    return value


def milliseconds(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e3

    return once


def medians(works: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Time all works in turn, so that a busy moment of the machine hits them alike."""
    clocks = {name: milliseconds(work, device) for name, work in works.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 3):
        for name, clock in clocks.items():
            spent = clock()
            if repeat >= 3:
                times[name].append(spent)
    return {name: median(values) for name, values in times.items()}


@torch.no_grad()
def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    network = cifar_model(generator).to(device).eval()
    x = torch.rand(BATCH, 3, 32, 32, generator=generator).to(device)
    y = torch.randint(CLASSES, (BATCH,), generator=generator).to(device)
    rows = lirpa.margin_rows(y, CLASSES, x.dtype)

    works: dict[str, Callable[[], object]] = {
        "floor ibp": lambda: (network(x), network(x)),
        "floor crown-ibp": lambda: (network(x), network(x), transposed_pass(network, rows)),
    }
    works |= {f"ours {name}": (lambda bound=bound: bound(network, x, y, EPSILON)) for name, bound in BOUNDS.items()}
    try:
        other = lirpa.bounded_module(network, x)
    except HydrabenchError as error:
        print(f"without auto_LiRPA: {error}")
    else:
        for name in BOUNDS:

            def lower(name: str = name) -> Tensor:
                ball = lirpa.perturbed(x, EPSILON)
                found = other.compute_bounds(x=(ball,), C=rows, method=lirpa.METHODS[name], bound_upper=False)
                return found[0].min(1).values

            torch.testing.assert_close(BOUNDS[name](network, x, y, EPSILON), lower(), rtol=1e-4, atol=1e-4)
            works[f"auto_LiRPA {name}"] = lower

    found = medians(works, device)
    print(f"{device.type}, {torch.get_num_threads()} threads, batch {BATCH}, median of {REPEATS} runs")
    print(f"{'method':10} {'floor ms':>9} {'ours ms':>9} {'theirs ms':>9} {'ours/floor':>11} {'ours/theirs':>11}")
    for name in BOUNDS:
        floor, ours, theirs = (found.get(f"{who} {name}", float("nan")) for who in ("floor", "ours", "auto_LiRPA"))
        print(f"{name:10} {floor:9.2f} {ours:9.2f} {theirs:9.2f} {ours / floor:11.2f} {ours / theirs:11.2f}")


if __name__ == "__main__":
    main()
