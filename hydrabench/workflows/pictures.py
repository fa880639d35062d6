"""Images for reports: those that runs are about, from their data set, and the adversarial ones that runs keep."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrabench.errors import HydrabenchError
from hydrabench.ledger import read_run
from hydrabench.reporting.evaluations import IMPORTED, Evaluation
from hydrabench.reporting.weights import ShownExample

if TYPE_CHECKING:
    from hydrabench.reporting.contradictions import Contradiction
    from hydrabench.reporting.leaderboard import Leaderboard

Picture = np.ndarray[Any, Any]  # (C, H, W), in [0, 1]
RUNS, COLUMNS = 3, 8  # that a figure shows: networks, and images of each


def original_images(one: Evaluation, indices: Sequence[int]) -> dict[int, Picture]:
    """Return images of a run, those whose data set is at hand and whose pixels are those that were judged."""
    from hydrabench.data import load_block, load_images  # noqa: PLC0415  (needs torch, which most reports do not)

    try:
        block = load_block(load_images(one.images.name, one.images.split), 0, tuple(indices))
    except (HydrabenchError, IndexError):
        return {}
    known = dict(zip(one.fields["index"].tolist(), one.fields["input_sha"].tolist(), strict=True))
    shown = zip(block.indices, block.shas, block.images.numpy(), strict=True)
    return {index: image for index, sha, image in shown if known[index] == sha}


def adversarial_images(one: Evaluation, most: int, only: int | None = None) -> dict[int, tuple[Picture, int]]:
    """Return the first `most` adversarial images that a run keeps, and their classes, by index.

    Args: only: of this image alone.
    Returns: nothing if it keeps none. Raises: LedgerError if they were altered.
    """
    if one.precision == IMPORTED or not (run := read_run(one.path)).keeps_examples:
        return {}
    found: dict[int, tuple[Picture, int]] = {}
    for shard, examples in run.examples:
        for index, pixels, prediction in zip(shard.images, examples.pixels, shard.predictions, strict=True):
            if only in (None, index) and len(found) < most:
                found[index] = (pixels, prediction)
        if len(found) == most:
            break
    return found


def shown_examples(board: Leaderboard) -> list[ShownExample]:
    """Return images and their adversarial images, a few of each of the first networks that keep some."""
    place = {row.checkpoint.sha256: number for number, row in enumerate(board.rows)}
    ordered = sorted(board.evaluations, key=lambda one: place.get(one.checkpoint.sha256, len(place)))
    found: dict[str, list[ShownExample]] = {}
    for one in ordered:
        if one.checkpoint.sha256 in found or len(found) == RUNS:
            continue
        kept = adversarial_images(one, COLUMNS)
        images = original_images(one, list(kept)) if kept else {}
        if images:
            label = board.rows[place[one.checkpoint.sha256]].label
            found[one.checkpoint.sha256] = [_shown(one, label, index, kept[index], images[index]) for index in images]
    return [example for examples in found.values() for example in examples]


def _shown(one: Evaluation, network: str, index: int, example: tuple[Picture, int], image: Picture) -> ShownExample:
    label = int(one.fields["label"][np.searchsorted(one.fields["index"], index)])
    threat = f"{one.protocol} at {one.threat}"
    return ShownExample(network, threat, index, label, example[1], image, example[0])


def contradiction_files(found: Contradiction) -> dict[str, bytes]:
    """Return what shows a contradiction, as arrays of numpy: the image, its adversarial image, and the difference.

    The image is there if its data set is at hand, the adversarial one if the run that found it keeps them.
    """
    index = found.images[0]
    images, kept = original_images(found.verifier, [index]), adversarial_images(found.other, 1, index)
    arrays = {"image": images[index]} if images else {}
    if kept:
        arrays["adversarial"] = kept[index][0]
    if len(arrays) == 2:
        arrays["perturbation"] = arrays["adversarial"].astype(np.float64) - arrays["image"]
    return {f"{name}.npy": _npy(values) for name, values in arrays.items()}


def _npy(values: Picture) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
