"""Complete verification of a block of images: cheap bounds, then an attack, then branch and bound for what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn

from hydrabench.attacks import ExactBall
from hydrabench.bounds import Prepared, prepared
from hydrabench.bounds.exact import Decision, Limits, decide, decide_by_milp, pose_as_stored
from hydrabench.bounds.specification import Problem, pose
from hydrabench.data.images import Block
from hydrabench.evaluators.clean import clean_logits
from hydrabench.evaluators.exact import ExactSettings
from hydrabench.evaluators.pgd import PgdSettings, pgd_points
from hydrabench.evaluators.verified import VACUOUS, evaluate_verified
from hydrabench.evaluators.verified_settings import VerifiedSettings
from hydrabench.ledger import ExactRecord, VerifiedRecord
from hydrabench.runtime import require_exact_arithmetic
from hydrabench.threat import Norm, float_above, float_below

RESTARTS = 10  # random starts of the attack, for each loss


def evaluate_exact(
    network: nn.Module | Prepared, block: Block, settings: ExactSettings | VerifiedSettings
) -> list[ExactRecord]:
    """Decide for each image whether an adversarial example lies in its ball.

    A misclassified image is broken as it is. The others are bounded by a cascade (that of the settings if they are of
    one that ends with exact), then attacked from random starts, then decided by `bounds.exact.decide`, or by
    mixed-integer programming if the settings say so. An adversarial example counts if its float32 pixels lie in the
    exact ball and the network as it is, in the precision of the run, gives it another class. Verdicts hold whatever the
    block.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`. Prepare it if there
            are several blocks.
    Raises: what `evaluate_verified` raises.
    """
    return exact_points(network, block, settings)[0]


def exact_points(
    network: nn.Module | Prepared, block: Block, settings: ExactSettings | VerifiedSettings
) -> tuple[list[ExactRecord], Tensor]:
    """Return the records, and the adversarial examples, of the other images themselves, (B, C, H, W)."""
    require_exact_arithmetic(block.images.device)
    started = perf_counter()
    logits = clean_logits(network.network if isinstance(network, Prepared) else network, block)
    read = network if isinstance(network, Prepared) else prepared(network)
    bounded = _bounded(read, block, settings)
    replay = _Replay(read.network, block, settings)
    wrong = logits.argmax(1) != block.labels
    open_ = [row for row, record in enumerate(bounded) if not record.verified and not wrong[row]]
    replay.attack(open_)
    left = [row for row in open_ if row not in replay.found]
    decisions = dict(zip(left, _decided(read, block, settings, left, replay), strict=True))
    seconds = (perf_counter() - started) / len(block.indices)
    points = block.images.clone()
    for row, found in replay.found.items():
        points[row] = found.pixels.to(points)
    return [
        _record(record, decisions.get(row), replay.found.get(row), seconds) for row, record in enumerate(bounded)
    ], points


@dataclass(frozen=True)
class _Found:
    """An adversarial example: what found it, its class, and its pixels, float32, (C, H, W)."""

    by: str
    prediction: int
    pixels: Tensor


class _Replay:
    """Checks points of balls with the network itself. found: the adversarial example of each row of the block."""

    def __init__(self, network: nn.Module, block: Block, settings: ExactSettings | VerifiedSettings) -> None:
        self.network, self.block, self.settings = network, block, settings
        self.found: dict[int, _Found] = {}

    def check(self, rows: Tensor, points: Tensor, by: str) -> list[Tensor | None]:
        """Return for each point, (P, C, H, W), the adversarial example that it was rounded to, or None.

        Args: rows: the image of each in the block, (P,). by: what found them.
        """
        x, labels = self.block.images[rows], self.block.labels[rows]
        ball = ExactBall.around(x.float(), float_below(self.settings.epsilon), self.settings.norm)
        pixels = ball.project(points.float())
        with torch.no_grad():
            predictions = self.network(pixels.to(x)).argmax(1)
        for row, prediction, label, point in zip(rows.tolist(), predictions, labels, pixels, strict=True):
            if prediction != label:
                self.found.setdefault(row, _Found(by, int(prediction), point))
        return [point if wrong else None for point, wrong in zip(pixels, predictions != labels, strict=True)]

    def attack(self, rows: Sequence[int]) -> None:
        """Attack rows of the block by projected gradient ascent from many random starts."""
        if rows:
            settings = self.settings
            pgd = {"norm": settings.norm, "epsilon": settings.epsilon, "restarts": RESTARTS}
            pgd["seed"] = getattr(settings, "seed", 0)
            records, points = pgd_points(self.network, self.block.rows(rows), PgdSettings.model_validate(pgd))
            hits = [place for place, record in enumerate(records) if not record.robust]
            if hits:
                self.check(torch.tensor(rows, device=points.device)[hits], points[hits], "pgd")


def _bounded(network: Prepared, block: Block, settings: ExactSettings | VerifiedSettings) -> list[VerifiedRecord]:
    """The records of cheap bounds; in rigor "sound" and L2, where there are none, of nothing."""

    def bounded(kind: str, rigor: str) -> list[VerifiedRecord]:
        values = {"kind": kind, "norm": settings.norm, "epsilon": settings.epsilon, "rigor": rigor}
        return evaluate_verified(network, block, VerifiedSettings.model_validate(values))

    if isinstance(settings, VerifiedSettings):
        before = settings.model_copy(update={"methods": settings.methods[:-1]})
        return evaluate_verified(network, block, before)
    if settings.rigor == "standard":
        return bounded("cascade", "standard")
    if settings.norm == "linf":
        return bounded("crown-ibp", "sound")
    return [replace(record, verified=False, lower=VACUOUS) for record in bounded("ibp", "standard")]


def _decided(
    network: Prepared, block: Block, settings: ExactSettings | VerifiedSettings, rows: Sequence[int], replay: _Replay
) -> list[Decision]:
    if not rows:
        return []
    x, y, radius = block.images[rows].double(), block.labels[rows], float_above(settings.epsilon)
    posed = pose_as_stored if settings.rigor == "sound" else _pose
    problem = posed(network, x, y, radius, settings.norm)
    numbers = torch.tensor(rows, device=y.device)
    limits = Limits(settings.max_subproblems, settings.time_limit)
    engine, solve = ("milp", decide_by_milp) if settings.engine == "milp" else ("branch-and-bound", decide)
    return solve(problem, limits, lambda image, points: replay.check(numbers[image], points, engine))


def _pose(network: Prepared, x: Tensor, y: Tensor, radius: float, norm: Norm) -> Problem:
    return pose(network.in_float64(), x, y, radius, norm=norm)


def _record(bounded: VerifiedRecord, decision: Decision | None, found: _Found | None, seconds: float) -> ExactRecord:
    """Put together what was found out about an image."""
    values = asdict(bounded) | {"seconds": seconds}
    if not bounded.is_right:
        return ExactRecord(**values, verdict="broken", found_by="clean", adversarial=bounded.prediction)
    if found is not None:
        count = decision.subproblems if decision else 0
        values["lower"] = min(_lower(bounded, decision), 0.0)
        return ExactRecord(
            **values, verdict="broken", subproblems=count, found_by=found.by, adversarial=found.prediction
        )
    if decision is None:
        return ExactRecord(**values, verdict="verified")
    verified = decision.verdict == "verified"
    values |= {"lower": _lower(bounded, decision), "verified": verified, "method": "exact" if verified else None}
    return ExactRecord(**values, verdict=decision.verdict, subproblems=decision.subproblems)


def _lower(bounded: VerifiedRecord, decision: Decision | None) -> float:
    return max(bounded.lower, VACUOUS if decision is None else decision.lower, VACUOUS)
