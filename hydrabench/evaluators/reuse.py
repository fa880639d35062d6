"""Incremental smoothing: certified radii of a pruned network from its parent's certificates and votes of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.data.images import Block
from hydrabench.errors import DataError
from hydrabench.evaluators.clean import require_eval_mode
from hydrabench.evaluators.reuse_settings import ReuseSettings
from hydrabench.laws import radius_of
from hydrabench.ledger import ABSTAIN, ReuseRecord
from hydrabench.smoothing import (
    SHARE,
    Draws,
    LostVotes,
    Plan,
    Routine,
    Sampling,
    are_grey_levels,
    clopper_pearson_lower,
    collect,
    slack,
)

Known = Mapping[str, Any]  # one line of the parent's ledger


class Paired(nn.Module):
    """Two networks as one classifier with 2K classes that encode the votes of both.

    Class a < K: both say a. Class K + a: the parent says a, the child another class.
    """

    def __init__(self, parent: nn.Module, child: nn.Module) -> None:
        super().__init__()
        self.parent, self.child = parent, child

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, 2K): 1 for the class, else 0; NaN if a logit of either is not finite."""
        old, new = self.parent(x), self.child(x)
        votes = old.argmax(1)
        outcome = votes + old.shape[1] * (votes != new.argmax(1))
        found = torch.zeros(len(x), 2 * old.shape[1], device=old.device).scatter_(1, outcome[:, None], 1.0)
        finite = torch.isfinite(old).all(1) & torch.isfinite(new).all(1)
        return found.masked_fill_(~finite[:, None], torch.nan)


def evaluate_reuse(
    network: nn.Module,
    block: Block,
    settings: ReuseSettings,
    sampling: Sampling | None = None,
    *,
    parent: nn.Module,
    ledger: Mapping[int, Known],
) -> list[ReuseRecord]:
    """Certify the smoothed `network` from the parent's ledger, with fewer draws than it took there.

    Both networks vote on the first draws of the parent's estimation stream until the votes that are lost are few
    enough (`smoothing.reuse.LostVotes`). Where the parent's bound does not exceed 1/2 the child abstains
    without a draw.

    Args:
        network, block, sampling: as for `evaluate_smoothed`. parent: in eval mode, run as for its ledger.
        ledger: the parent's records by index, made with the noise of `settings` on the images of `block`.
    Raises: as `evaluate_smoothed`.
    Source: Ugare et al. (2024), arXiv:2305.19521, Algorithm 2; departures in `smoothing.reuse`.
    """
    require_eval_mode(network)
    require_eval_mode(parent)
    started = perf_counter()
    sampling = _sampling(block, settings, sampling or Sampling())
    lost = slack(settings.sigma, block.images[0].numel()) if settings.rigor == "discrete" else 0.0
    rule = LostVotes(Plan(settings.reuse_samples, settings.alpha * (1 - SHARE), settings.sigma, settings.radii, lost))
    records = [_abstention(settings, ledger[index], _about(block, row)) for row, index in enumerate(block.indices)]
    comparable = [row for row, record in enumerate(records) if record.parent_p_lower - lost > 0.5]
    routines = [compare(settings, rule, records[row], block.images[row].numel()) for row in comparable]
    both = Paired(parent, network).eval()
    found = collect(both, block.images[comparable], routines, sigma=settings.sigma, sampling=sampling)
    for row, (compared, _) in zip(comparable, found, strict=True):
        records[row] = compared
    share = (perf_counter() - started) / max(1, sum(record.passes for record in records))
    return [replace(record, seconds=record.passes * share) for record in records]


def _sampling(block: Block, settings: ReuseSettings, sampling: Sampling) -> Sampling:
    """The noise of the settings. Raises: DataError if it is integer and an image is not an 8-bit image."""
    if settings.rigor == "discrete" and not are_grey_levels(block.images):
        raise DataError("integer noise needs 8-bit images, of whose pixels 255 times is whole; reuse a standard run")
    return replace(sampling, source=replace(sampling.source, rigor=settings.rigor, version=settings.streams))


def _about(block: Block, row: int) -> dict[str, Any]:
    sha, label = block.shas[row], int(block.labels[row])
    return {"index": block.indices[row], "input_sha": sha, "label": label, "seconds": 0.0}


def _abstention(settings: ReuseSettings, known: Known, about: Mapping[str, Any]) -> ReuseRecord:
    """Return a record that abstains, with the class and the bound of the parent's record."""
    share, count, samples = settings.alpha * SHARE, known["count"], known["samples"]
    return ReuseRecord.abstaining(
        **about,
        selected=known["selected"],
        mode=settings.mode,
        alpha_spent=settings.alpha,
        radius_linf=0.0,
        parent_looks=[[samples, count]],
        parent_p_lower=clopper_pearson_lower(count, samples, alpha=share),
        alpha_parent=share,
        alpha_lost=settings.alpha - share,
    )


def compare(settings: ReuseSettings, rule: LostVotes, record: ReuseRecord, coordinates: int) -> Routine[ReuseRecord]:
    """Count the votes that one image loses, among draws of `Paired`, until the rule has enough.

    Args: record: see `_abstention`. coordinates: C * H * W.
    """
    # The very draws of `evaluators.smoothed.certify_image`, of which the parent's ledger counted the votes.
    key = (settings.seed, "smoothing", "estimate", record.index)
    n: int | None = rule.first
    best, looks, agreed, parted = 0.0, [], [0], [0]
    while n is not None:
        votes = yield Draws(key, n)
        agreed, parted = votes[: len(votes) // 2], votes[len(votes) // 2 :]
        verdict = rule.look(n, parted[record.selected], parent=record.parent_p_lower, best=best)
        looks.append([n, parted[record.selected]])
        best, n = verdict.p_lower, verdict.following
    radius = radius_of(best, sigma=settings.sigma)
    drawn = looks[-1][0]
    return replace(
        record,
        prediction=ABSTAIN if radius is None else record.selected,
        count=agreed[record.selected],
        samples=drawn,
        p_lower=best,
        radius=radius or 0.0,
        abstain=radius is None,
        counts=agreed,
        looks=looks,
        radius_linf=(radius or 0.0) / sqrt(coordinates),
        certificate="reused",
        lost=parted[record.selected],
        disagreements=sum(parted),
        passes=2 * drawn,
    )
