"""Verified robustness: a sound lower bound of every margin over an L∞ or L2 ball."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.bounds import (
    BOUNDS,
    FACTORS,
    Prepared,
    Search,
    alpha_crown_margins,
    bounded_module,
    cascade,
    deployed_margins,
    lirpa_alpha_margins,
    lirpa_margins,
    prepared,
    rounding_bound,
    sound_margins,
)
from hydrabench.data.images import Block
from hydrabench.errors import GateError, UnsupportedLayerError, lookup
from hydrabench.evaluators.clean import clean_logits
from hydrabench.evaluators.verified_settings import AlphaCrownSettings, Settings, VerifiedSettings
from hydrabench.ledger import VerifiedRecord
from hydrabench.runtime import require_exact_arithmetic

VACUOUS = -sys.float_info.max  # what is recorded where nothing is known; JSON has no infinity
# What rounding alone may add to a bound, relative to the largest logit: many times the unit roundoff.
LOGIT_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}


def evaluate_verified(network: nn.Module | Prepared, block: Block, settings: Settings) -> list[VerifiedRecord]:
    """Bound the margin of each image with the method named `settings.kind`.

    An image is verified if its bound is positive and its clean prediction is right. Up to rounding, the first implies
    the second: a bound that says more about a misclassified image is unsound and stops the run. The bound of a
    misclassified image is recorded too. A bound that is NaN or infinite is vacuous: it proves nothing, and `VACUOUS`
    is recorded.

    Where rounding to float32 could have changed a verdict, the bound is computed again in float64; a misclassified
    image whose bound is at most 0 needs no second look. Where rounding in float64 could have lifted a bound above 0,
    the record says 0, which is no certificate. A cascade runs alpha-crown only on images that are still undecided:
    not proved, not misclassified, and without a known adversarial example.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`. Prepare it if there
            are several blocks.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite;
        UnsupportedLayerError if the bound has no rule for a layer; GateError naming the image if the
        bound contradicts the network's own prediction; ValueError outside `runtime.exact_arithmetic`.
    """
    require_exact_arithmetic(block.images.device)
    started = perf_counter()
    logits = clean_logits(_module(network), block)
    with torch.no_grad():
        found = _bounds(network, block, settings, logits.argmax(1) != block.labels)
    lower = logits.new_tensor([bound.lower for bound in found], dtype=torch.float64)
    _refuse_contradictions(logits, lower, block, settings)
    return _records(block, logits.argmax(1).tolist(), found, (perf_counter() - started) / len(block.indices))


def _records(block: Block, predictions: list[int], found: list[_Bound], seconds: float) -> list[VerifiedRecord]:
    labels = block.labels.tolist()
    return [
        VerifiedRecord(
            index=index,
            input_sha=block.shas[row],
            label=labels[row],
            prediction=predictions[row],
            seconds=seconds,
            verified=found[row].lower > 0 and predictions[row] == labels[row],
            lower=max(found[row].lower, VACUOUS),
            rechecked=found[row].rechecked,
            method=found[row].method if found[row].lower > 0 and predictions[row] == labels[row] else None,
        )
        for row, index in enumerate(block.indices)
    ]


def _module(network: nn.Module | Prepared) -> nn.Module:
    return network.network if isinstance(network, Prepared) else network


def require_readable(network: nn.Module | Prepared, block: Block, settings: Settings) -> None:
    """Refuse a network that auto_LiRPA is to bound and cannot read.

    Raises: HydrabenchError if auto_LiRPA is not installed; UnsupportedLayerError if it knows no rule for a layer.
    """
    if settings.needs_auto_lirpa:
        bounded_module(_module(network), block.images[:1])


# Bounds, and float64 where rounding matters ----------------------------------------------------


@dataclass(frozen=True)
class _Bound:
    """The bound of one image.

    lower: of its margin. kind: the method whose rounding counts, a key of `FACTORS`.
    method: which one of a cascade proved it. settled: whether the image is unproved and stays so whatever rounding
    did. rechecked: whether float64 decided.
    """

    lower: float
    kind: str
    method: str | None = None
    settled: bool = False
    rechecked: bool = False


AnyNetwork = nn.Module | Prepared
BoundFunction = Callable[[Any, Tensor, Tensor, Any], list[_Bound]]  # (network, images, labels, settings)


def _bounds(network: AnyNetwork, block: Block, settings: Settings, wrong: Tensor) -> list[_Bound]:
    """Bounds of a block; `wrong` says which images are misclassified, (B,)."""
    x, y = block.images, block.labels
    if settings.engine == "auto_lirpa":
        return _decided(network, x, y, settings, _by_auto_lirpa, wrong)
    network = network if isinstance(network, Prepared) else prepared(network)
    if isinstance(settings, AlphaCrownSettings):
        return _decided(network, x, y, settings, _by_search, wrong)
    if settings.rigor != "standard":
        rigorous = {"sound": sound_margins, "deployed": deployed_margins}[settings.rigor]
        lower = rigorous(network, x, y, settings.epsilon, kind=settings.kind)
        return [_known(_Bound(value, settings.kind)) for value in lower.tolist()]
    found = _decided(network, x, y, settings, _by_cascade if settings.kind == "cascade" else _by_one_method, wrong)
    rows = [row for row, bound in enumerate(found) if bound.lower <= 0 and not bound.settled]
    if settings.searches and rows:
        searched = _decided(network, x[rows], y[rows], settings, _by_search, wrong[rows])
        for row, bound in zip(rows, searched, strict=True):
            if bound.lower > found[row].lower:
                found[row] = replace(bound, method="alpha-crown" if bound.lower > 0 else None)
    return found


def _known(bound: _Bound) -> _Bound:
    """Return the bound, or -inf for a vacuous one (NaN or infinite, as intervals of deep networks may become)."""
    return bound if math.isfinite(bound.lower) else replace(bound, lower=-math.inf, method=None)


def _decided(
    network: AnyNetwork, x: Tensor, y: Tensor, settings: Settings, method: BoundFunction, wrong: Tensor
) -> list[_Bound]:
    """Bounds in the precision of `x`, but in float64 where rounding to float32 could have turned a verdict.

    An image that is misclassified, as `wrong` (B,) says, is settled by a bound that does not say otherwise.
    """
    found = [
        replace(bound, settled=True) if lost and bound.lower <= 0 else bound
        for bound, lost in zip(map(_known, method(network, x, y, settings)), wrong.tolist(), strict=True)
    ]
    if x.dtype == torch.float64:
        return _cleared(network, x, y, settings, found)
    open_to_doubt = [row for row, bound in enumerate(found) if math.isfinite(bound.lower) and not bound.settled]
    reach = _reach(network, x, y, settings, {row: found[row].kind for row in open_to_doubt})
    rows = [row for row in open_to_doubt if not abs(found[row].lower) > reach[row]]
    if rows:
        wide = network.in_float64() if isinstance(network, Prepared) else copy.deepcopy(network).double()
        again = _decided(wide, x[rows].double(), y[rows], settings, method, wrong[rows])
        for row, bound in zip(rows, again, strict=True):
            found[row] = replace(bound, rechecked=True)
    return found


def _cleared(network: AnyNetwork, x: Tensor, y: Tensor, settings: Settings, found: list[_Bound]) -> list[_Bound]:
    """Bounds in float64, and 0 where rounding could have lifted one from there."""
    proved = {row: bound.kind for row, bound in enumerate(found) if bound.lower > 0 and math.isfinite(bound.lower)}
    for row, reach in _reach(network, x, y, settings, proved).items():
        if not found[row].lower > reach:
            found[row] = replace(found[row], lower=0.0, method=None)
    return found


def _reach(network: AnyNetwork, x: Tensor, y: Tensor, settings: Settings, kinds: dict[int, str]) -> dict[int, float]:
    """Return how far rounding can raise the bounds of some images.

    auto_LiRPA may have a rule where we have none: nothing is known then, and float64 is the best there is.
    """
    reach = dict.fromkeys(kinds, math.inf if x.dtype == torch.float32 else 0.0)
    for kind in FACTORS.keys() & set(kinds.values()):
        rows = [row for row, other in kinds.items() if other == kind]
        with suppress(UnsupportedLayerError):
            off_by = rounding_bound(network, x[rows], y[rows], float(settings.epsilon), kind=kind)
            reach.update(zip(rows, off_by.tolist(), strict=True))
    return reach


def _by_one_method(network: Prepared, x: Tensor, y: Tensor, settings: VerifiedSettings) -> list[_Bound]:
    lower = lookup("bound", BOUNDS, settings.kind)(network, x, y, float(settings.epsilon), norm=settings.norm)
    return [_Bound(value, settings.kind) for value in lower.tolist()]


def _by_auto_lirpa(network: AnyNetwork, x: Tensor, y: Tensor, settings: Settings) -> list[_Bound]:
    if isinstance(settings, AlphaCrownSettings):
        return _searched(lirpa_alpha_margins(_module(network), x, y, float(settings.epsilon), search=_search(settings)))
    lower = lirpa_margins(_module(network), x, y, float(settings.epsilon), method=settings.kind)
    return [_Bound(value, settings.kind) for value in lower.tolist()]


def _by_cascade(network: Prepared, x: Tensor, y: Tensor, settings: VerifiedSettings) -> list[_Bound]:
    """By our own methods. What one of them proved rests on the bounds of those before it, too."""
    methods: list[str] = [method for method in settings.methods if method != "alpha-crown"]
    proofs = cascade(network, x, y, float(settings.epsilon), norm=settings.norm, methods=methods)
    kinds = {method: _most_rounded(methods[: number + 1]) for number, method in enumerate(methods)}
    return [
        _Bound(lower, kinds[method or methods[-1]], method, settled=refuted and lower <= 0)
        for lower, method, refuted in zip(proofs.lower.tolist(), proofs.methods, proofs.refuted.tolist(), strict=True)
    ]


def _most_rounded(methods: Sequence[str]) -> str:
    """Return the method with the largest rounding error; `FACTORS` lists them in ascending order."""
    return max(methods, key=list(FACTORS).index)


def _by_search(network: Prepared, x: Tensor, y: Tensor, settings: Settings) -> list[_Bound]:
    epsilon, search = float(settings.epsilon), _search(settings)
    return _searched(alpha_crown_margins(network, x, y, epsilon, norm=settings.norm, search=search))


def _search(settings: Settings) -> Search:
    return Search(settings.slopes, settings.iterations, settings.learning_rate, settings.time_limit)


def _searched(lower: Tensor) -> list[_Bound]:
    """Bounds by alpha-CROWN: CROWN with other slopes, so that its rounding is CROWN's. Only proofs are doubted."""
    return [_Bound(value, "crown", settled=value <= 0) for value in lower.tolist()]


def _refuse_contradictions(logits: Tensor, lower: Tensor, block: Block, settings: Settings) -> None:
    """Stop if a margin is bounded above 0, by more than rounding, although the clean image is misclassified."""
    rounding = LOGIT_ROUNDING[logits.dtype] * logits.abs().amax(1).clamp_min(1)
    contradicted = (lower > rounding) & (logits.argmax(1) != block.labels)
    if contradicted.any():
        row = int(contradicted.nonzero()[0, 0])
        raise GateError(
            f"image {block.indices[row]}: the {settings.kind} bound says that the margin is at least "
            f"{float(lower[row]):g}, but the network misclassifies the clean image; "
            "this bound is unsound for this network, please report it"
        )
