"""`certify --export-vnnlib`: a network as ONNX and a VNN-LIB property per image, for other verifiers."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hydrabench.bounds.vnnlib import robustness_property
from hydrabench.checkpoints import export_onnx
from hydrabench.data import Block, Choice, load_block
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EvaluationSettings
from hydrabench.evaluators.blocks import BLOCK_SIZE
from hydrabench.evaluators.clean import clean_logits
from hydrabench.files import write_text
from hydrabench.runtime import PRECISIONS, World, exact_arithmetic
from hydrabench.threat import linf_box, parse_radius
from hydrabench.workflows.evaluation.continuing import ChosenImages, chosen_images
from hydrabench.workflows.evaluation.loading import Subject
from hydrabench.workflows.evaluation.run_folders import ALL
from hydrabench.workflows.progress import say
from hydrabench.workflows.refusals import refuse_export
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.writer import one_writer

VERIFIER_TIMEOUT = 300.0  # seconds that a verifier gets for each image, unless told otherwise


@dataclass(frozen=True)
class Export:
    """Data-set indices of the images that have an instance, and of those left out, where the network is wrong."""

    written: tuple[int, ...]
    left_out: tuple[int, ...]


def export_vnnlib(
    subject: Subject,
    settings: EvaluationSettings,
    folder: Path,
    *,
    options: RunOptions,
    among: Choice = ALL,
    indices: Sequence[int] = (),
    timeout: float = VERIFIER_TIMEOUT,
) -> Export:
    """Write what a verifier needs to judge test images at the radius of `settings`.

    `folder` gets instances.csv, whose lines are network, property and timeout, paths relative to it;
    onnx/NAME.onnx, normalisation inside; and vnnlib/NAME-INDEX.vnnlib for every image that the network classifies
    right. A misclassified image needs no verifier: it is its own adversarial example. Networks and boxes are float32,
    whatever the precision of `subject`, and a box is to the last bit the one that float32 bounds are computed for.

    instances.csv is written last: an export that was killed before that is made anew.

    Args:
        among, indices: which images, as for `evaluate`. timeout: seconds for each image, > 0.
    Raises: ConfigError if `settings` bound no L-infinity ball or `timeout` is not positive; LedgerError if `folder`
        holds something; HydrabenchError if onnx is not installed; DataError as `choose`.
    """
    epsilon = _radius(settings)
    if not timeout > 0:
        raise ConfigError(f"--vnnlib-timeout is a number of seconds above 0, got {timeout:g}")
    refuse_export(folder)
    images = subject.test_images(options)
    selection = ChosenImages(images, chosen_images(images, among, indices, settings))
    world = World()
    with one_writer(folder, world):
        export = world.on_main(lambda: _write(subject, selection, folder, epsilon=epsilon, timeout=timeout))
    if world.is_main:
        say(
            f"{folder}: {len(export.written)} instances for {len(selection.indices)} images; the network misclassifies "
            f"the other {len(export.left_out)}"
        )
    return export


def _radius(settings: EvaluationSettings) -> float:
    """The radius of the L-infinity balls that settings bound. Raises: ConfigError if they bound none."""
    values = settings.plain()
    if "epsilon" not in values or values.get("norm") != "linf":
        remedy = "choose another --method" if "epsilon" not in values else "leave out --norm l2"
        raise ConfigError(f"--export-vnnlib writes L∞ balls, {settings.protocol} bounds none; {remedy}")
    return float(parse_radius(values["epsilon"]))


def _write(subject: Subject, selection: ChosenImages, folder: Path, *, epsilon: float, timeout: float) -> Export:
    images = selection.images
    refuse_export(folder, but=frozenset({"onnx", "vnnlib"}))  # again: now no other process writes there
    for left in (*folder.glob("onnx/*"), *folder.glob("vnnlib/*")):
        left.unlink()  # by an export that was killed, perhaps of other images
    name = subject.name.replace("/", "_")
    onnx = f"onnx/{name}.onnx"
    network = copy.deepcopy(subject.network).to("cpu", torch.float32)
    sha256 = export_onnx(replace(subject.checkpoint, network=network), folder / onnx)
    rows, written = io.StringIO(), []
    table = csv.writer(rows, lineterminator="\n")
    for number, indices in enumerate(selection.blocks(BLOCK_SIZE)):
        block = load_block(images, number, indices)
        right = _logits(subject, block).argmax(1) == block.labels
        lower, upper = linf_box(block.images, epsilon)
        for row in right.nonzero().flatten().tolist():
            path = f"vnnlib/{name}-{indices[row]}.vnnlib"
            comments = (
                f"image {indices[row]} of {images.name} {images.split}, SHA-256 of its pixels {block.shas[row]}",
                f"L-infinity radius {epsilon:.9g}, clipped to [0, 1]; network {onnx}, SHA-256 {sha256}",
            )
            box, label = (lower[row], upper[row]), int(block.labels[row])
            text = robustness_property(*box, label=label, classes=images.num_classes, comments=comments)
            write_text(folder / path, text)
            table.writerow((onnx, path, f"{timeout:g}"))
            written.append(indices[row])
    write_text(folder / "instances.csv", rows.getvalue())
    return Export(tuple(written), tuple(sorted(set(selection.indices).difference(written))))


def _logits(subject: Subject, block: Block) -> Tensor:
    moved = replace(block, images=block.images.to(device=subject.device, dtype=PRECISIONS[subject.precision]))
    with exact_arithmetic():
        return clean_logits(subject.network, moved).cpu()
