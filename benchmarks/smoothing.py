"""What certifying costs: samples and seconds of every mode beside a plain loop over images.

Usage: python benchmarks/smoothing.py [--data digits|cifar10] [--images 100] [--samples 100000] [--epochs 40]

One network, trained shortly under Gaussian noise of sigma 0.25, and the same test images for everything. The
plain loop is how the reference tool of Cohen et al. works: images one by one, batches of 1000 noisy copies,
votes counted on the CPU in a Python loop. `single` is the adaptive mode with radius 0.5 alone. A ratio is to the
plain loop; the last columns are certified accuracy at 0, 0.25, 0.5 and 0.75. A second table times one sample of
a network that is not trained, because time does not depend on that: plain loop, ours, ours with integer noise, and
ours with folded batch norms, all in turn, medians. On a CPU one thread works
and its own time is taken. CIFAR-10 is read from HYDRABENCH_DATA.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hydrabench.data import DATASETS, load_block, load_images, pixels
from hydrabench.evaluators import SmoothingSettings
from hydrabench.evaluators.smoothed import evaluate_smoothed
from hydrabench.models import build_model
from hydrabench.runtime import exact_arithmetic, pick_device
from hydrabench.smoothing import NoiseSource, Sampling, certified_radius, class_counts
from hydrabench.smoothing.forward import Forward

SIGMA, PLAIN_BATCH, BLOCK = 0.25, 1000, 32
RADII = (0.0, 0.25, 0.5, 0.75)
MODES: dict[str, dict[str, Any]] = {
    "cohen": {},
    "adaptive": {"mode": "adaptive"},
    "single": {"mode": "adaptive", "radii": (0.5,)},
}
TIMED = {"cifar_model_bn": ((1, 8, 8), 20_000), "resnet18": ((3, 32, 32), 300)}


@torch.no_grad()
def plain_counts(network: nn.Module, image: Tensor, draws: int, classes: int) -> list[int]:
    """Votes of `draws` noisy copies, counted one by one."""
    counts = [0] * classes
    while draws > 0:
        size = min(PLAIN_BATCH, draws)
        draws -= size
        batch = image.repeat((size, 1, 1, 1))
        predictions = network(batch + torch.randn_like(batch) * SIGMA).argmax(1)
        for prediction in predictions.cpu().numpy():
            counts[prediction] += 1
    return counts


def plain(network: nn.Module, images: Tensor, samples: int, classes: int) -> list[tuple[int, float | None]]:
    """The selected class and its certified radius (None: abstained) for each image."""
    found = []
    for image in images:
        selection = plain_counts(network, image, 100, classes)
        selected = selection.index(max(selection))
        count = plain_counts(network, image, samples, classes)[selected]
        found.append((selected, certified_radius(count, samples, alpha=0.001, sigma=SIGMA)))
    return found


def trained(name: str, epochs: int, device: torch.device) -> nn.Module:
    """A small network for a data set, trained with Adam under Gaussian noise."""
    known, train = DATASETS[name], load_images(name, "train").to(device)
    generator = torch.Generator().manual_seed(0)
    network = build_model("cifar_model_bn", known.shape, known.num_classes, generator=generator).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=generator).split(128):
            x = pixels(train.images[rows.to(device)])
            noise = torch.randn(x.shape, generator=generator).to(device) * SIGMA
            optimizer.zero_grad()
            cross_entropy(network(x + noise), train.labels[rows.to(device)]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Time one call: to its end on a GPU, CPU time of the one thread otherwise, which other programs do not disturb."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, result


def accuracies(labels: Sequence[int], found: Sequence[tuple[int, float | None]]) -> str:
    """Certified accuracy at each radius, in percent."""
    rows = list(zip(labels, found, strict=True))
    counts = [sum(c == y and r is not None and r >= radius for y, (c, r) in rows) for radius in RADII]
    return " ".join(f"{count / len(rows):6.1%}" for count in counts)


def compare_modes(name: str, count: int, samples: int, epochs: int, device: torch.device) -> None:
    """The first table."""
    network = trained(name, epochs, device)
    images, classes = load_images(name, "test"), DATASETS[name].num_classes
    blocks = [load_block(images, 0, tuple(range(i, min(i + BLOCK, count)))) for i in range(0, count, BLOCK)]
    sampling = Sampling(NoiseSource("device" if device.type == "cuda" else "cpu"))
    moved = torch.cat([block.images for block in blocks]).to(device)
    labels = [int(label) for block in blocks for label in block.labels]
    print(f"{name}: {count} images, sigma {SIGMA}, N = {samples}")
    print(f"{'mode':<10}{'samples/image':>14}{'fewer':>8}{'s/image':>9}{'faster':>8}  certified accuracy")
    basis, found = seconds(lambda: plain(network, moved, samples, classes), device)
    print(f"{'plain':<10}{samples:>14}{1:>7.1f}x{basis / count:>9.3f}{1:>7.1f}x  {accuracies(labels, found)}")
    for mode, values in MODES.items():
        settings = SmoothingSettings(**{"sigma": SIGMA, "samples": samples, "radii": RADII, **values})
        spent, records = seconds(
            lambda settings=settings: [r for b in blocks for r in evaluate_smoothed(network, b, settings, sampling)],
            device,
        )
        drawn = sum(record.samples for record in records) / count
        results = [(r.selected, None if r.abstain else r.radius) for r in records]
        print(
            f"{mode:<10}{drawn:>14.0f}{samples / drawn:>7.1f}x{spent / count:>9.3f}{basis / spent:>7.1f}x  "
            f"{accuracies(labels, results)}"
        )


def time_samples(device: torch.device, repeats: int = 5) -> None:
    """The second table."""
    print(f"\n{'network':<16}{'µs/sample':>46}  times as fast as plain")
    for arch, (shape, draws) in TIMED.items():
        network = build_model(arch, shape, 10, generator=torch.Generator().manual_seed(0)).to(device).eval()
        network.requires_grad_(False)
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1)).mul(255).round().div(255).to(device)
        place: Any = "device" if device.type == "cuda" else "cpu"
        given = {"image": image, "sigma": SIGMA, "draws": draws, "key": (0, 0)}
        ours, integers = (
            partial(class_counts, **given, sampling=Sampling(NoiseSource(place, rigor)))  # type: ignore[arg-type]
            for rigor in ("standard", "discrete")
        )
        ways: dict[str, Callable[[], Any]] = {
            "plain": partial(plain_counts, network, image, draws, 10),
            "ours": partial(ours, network),
            "discrete": partial(integers, network),
            "folded": partial(ours, Forward(fold_batch_norm=True).apply(network)),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats + 1):
            for way, work in ways.items():
                times[way].append(seconds(work, device)[0] / draws * 1e6)
        middle = {way: median(spent[1:]) for way, spent in times.items()}  # the first warms up
        shown = "  ".join(f"{way} {value:.1f}" for way, value in middle.items())
        ratios = "  ".join(f"{way} {middle['plain'] / value:.2f}x" for way, value in middle.items() if way != "plain")
        print(f"{arch:<16}{shown:>52}  {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=("digits", "cifar10"))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=40)
    asked = parser.parse_args()
    device = pick_device()
    torch.set_num_threads(1)
    with exact_arithmetic():
        compare_modes(asked.data, asked.images, asked.samples, asked.epochs, device)
        time_samples(device)


if __name__ == "__main__":
    main()
