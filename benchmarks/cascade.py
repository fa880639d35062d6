"""The tighter bounds on trained networks: CROWN against auto_LiRPA, and a cascade against CROWN on every image.

Usage: python benchmarks/cascade.py [CHECKPOINT ...]

Checkpoints of the zoo, at the radius that they were trained for, the first images of their test set in one batch.
auto_LiRPA is asked for the whole batch, which is its fast way and the reason why its bounds can be looser.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from hydrabench.bounds import BOUNDS, lirpa
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_images
from hydrabench.data.images import pixels
from hydrabench.threat import parse_radius

CHECKPOINTS, IMAGES, REPEATS = ("digits-crown-ibp", "digits-crown-ibp-99", "digits-trades-95"), 100, 5


def medians(works: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Processor seconds, all works in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if repeat:
                times[name].append(time.process_time() - start)
    return {name: median(values) for name, values in times.items()}


@torch.no_grad()
def main(names: Sequence[str]) -> None:
    print(f"{torch.get_num_threads()} threads, {IMAGES} images, median of {REPEATS} runs, processor seconds")
    for name in names or CHECKPOINTS:
        checkpoint = open_ref(name)
        network, images = (
            checkpoint.baked().eval().requires_grad_(False),
            load_images(checkpoint.header.dataset, "test"),
        )
        x, y = pixels(images.images[:IMAGES]), images.labels[:IMAGES]
        epsilon = float(parse_radius((checkpoint.header.default_threat() or {"epsilon": "8/255"})["epsilon"]))
        bounded, rows = lirpa.bounded_module(network, x, sparse=True), lirpa.margin_rows(y, images.num_classes, x.dtype)

        def theirs(bounded=bounded, x=x, rows=rows, epsilon=epsilon) -> Tensor:  # type: ignore[no-untyped-def]
            ball = lirpa.perturbed(x, epsilon)
            found = bounded.compute_bounds(x=(ball,), C=rows, method="CROWN", bound_upper=False)
            return found[0].min(1).values  # type: ignore[no-any-return]

        works: dict[str, Callable[[], Tensor]] = {
            key: (lambda bound=BOUNDS[key], threat=(network, x, y, epsilon): bound(*threat))
            for key in ("crown-ibp", "crown", "cascade")
        }
        found = {key: work() for key, work in (works | {"theirs": theirs}).items()}
        assert (found["crown"] >= found["theirs"] - 1e-3).all()
        spent = medians(works | {"theirs": theirs})
        verified = {key: int((lower > 0).sum()) for key, lower in found.items()}
        print(f"{name}, epsilon {255 * epsilon:g}/255, verified {verified}")
        print(f"  crown: auto_LiRPA {spent['theirs']:.3f}, ours {spent['crown']:.3f}, ", end="")
        print(f"ratio {spent['theirs'] / spent['crown']:.1f}")
        print(f"  cascade {spent['cascade']:.3f}, crown-ibp {spent['crown-ibp']:.3f}, ", end="")
        print(f"crown / cascade {spent['crown'] / spent['cascade']:.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
