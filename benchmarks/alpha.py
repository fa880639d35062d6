"""alpha-CROWN of our own engine against auto_LiRPA's, at equal iterations: proofs, mean bounds, time and memory.

Usage: python benchmarks/alpha.py [--slopes all] [NETWORK ...]

Checkpoints of the zoo at the radius that they were trained for, and, where HYDRABENCH_DATA has CIFAR-10, two small
networks after a short adversarial training on it: cifar_model and a residual one. All of them by default. Images are
the first ones of the test set that are classified right. Each engine runs in a process of its own, forked before
anything is bounded: times are the processor's, the best of `REPEATS`, memory is how far the resident set grows.
Reading the network is no part of either time: ours is prepared, theirs is timed and taken off.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bounds import residual
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.bounds import (
    BOUNDS,
    Search,
    alpha_crown_margins,
    bounded_module,
    lirpa_alpha_margins,
    prepared,
    require_auto_lirpa,
)
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_images
from hydrabench.data.images import pixels
from hydrabench.errors import HydrabenchError
from hydrabench.files import shipped
from hydrabench.models import MODELS
from hydrabench.process import prepare
from hydrabench.threat import parse_radius, radius_text

ITERATIONS, REPEATS = 20, 2
DIGITS = 60  # images
CIFAR: dict[str, tuple[Callable[[], nn.Module], int, int, str]] = {  # network, steps of training, images, radius
    "cifar_model": (lambda: MODELS["cifar_model"]((3, 32, 32), 10), 1500, 16, "2/255"),
    "residual": (residual, 200, 1, "2/255"),
}
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Found:
    """What an engine found: lower bounds, (B,), processor seconds, and MiB that it took."""

    lower: Tensor
    seconds: float
    memory: float


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns in a process of its own."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send_bytes(pickle.dumps(work(*given))))
    process.start()
    sender.close()
    found = pickle.loads(receiver.recv_bytes())  # not `recv`, by which tensors share memory with what ends here
    process.join()
    return found


def measured(work: Callable[[], Tensor], reading: Callable[[], object]) -> Found:
    """The work, and how long it takes without reading."""
    before = resident("VmRSS")
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        reading()
        read = time.process_time()
        lower = work()
        times.append(time.process_time() - read - (read - start))
    return Found(lower, min(times), resident("VmHWM") - before)


def resident(name: str) -> float:
    """The resident set of this process, now or at its largest, in MiB, as Linux has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def compare(name: str, network: nn.Module, x: Tensor, y: Tensor, epsilon: Fraction, search: Search) -> None:
    """Print a line. Raises: AssertionError if ours proves less."""
    right = network(x).argmax(1) == y
    x, y, radius = x[right], y[right], float(epsilon)
    ready = prepared(network)
    crown = apart(BOUNDS["crown"], ready, x, y, radius)
    ours = apart(measured, partial(alpha_crown_margins, ready, x, y, radius, search=search), lambda: None)
    theirs = apart(
        measured,
        partial(lirpa_alpha_margins, network, x, y, radius, search=search),
        partial(bounded_module, network, x[:1]),
    )
    proved = [int((lower > 0).sum()) for lower in (crown, ours.lower, theirs.lower)]
    assert proved[1] >= proved[2]
    print(
        f"{name:22} {radius_text(epsilon):>7} {len(y):4} {proved[0]:6} {proved[1]:5} {proved[2]:6} "
        f"{crown.mean():9.4f} {ours.lower.mean():9.4f} {theirs.lower.mean():9.4f} "
        f"{ours.seconds:7.2f} {theirs.seconds:7.2f} {ours.seconds / theirs.seconds:6.2f} "
        f"{ours.memory:7.0f} {theirs.memory:7.0f} {ours.memory / theirs.memory:6.2f}",
        flush=True,
    )


@torch.enable_grad()
def trained(make: Callable[[], nn.Module], steps: int, file: Path) -> None:
    """Train a network on CIFAR-10 at 2/255, by one step of an attack for each, and write its tensors."""
    torch.manual_seed(0)
    network, images = make(), load_images("cifar10", "train")
    optimizer, epsilon = torch.optim.Adam(network.parameters(), 1e-3), 2 / 255
    for _ in range(steps):
        batch = torch.randint(8000, (64,))
        x, y = pixels(images.images[batch]), images.labels[batch]
        moved = (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(network(moved), y), moved)
        step = (moved.detach() + 1.25 * epsilon * slope.sign() - x).clamp(-epsilon, epsilon)
        optimizer.zero_grad()
        F.cross_entropy(network((x + step).clamp(0, 1)), y).backward()
        optimizer.step()
    torch.save(network.state_dict(), file)


def on_cifar(name: str, search: Search) -> None:
    make, steps, count, epsilon = CIFAR[name]
    try:
        images = load_images("cifar10", "test")
    except HydrabenchError as error:
        print(f"{name}: {error}")
        return
    network = make()
    with TemporaryDirectory() as folder:
        apart(trained, make, steps, Path(folder) / "network.pt")
        network.load_state_dict(torch.load(Path(folder) / "network.pt"))
    network.eval().requires_grad_(False)
    x, y = pixels(images.images[:100]), images.labels[:100]
    right = (network(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    compare(name, network, x[right], y[right], parse_radius(epsilon), search)


def of_zoo(name: str, search: Search) -> None:
    checkpoint = open_ref(name)
    network = checkpoint.baked().eval().requires_grad_(False)
    images = load_images(checkpoint.header.dataset, "test")
    epsilon = parse_radius((checkpoint.header.default_threat() or {"epsilon": "16/255"})["epsilon"])
    compare(name, network, pixels(images.images[:DIGITS]), images.labels[:DIGITS], epsilon, search)


def main(arguments: Sequence[str]) -> None:
    every = "--slopes" in arguments
    names = [name for name in arguments if name not in ("--slopes", "all", "output")]
    search = Search("all" if every and "all" in arguments else "output", ITERATIONS)
    torch.set_num_threads(1)
    require_auto_lirpa()
    print(f"1 thread, {search.iterations} iterations, slopes {search.slopes}; c: crown, o: ours, t: theirs")
    print(f"{'network':22} {'epsilon':>7} {'':4} proved: c     o      t   mean: c         o         t ", end="")
    print(" seconds: o     t    o/t   MiB: o       t    o/t")
    with torch.no_grad():
        for name in names or [*sorted(path.name for path in shipped("zoo").glob("digits-*")), *CIFAR]:
            (on_cifar if name in CIFAR else of_zoo)(name, search)


if __name__ == "__main__":
    prepare()
    main(sys.argv[1:])
