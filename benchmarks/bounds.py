"""Our margin bounds against auto_LiRPA's and against the work that no implementation can avoid.

Usage: python benchmarks/bounds.py [NETWORK ...]

Two networks of the package and a small residual one, each with its initial weights and after a short
certified training on ten noisy patterns, which leaves few margins open, as in networks worth bounding.
One batch, medians of runs taken in turn; only the ratios mean something on a busy machine. Memory that is
freed stays with the process on both sides, as `hydrabench` has it.

The floor of `ibp` is two passes of the plain network, one for centers and one for widths. That of
`crown-ibp` adds one transposed pass, without its ReLUs, for every margin that the intervals leave open;
`crown-ibp open` leaves the proved ones out too, `crown-ibp` and auto_LiRPA carry all nine. Both sides read the
network before the clock starts; `ibp, read anew` is `ibp` of a network that is not prepared. `training` is
the loss of CROWN-IBP, both bounds mixed evenly, forward and backward; its floor is the work of `ibp` and
`crown-ibp` with all margins, three times, for a gradient takes twice what a pass does.

Last comes CROWN of one image of the residual network, on CPUs: each side in a new process, which trained nothing and
has kept no memory, times as the least of `CROWN_REPEATS` runs, memory as how far the resident set grows. Pages of
libraries do not count: auto_LiRPA reads a network by running it, and has torch's loaded before the count begins.
"""

from __future__ import annotations

import copy
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.bounds import (
    Node,
    class_margins,
    crown_ibp_margins,
    crown_margins,
    interval_margins,
    lirpa,
    prepared,
    program_of,
    read,
)
from hydrabench.bounds.program.operations import Linear
from hydrabench.bounds.program.program import shapes_of
from hydrabench.errors import HydrabenchError
from hydrabench.models import MODELS
from hydrabench.models.resnet import BasicBlock
from hydrabench.process import prepare

METHODS = {"ibp": interval_margins, "crown-ibp": crown_ibp_margins}  # the tighter ones are in benchmarks/cascade.py
BATCH, SHAPE, CLASSES, EPSILON, REPEATS, STEPS = 32, (3, 32, 32), 10, 2 / 255, 7, 80
CROWN_REPEATS = 5
Work = Callable[[], object]


def residual() -> nn.Module:
    """Three residual blocks with batch norm, 16 to 64 channels, and average pooling."""
    blocks = [BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2)]
    first = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*first, *blocks, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, CLASSES))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar_model": lambda: MODELS["cifar_model"].build(SHAPE, CLASSES),
    "cifar_model_large": lambda: MODELS["cifar_model_large"].build(SHAPE, CLASSES),
    "residual": residual,
}


