"""Certified L2 radii of the smoothed classifier, by sampling."""

from __future__ import annotations

from time import perf_counter

from torch import nn

from hydrabench.config import SmoothingSettings
from hydrabench.data.images import Block
from hydrabench.evaluators.clean import require_eval_mode
from hydrabench.ledger import SmoothedRecord
from hydrabench.smoothing import certified_radius, class_counts, clopper_pearson_lower

ABSTAIN = -1


def evaluate_smoothed(network: nn.Module, block: Block, settings: SmoothingSettings) -> list[SmoothedRecord]:
    """Certify the prediction of the smoothed classifier at each image.

    `n0` draws select a class, `samples` fresh draws estimate its probability, and the one-sided
    Clopper-Pearson bound at `alpha` gives the radius. The prediction is the selected class, or -1
    where the bound does not exceed 1/2: the radius is then 0.

    Args:
        network: base classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, Algorithm CERTIFY.
    """
    require_eval_mode(network)
    return [_certify(network, block, row, settings) for row in range(len(block.indices))]


def _certify(network: nn.Module, block: Block, row: int, settings: SmoothingSettings) -> SmoothedRecord:
    """Algorithm CERTIFY for one image of the block; `seconds` is this image's own time."""
    started = perf_counter()
    image, index = block.images[row], block.indices[row]
    key = (settings.seed, "smoothing")
    selection = class_counts(network, image, sigma=settings.sigma, draws=settings.n0, key=(*key, "select", index))
    selected = int(selection.argmax())
    estimation = class_counts(
        network, image, sigma=settings.sigma, draws=settings.samples, key=(*key, "estimate", index)
    )
    count = int(estimation[selected])
    radius = certified_radius(count, settings.samples, alpha=settings.alpha, sigma=settings.sigma)
    return SmoothedRecord(
        index=index,
        input_sha=block.shas[row],
        label=int(block.labels[row]),
        prediction=ABSTAIN if radius is None else selected,
        seconds=perf_counter() - started,
        selected=selected,
        count=count,
        samples=settings.samples,
        p_lower=clopper_pearson_lower(count, settings.samples, alpha=settings.alpha),
        radius=0.0 if radius is None else radius,
        abstain=radius is None,
    )
