"""What of a pruned network arrives on a device: bytes, channels, latency, beside what is proved and broken.

Usage: python benchmarks/deployment.py [ID...]      # of `hydrabench zoo list`; default: all CIFAR-10 networks shipped
       python benchmarks/deployment.py --csv reports/deployment.csv      # what reports/hydra-reproduction.md shows

Two ONNX files of each network run in onnxruntime, one thread, one image at a time: as it is, and without the channels
that pruning disconnected (`zoo export --format onnx-narrow`). Their logits are compared on images. Times are medians of
turns, and the last column is their ratio within this run. Accuracies are those of the shipped ledgers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from hydrabench.bounds.program.dead_channels import NarrowNetwork
from hydrabench.checkpoints import compact_size, export_onnx, open_ref, read_manifest
from hydrabench.data import load_images, pixels
from hydrabench.files import write_text
from hydrabench.models import inner_network
from hydrabench.reporting.legend import size_text
from hydrabench.workflows.zoo_listing import accuracies

TURNS, PASSES, IMAGES = 15, 200, 100
ACCURACIES = ("clean", "robust", "verified", "certified")
FILES = ("compact", "onnx", "narrow")
HEADS = ("network", *ACCURACIES, *FILES, "channels", "differ by", "µs", "narrow µs", "ratio")


def session(path: Path) -> Any:
    """Return a session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def microseconds(run: Any, image: np.ndarray[Any, Any]) -> float:
    """Return the time of one pass of one image."""
    start = time.perf_counter()
    for _ in range(PASSES):
        run.run(None, {"images": image})
    return 1e6 * (time.perf_counter() - start) / PASSES


def channels(narrow: NarrowNetwork) -> str:
    """Return how many outputs each layer with weights has left."""
    return "-".join(str(len(node.operation.weight)) for node in narrow.nodes if hasattr(node.operation, "weight"))


def row(name: str, folder: Path) -> tuple[str, ...]:
    """Measure one network."""
    checkpoint = open_ref(name)
    network = checkpoint.baked().eval()
    narrow = NarrowNetwork(network)
    files = {"whole": folder / f"{name}.onnx", "narrow": folder / f"{name}-narrow.onnx"}
    export_onnx(checkpoint, files["whole"])
    export_onnx(checkpoint, files["narrow"], network=narrow)
    x = pixels(load_images(checkpoint.header.dataset, "test").take(torch.arange(IMAGES))).numpy()
    runs = {kind: session(path) for kind, path in files.items()}
    logits = {kind: run.run(None, {"images": x})[0] for kind, run in runs.items()}
    difference = float(np.abs(logits["whole"] - logits["narrow"]).max())
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(TURNS):
        for kind, run in runs.items():
            times[kind].append(microseconds(run, x[:1]))
    whole, small = median(times["whole"]), median(times["narrow"])
    known = accuracies(read_manifest()[name])
    return (
        name,
        *("–" if known[one] is None else f"{100 * known[one]:.1f}" for one in ACCURACIES),
        size_text(compact_size(inner_network(network))),
        size_text(files["whole"].stat().st_size),
        size_text(files["narrow"].stat().st_size),
        channels(narrow),
        f"{difference:.0e}",
        f"{whole:.0f}",
        f"{small:.0f}",
        f"{whole / small:.1f}",
    )


def main(names: list[str], csv: Path | None) -> None:
    """Print one row a network, and write them to a file."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, Path(folder)) for name in names]
    table = Table(*HEADS)
    for one in rows:
        table.add_row(*one)
    Console(width=160).print(table)
    if csv is not None:
        write_text(csv, pd.DataFrame(rows, columns=HEADS).to_csv(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="ID")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    every = [name for name, entry in read_manifest().items() if entry.dataset == "cifar10"]
    main(given.names or every, given.csv)