@dataclass(frozen=True)
class Images:
    """Ten fixed patterns; an image is one of them under noise, in [0, 1]."""

    patterns: Tensor
    generator: torch.Generator

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the next images and their labels."""
        y = torch.randint(CLASSES, (BATCH,), generator=self.generator)
        noise = torch.randn(BATCH, *SHAPE, generator=self.generator)
        return (self.patterns[y] + 0.05 * noise).clamp(0, 1), y


def train(network: nn.Module, images: Images, device: torch.device) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(STEPS):
        x, y = (tensor.to(device) for tensor in images.batch())
        network.train()
        clean = F.cross_entropy(network(x), y)
        bounds = class_margins(network.eval(), x, y, EPSILON * step / STEPS, beta=0.0)
        loss = clean + F.cross_entropy(-bounds, y) * (step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


# Works -----------------------------------------------------------------------------------------


def transposed_pass(nodes: Sequence[Node], shapes: Sequence[torch.Size], rows: Tensor) -> Tensor:
    """Carry (P, K) to the pixels through the transposed linear operations alone."""
    waiting = {len(nodes): rows}
    for number in range(len(nodes), 0, -1):
        node, value = nodes[number - 1], waiting.pop(number)
        if isinstance(node.operation, Linear):
            taken = [torch.Size((len(rows), *shapes[source])) for source in node.inputs]
            value = node.operation.back(value, taken)[0]  # both values of a sum get the same
        for source in node.inputs:
            waiting[source] = waiting[source] + value if source in waiting else value
    return waiting[0]


def without_biases(nodes: Sequence[Node]) -> list[Node]:
    return [
        replace(node, operation=replace(node.operation, bias=None)) if hasattr(node.operation, "bias") else node
        for node in nodes
    ]


def loss_of(margins: Callable[[], Tensor], network: nn.Module, y: Tensor) -> Work:
    def work() -> None:
        network.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(-margins(), y).backward()

    return work


def their_works(network: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> dict[str, Work]:
    """auto_LiRPA, as its own examples call it: the pass of intervals is shared in training."""
    fixed = lirpa.bounded_module(network, x)
    with lirpa.calling("cannot read this network"):
        trained = lirpa.auto_lirpa().BoundedModule(network, x, device=x.device, bound_opts={"conv_mode": "patches"})

    def lower(name: str) -> Tensor:
        return lirpa.lower_bounds(fixed, lirpa.perturbed(x, EPSILON), rows, name).min(1).values

    def mixed() -> Tensor:
        with lirpa.calling("cannot bound this network"):
            (interval, _) = trained.compute_bounds(x=(lirpa.perturbed(x, EPSILON),), IBP=True, C=rows, method=None)
            (backward, _) = trained.compute_bounds(IBP=False, C=rows, method="backward", bound_upper=False)
        return F.pad(torch.lerp(interval, backward, 0.5), (1, 0))  # class 0 stands for the true one

    for name, bound in METHODS.items():
        torch.testing.assert_close(
            bound(network, x, y, EPSILON), lower(lirpa.METHODS[name]), rtol=1e-3, atol=1e-3, msg=name
        )
    works: dict[str, Work] = {f"theirs {name}": partial(lower, lirpa.METHODS[name]) for name in METHODS}
    works["theirs crown-ibp open"], works["theirs ibp, read anew"] = works["theirs crown-ibp"], works["theirs ibp"]
    return works | {"theirs training": loss_of(mixed, network, torch.zeros_like(y))}


def works_of(network: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Work], float]:
    """Everything to time, by name, and the share of margins that intervals leave open."""
    rows = lirpa.margin_rows(y, CLASSES, x.dtype)
    fixed = copy.deepcopy(network).requires_grad_(False)  # as evaluations have it
    ready, nodes = prepared(fixed), without_biases(read(program_of(fixed)))
    shapes = shapes_of(nodes, x)
    margins = class_margins(network, x, y, EPSILON, beta=0.0)
    is_open = (margins <= 0) & (torch.arange(CLASSES, device=y.device) != y.unsqueeze(1))
    left = torch.eye(CLASSES, device=y.device)[is_open.nonzero()[:, 1]]
    every = rows.flatten(0, 1)

    def floor(rows: Tensor) -> None:
        network(x), network(x), transposed_pass(nodes, shapes, rows) if len(rows) else None

    def floor_of_training() -> None:
        for _ in range(3):
            floor(every)

    mixed = partial(class_margins, network, x, y, EPSILON, beta=0.5)
    works: dict[str, Work] = {
        "floor ibp": lambda: (network(x), network(x)),
        "floor ibp, read anew": lambda: (network(x), network(x)),
        "floor crown-ibp": partial(floor, left),
        "floor crown-ibp open": partial(floor, left),
        "floor training": floor_of_training,
        **{f"ours {name}": partial(bound, ready, x, y, EPSILON) for name, bound in METHODS.items()},
        "ours ibp, read anew": partial(interval_margins, fixed, x, y, EPSILON),
        "ours crown-ibp open": partial(crown_ibp_margins, ready, x, y, EPSILON, only_open=True),
        "ours training": loss_of(mixed, network, y),
    }
    try:
        works |= their_works(network, x, y, rows)
    except HydrabenchError as error:
        print(f"without auto_LiRPA: {error}")
    return works, float(is_open.sum() / (len(y) * (CLASSES - 1)))


# CROWN of one image ----------------------------------------------------------------------------


def crown_of_one_image(whose: str, network: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """The lower bound of the margin of an image (1, C, H, W), the milliseconds that it takes, and the MiB."""
    torch.set_grad_enabled(False)
    if whose == "ours":
        work: Callable[[], Tensor] = partial(crown_margins, prepared(network), x, y, EPSILON)
    else:
        bounded = lirpa.bounded_module(network, x, sparse=True)
        rows = lirpa.margin_rows(y, CLASSES, x.dtype)
        work = lambda: lirpa.lower_bounds(bounded, lirpa.perturbed(x, EPSILON), rows, "CROWN").min(1).values  # noqa: E731
    before = resident("RssAnon")
    times = [milliseconds(work, x.device) for _ in range(CROWN_REPEATS)]
    return float(work()), min(times), resident("VmHWM") - resident("RssFile") - before


def resident(name: str) -> float:
    """MiB of this process: what it wrote (RssAnon), pages of files (RssFile), or both at their largest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def compare_crown(network: nn.Module, x: Tensor, y: Tensor) -> str:
    """Both sides' times and memory, and how often ours goes into theirs. Raises: AssertionError if bounds differ."""
    fixed, found = copy.deepcopy(network).requires_grad_(False), []
    for whose in ("ours", "theirs"):
        with multiprocessing.get_context("spawn").Pool(1, prepare) as pool:
            found.append(pool.apply(crown_of_one_image, (whose, fixed, x, y)))
    (ours, spent, memory), (theirs, their_time, their_memory) = found
    assert abs(ours - theirs) < 1e-3
    texts = [f"{ms:.0f} ms, {mib:.0f} MiB" for ms, mib in ((spent, memory), (their_time, their_memory))]
    ratios = f"{their_time / spent:.2f}, {their_memory / memory:.2f}"
    return f"crown of one image: ours {texts[0]}; theirs {texts[1]}; theirs/ours {ratios}"


