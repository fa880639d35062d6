"""Certified L2 radii of the smoothed classifier, and its predictions, by sampling."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import lru_cache
from time import perf_counter
from typing import Any

from torch import nn

from hydrabench.data.images import Block
from hydrabench.errors import DataError
from hydrabench.evaluators.clean import require_eval_mode
from hydrabench.evaluators.smoothing_settings import SmoothingSettings
from hydrabench.laws import LAWS, radius_of
from hydrabench.ledger import ABSTAIN, SmoothedRecord
from hydrabench.runtime import bits
from hydrabench.smoothing import (
    Draws,
    FixedSize,
    Plan,
    Routine,
    Rule,
    Sampling,
    are_grey_levels,
    collect,
    prediction_p_value,
    rule_of,
    slack,
)

SMALLEST_UNIFORM = 0.01


def evaluate_smoothed(
    network: nn.Module, block: Block, settings: SmoothingSettings, sampling: Sampling | None = None
) -> list[SmoothedRecord]:
    """Certify the prediction of the smoothed classifier at each image, or only predict it.

    `n0` draws select a class, fresh draws estimate its probability, and a lower confidence bound at `alpha`
    gives the radius. How many draws that takes is up to the rule of `settings.mode`. The prediction is the
    selected class, or -1 where the bound does not exceed 1/2: the radius is then 0. All images of the block
    share forward passes, which changes no record but its `seconds`, a share of the block's by draws.

    Args:
        network: base classifier in eval mode, on the device and in the precision of `block.images`.
        sampling: where noise comes from and how much of it goes through the network at once. The kind of noise is
            that of the settings, whatever it says.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite; DataError for integer noise on images
        that are not 8-bit images.
    Source: Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, Algorithms CERTIFY and PREDICT.
    """
    require_eval_mode(network)
    started = perf_counter()
    sampling = sampling or Sampling()
    source = replace(sampling.source, rigor=settings.rigor, version=settings.streams, law=settings.law)
    sampling = replace(sampling, source=source)
    if settings.rigor == "discrete" and not are_grey_levels(block.images):
        raise DataError("integer noise needs 8-bit images, of whose pixels 255 times is whole; use --rigor standard")
    about = [
        {"index": index, "input_sha": block.shas[row], "label": int(block.labels[row]), "seconds": 0.0}
        for row, index in enumerate(block.indices)
    ]
    coordinates = block.images[0].numel()
    routines = [
        predict(settings, one) if settings.mode == "predict" else certify_image(settings, coordinates, one)
        for one in about
    ]
    found = collect(network, block.images, routines, sigma=settings.sigma, sampling=sampling)
    share = (perf_counter() - started) / sum(spent for _, spent in found)
    return [replace(record, seconds=spent * share) for record, spent in found]


@lru_cache(maxsize=8)
def rule_for(settings: SmoothingSettings, coordinates: int) -> Rule:
    """The stopping rule of the settings, for images of so many coordinates (C * H * W)."""
    lost = slack(settings.sigma, coordinates) if settings.rigor == "discrete" else 0.0
    plan = Plan(
        settings.samples,
        settings.alpha,
        settings.sigma,
        settings.radii,
        slack=lost,
        tolerance=settings.tolerance,
        law=settings.law,
    )
    return rule_of(settings.mode, settings.version)(plan)


def uniform_of(*key: object) -> float:
    """The number of an image's randomized bound, in [1/100, 1], by 53 bits of a stream that nothing else reads.

    From below 1/100, which would certify any radius where all draws agree, it is raised; larger is always valid.
    """
    return max(float(bits(*key, "uniform").random_raw() >> 11) / 2**53, SMALLEST_UNIFORM)


def certify_image(settings: SmoothingSettings, coordinates: int, about: Mapping[str, Any]) -> Routine[SmoothedRecord]:
    """Algorithm CERTIFY for one image: requests draws until the stopping rule has enough.

    Args: about: index, input_sha, label and seconds of the record.
    """
    key = (settings.seed, "smoothing")
    selection = yield Draws((*key, "select", about["index"]), settings.n0)
    selected = selection.index(max(selection))
    record = _abstention(settings, selection, selected, about)
    if record.skipped:
        return record
    rule = rule_for(settings, coordinates)
    if settings.randomized:
        rule = FixedSize(rule.plan, uniform_of(*key, about["index"]))
    best, looks, votes = yield from _estimate(rule, (*key, "estimate", about["index"]), selected)
    radius = radius_of(best, sigma=settings.sigma, law=settings.law)
    return replace(
        record,
        prediction=ABSTAIN if radius is None else selected,
        count=votes[selected],
        samples=sum(votes),
        p_lower=best,
        radius=radius or 0.0,
        abstain=radius is None,
        counts=votes,
        looks=looks,
        alpha_spent=rule.alpha_spent(sum(votes)),
        radius_linf=0.0 if radius is None else LAWS[settings.law].linf(best, settings.sigma, coordinates),
    )


def _abstention(
    settings: SmoothingSettings, selection: list[int], selected: int, about: Mapping[str, Any]
) -> SmoothedRecord:
    """The record of an image before its class is estimated; it stays so where the label-aware estimation is skipped."""
    return SmoothedRecord.abstaining(
        **about,
        selected=selected,
        mode=settings.mode,
        selection=selection,
        counts=[0] * len(selection),
        skipped=settings.label_aware and selected != about["label"],
    )


def _estimate(
    rule: Rule, key: tuple[object, ...], selected: int
) -> Generator[Draws, list[int], tuple[float, list[list[int]], list[int]]]:
    """Look at the votes for the selected class until the rule has enough.

    Returns: the lower bound of its probability; draws and its votes at each look; the votes of the last.
    """
    n: int | None = rule.first
    best, looks, votes = 0.0, [], []
    while n is not None:
        votes = yield Draws(key, n)
        verdict = rule.look(n, votes[selected], best)
        looks.append([n, votes[selected]])
        best, n = verdict.p_lower, verdict.following
    return best, looks, votes


def predict(settings: SmoothingSettings, about: Mapping[str, Any]) -> Routine[SmoothedRecord]:
    """Algorithm PREDICT for one image: the class with the most votes, or -1 if its lead may be chance at `alpha`."""
    votes = yield Draws((settings.seed, "smoothing", "predict", about["index"]), settings.samples)
    second, top = sorted(votes)[-2:] if len(votes) > 1 else (0, *votes)
    p_value = prediction_p_value(top, second)
    selected = votes.index(top)
    return SmoothedRecord(
        **about,
        prediction=ABSTAIN if p_value > settings.alpha else selected,
        selected=selected,
        count=top,
        samples=settings.samples,
        p_lower=0.0,
        radius=0.0,
        abstain=p_value > settings.alpha,
        mode=settings.mode,
        counts=votes,
        looks=[[settings.samples, top]],
        alpha_spent=settings.alpha,
        p_value=p_value,
    )
