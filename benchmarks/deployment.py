"""What of a pruned network arrives on a device: bytes, channels, latency, beside what is proved and broken.

Usage: python benchmarks/deployment.py [ID...]      # of `hydrabench zoo list`; default: all CIFAR-10 networks shipped

Two ONNX files of each network run in onnxruntime, one thread, one image at a time: as it is, and without the channels
that pruning disconnected (`zoo export --format onnx-narrow`). Their logits are compared on images. Times are medians of
turns, and the last column is their ratio within this run. Accuracies are those of the shipped ledgers.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from hydrabench.bounds.program.dead_channels import NarrowNetwork
from hydrabench.checkpoints import compact_size, export_onnx, open_ref, read_manifest
from hydrabench.data import load_images, pixels
from hydrabench.models import inner_network
from hydrabench.reporting.legend import size_text
from hydrabench.workflows.zoo_listing import accuracies

TURNS, PASSES, IMAGES = 15, 200, 100


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
    shown = [f"{100 * value:.1f}" if value is not None else "–" for value in accuracies(read_manifest()[name]).values()]
    return (
        name,
        *shown,
        size_text(compact_size(inner_network(network))),
        size_text(files["whole"].stat().st_size),
        size_text(files["narrow"].stat().st_size),
        channels(narrow),
        f"{difference:.0e}",
        f"{whole:.0f}",
        f"{small:.0f}",
        f"{whole / small:.1f}",
    )


def main(names: list[str]) -> None:
    """Print one row a network."""
    heads = (
        "network",
        "clean",
        "robust",
        "verified",
        "compact",
        "onnx",
        "narrow",
        "channels",
        "differ by",
        "µs",
        "narrow µs",
    )
    table = Table(*heads, "ratio")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            table.add_row(*row(name, Path(folder)))
    Console(width=160).print(table)


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name, entry in read_manifest().items() if entry.dataset == "cifar10"])