# Clocks ----------------------------------------------------------------------------------------


def milliseconds(work: Work, device: torch.device) -> float:
    """Time on the device; on CPUs the process's own, all threads together, which a busy machine disturbs less."""
    if device.type != "cuda":
        start = time.process_time()
        work()
        return (time.process_time() - start) * 1e3
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def medians(works: dict[str, Work], device: torch.device) -> dict[str, float]:
    """Time all works in turn, so that a busy moment of the machine hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 2):
        for name, work in works.items():
            spent = milliseconds(work, device)
            if repeat >= 2:
                times[name].append(spent)
    return {name: median(values) for name, values in times.items()}


@torch.no_grad()
def main(names: Sequence[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device.type}, {torch.get_num_threads()} threads, batch {BATCH}, median of {REPEATS} runs")
    print(f"{'network':26} {'open':>5} {'work':14} {'floor ms':>9} {'ours ms':>9} {'/floor':>7} {'theirs/ours':>12}")
    for name in names or NETWORKS:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        images = Images(torch.rand(CLASSES, *SHAPE, generator=generator), generator)
        network = NETWORKS[name]().to(device).eval()
        for state in ("initial", "trained"):
            if state == "trained":
                with torch.enable_grad():
                    train(network, images, device)
            x, y = (tensor.to(device) for tensor in images.batch())
            works, share = works_of(network, x, y)
            found = medians(works, device)
            for work in (*METHODS, "crown-ibp open", "training", "ibp, read anew"):
                floor, ours, theirs = (found.get(f"{who} {work}", float("nan")) for who in ("floor", "ours", "theirs"))
                title = f"{name}, {state}"
                print(f"{title:26} {share:5.0%} {work:14} {floor:9.2f} {ours:9.2f} {ours / floor:7.2f} ", end="")
                print(f"{theirs / ours:12.2f}", flush=True)
            if name == "residual" and device.type == "cpu" and "theirs ibp" in works:
                print(f"{name + ', ' + state:26} {compare_crown(network, x[:1], y[:1])}", flush=True)


if __name__ == "__main__":
    prepare()
    main(sys.argv[1:])
