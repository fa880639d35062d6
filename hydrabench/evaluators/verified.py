"""Verified robustness: a sound lower bound of every margin over an L∞ or L2 ball."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

from hydrabench.bounds import (
    BOUNDS,
    Prepared,
    Search,
    alpha_crown_margins,
    cascade,
    lirpa_margins,
    prepared,
    rounding_bound,
    sound_margins,
)
from hydrabench.config import AlphaCrownSettings, VerifiedSettings
from hydrabench.data.images import Block
from hydrabench.errors import GateError, lookup
from hydrabench.evaluators.clean import clean_logits, require_finite
from hydrabench.ledger import VerifiedRecord
from hydrabench.runtime import require_exact_arithmetic

# What rounding alone may add to a bound, relative to the largest logit: many times the unit roundoff.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}


Settings = VerifiedSettings | AlphaCrownSettings


def evaluate_verified(network: nn.Module | Prepared, block: Block, settings: Settings) -> list[VerifiedRecord]:
    """Bound the margin of each image with the bound named `settings.kind`.

    An image is verified if the bound is positive and the clean prediction is right. The second follows
    from the first but for rounding; a bound that claims more than rounding can explain about a
    misclassified image is unsound, and stops the run. The bound is recorded for misclassified images too.
    Where rounding could have lifted a float32 bound of ours from below 0, float64 decides; where it could have lifted
    one in float64, too, 0 is recorded, which is no certificate.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`; prepared, if there are
            more blocks to come.
    Raises: NonFiniteError naming the image if a logit or a bound is NaN or infinite;
        UnsupportedLayerError if the bound has no rule for a layer; GateError naming the image if the
        bound contradicts the network's own prediction; ValueError outside `runtime.exact_arithmetic`.
    """
    require_exact_arithmetic(block.images.device)
    started = perf_counter()
    logits = clean_logits(_module(network), block)
    with torch.no_grad():
        lower, methods, rechecked = _bounds(network, block, settings)
    require_finite(lower, block.indices, f"the {settings.kind} bound")
    _refuse_contradictions(logits, lower, block, settings)
    predictions, labels, lowest = logits.argmax(1).tolist(), block.labels.tolist(), lower.tolist()
    seconds = (perf_counter() - started) / len(block.indices)
    return [
        VerifiedRecord(
            index=index,
            input_sha=block.shas[row],
            label=labels[row],
            prediction=predictions[row],
            seconds=seconds,
            verified=lowest[row] > 0 and predictions[row] == labels[row],
            lower=lowest[row],
            rechecked=rechecked[row],
            method=methods[row] if lowest[row] > 0 and predictions[row] == labels[row] else None,
        )
        for row, index in enumerate(block.indices)
    ]


def _module(network: nn.Module | Prepared) -> nn.Module:
    return network.network if isinstance(network, Prepared) else network


def _bounds(
    network: nn.Module | Prepared, block: Block, settings: Settings
) -> tuple[Tensor, Sequence[str | None], Sequence[bool]]:
    """Lower bounds of the margins, (B,), which method of a cascade proved each image, and which float64 decided."""
    threat = (_module(network), block.images, block.labels, float(settings.epsilon))
    nothing: tuple[Sequence[None], Sequence[bool]] = [None] * len(block.indices), [False] * len(block.indices)
    if isinstance(settings, AlphaCrownSettings):
        search = Search(settings.slopes, settings.iterations, settings.learning_rate, settings.time_limit)
        return alpha_crown_margins(*threat, search=search), *nothing
    if settings.engine == "auto_lirpa":
        return lirpa_margins(*threat, method=settings.kind), *nothing
    network = network if isinstance(network, Prepared) else prepared(network)
    if settings.rigor == "sound":
        return sound_margins(network, *threat[1:3], settings.epsilon, kind=settings.kind), *nothing
    lower, methods = _own_bounds(network, block.images, block.labels, settings)
    if lower.dtype == torch.float64:
        return _cleared(network, block.images, block.labels, settings, lower), methods, nothing[1]
    rows = _within_rounding(network, block, settings, lower)
    if not len(rows):
        return lower, methods, nothing[1]
    wide, x, y = network.in_float64(), block.images[rows].double(), block.labels[rows]
    again, again_by = _own_bounds(wide, x, y, settings)
    again = _cleared(wide, x, y, settings, again)
    rechecked = dict(zip(rows.tolist(), again_by, strict=True))
    return (
        lower.double().index_copy(0, rows, again.double()),
        [rechecked.get(row, method) for row, method in enumerate(methods)],
        [row in rechecked for row in range(len(methods))],
    )


def _own_bounds(
    network: Prepared, x: Tensor, y: Tensor, settings: VerifiedSettings
) -> tuple[Tensor, Sequence[str | None]]:
    """Lower bounds by our own engine, (B,), and which method of a cascade proved each image."""
    epsilon, norm = float(settings.epsilon), settings.norm
    if settings.kind == "cascade":
        proofs = cascade(network, x, y, epsilon, norm=norm, methods=settings.methods)
        return proofs.lower, proofs.methods
    return lookup("bound", BOUNDS, settings.kind)(network, x, y, epsilon, norm=norm), [None] * len(y)


def _within_rounding(network: Prepared, block: Block, settings: VerifiedSettings, lower: Tensor) -> Tensor:
    """Numbers of the images whose float32 bound rounding could have lifted from, or kept from, the other side of 0."""
    off_by = _off_by(network, block.images, block.labels, settings)
    return (lower.isfinite() & ~(lower.abs() > off_by)).nonzero().squeeze(1)


def _cleared(network: Prepared, x: Tensor, y: Tensor, settings: VerifiedSettings, lower: Tensor) -> Tensor:
    """Bounds in float64, (B,), and 0 where rounding could have lifted one from there."""
    if not (lower > 0).any():
        return lower
    return lower.masked_fill((lower > 0) & lower.isfinite() & ~(lower > _off_by(network, x, y, settings)), 0.0)


def _off_by(network: Prepared, x: Tensor, y: Tensor, settings: VerifiedSettings) -> Tensor:
    kind = "symbolic" if settings.kind == "cascade" and "symbolic" in settings.methods else settings.kind
    return rounding_bound(network, x, y, float(settings.epsilon), kind=kind)


def _refuse_contradictions(logits: Tensor, lower: Tensor, block: Block, settings: Settings) -> None:
    """Stop if a margin is bounded above 0, by more than rounding, although the clean image is misclassified."""
    rounding = ROUNDING[logits.dtype] * logits.abs().amax(1).clamp_min(1)
    contradicted = (lower > rounding) & (logits.argmax(1) != block.labels)
    if contradicted.any():
        row = int(contradicted.nonzero()[0, 0])
        raise GateError(
            f"image {block.indices[row]}: the {settings.kind} bound says that the margin is at least "
            f"{float(lower[row]):g}, but the network misclassifies the clean image; "
            "this bound is unsound for this network, please report it"
        )
