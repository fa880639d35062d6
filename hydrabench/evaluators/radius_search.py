"""The robust radius of each image between two others: bisection by a bound or `exact`, and by attacks.

Radii are exact fractions, multiples of epsilon / 2**halvings. What is proved at one holds at all smaller ones, and an
adversarial example breaks all radii that are at least its distance, so no verdict is computed that follows from others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.bounds import Prepared
from hydrabench.data.images import Block
from hydrabench.errors import GateError
from hydrabench.evaluators.clean import clean_logits
from hydrabench.evaluators.fmn import FmnSettings, fmn_points
from hydrabench.evaluators.pgd import PgdSettings, pgd_points
from hydrabench.evaluators.verified_settings import BoundSettings
from hydrabench.ledger import ExactRecord, RadiusRecord, VerifiedRecord
from hydrabench.threat import Norm, float_below

STEPS = 50  # of projected gradient descent at each radius
ABOVE = 1 + 2.0**-40  # more than float64 loses in the length of an image
# (block, settings of one radius) -> records, and for those that are broken the point that does it, (B, C, H, W)
Bound = Callable[[Block, Any], tuple[Sequence[VerifiedRecord], Tensor]]


def search_radii(
    network: nn.Module | Prepared, block: Block, settings: BoundSettings, bound: Bound
) -> tuple[list[RadiusRecord], Tensor]:
    """Find for each image the largest radius that a bound verifies, and the smallest that is known to be broken.

    Fast minimum norm comes first. Then the bound is bisected between 0 and what is broken, or `settings.epsilon`; last,
    projected gradient descent between what is left unproved and what is broken. Of `exact`, adversarial examples count
    as found. An adversarial example counts at its distance, if the network in the precision of the run gives it another
    class.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
        bound: of a block, at the radius of its settings.
    Returns: the records, and the nearest adversarial examples, of the other images themselves, (B, C, H, W).
    Raises: what the bound raises; GateError if a radius is both proved and broken.
    """
    started = perf_counter()
    module = network.network if isinstance(network, Prepared) else network
    logits = clean_logits(module, block)
    search = _Search(module, block, settings, bound)
    search.right = [row for row, right in enumerate((logits.argmax(1) == block.labels).tolist()) if right]
    if search.right:
        search.attack_nearby()
        search.bisect_bound()
        search.bisect_attack()
    seconds = (perf_counter() - started) / len(block.indices)
    points = block.images.clone()
    for row, broken in search.broken.items():
        points[row] = broken.pixels.to(points)
    return [search.record(row, prediction, seconds) for row, prediction in enumerate(logits.argmax(1).tolist())], points


@dataclass(frozen=True)
class _Broken:
    """An adversarial example: its distance, rounded up, what found it, its class, and its pixels, (C, H, W)."""

    distance: float
    by: str
    prediction: int
    pixels: Tensor


class _Search:
    """The search for the images of a block. Places on the grid count multiples of epsilon / 2**halvings.

    proved, attacked: by row, the largest place that was proved, or where the attack failed. open: the smallest that
    was not proved.
    """

    def __init__(self, network: nn.Module, block: Block, settings: BoundSettings, bound: Bound) -> None:
        self.network, self.block, self.settings, self.bound = network, block, settings, bound
        self.steps: int = 2**settings.halvings
        count = len(block.indices)
        self.right: list[int] = []
        self.proved, self.attacked = [0] * count, [0] * count
        self.open = [self.steps + 1] * count
        self.trials, self.subproblems = [0] * count, [0] * count
        self.broken: dict[int, _Broken] = {}

    def radius(self, place: int) -> Fraction:
        return Fraction(self.settings.epsilon * place, self.steps)

    def broken_place(self, row: int) -> int:
        """The smallest place that is known to be broken; one beyond the last if none is."""
        if row not in self.broken:
            return self.steps + 1
        return ceil(Fraction(self.broken[row].distance) * self.steps / self.settings.epsilon)

    def keep(self, row: int, point: Tensor, by: str) -> None:
        """Keep a point, (C, H, W), if it is the nearest adversarial example of an image so far, within epsilon."""
        x, pixels = self.block.images[row], point.detach().float()
        with torch.no_grad():
            prediction = int(self.network(pixels.to(x).unsqueeze(0)).argmax(1))
        distance = distance_above(pixels, x, self.settings.norm)
        nearest = Fraction(distance) <= self.settings.epsilon
        if row in self.broken:
            nearest = distance < self.broken[row].distance
        if nearest and prediction != self.block.labels[row]:
            self.broken[row] = _Broken(distance, by, prediction, pixels.cpu())

    def attack_nearby(self) -> None:
        """Start with the perturbations that fast minimum norm finds."""
        fmn = FmnSettings(norm=self.settings.norm, epsilon=self.settings.epsilon)
        records, points = fmn_points(self.network, self.block.rows(self.right), fmn)
        for row, record, point in zip(self.right, records, points, strict=True):
            if record.distance is not None:
                self.keep(row, point, "fmn")

    def bisect_bound(self) -> None:
        """Halve what lies between the largest radius that is proved and the smallest that is not."""
        while groups := self._groups(self.proved, [min(self.open[row], self.broken_place(row)) for row in self._rows]):
            for place, rows in groups.items():
                records, points = self.bound(self.block.rows(rows), self.settings.at(self.radius(place)))
                for row, record, point in zip(rows, records, points, strict=True):
                    self._learn(row, place, record, point)

    def _learn(self, row: int, place: int, record: VerifiedRecord, point: Tensor) -> None:
        self.trials[row] += 1
        self.subproblems[row] += record.subproblems if isinstance(record, ExactRecord) else 0
        if record.verified:
            self.proved[row] = place
            return
        self.open[row] = place
        if isinstance(record, ExactRecord) and record.verdict == "broken":
            self.keep(row, point, str(record.found_by))

    def bisect_attack(self) -> None:
        """Halve what lies between the largest radius where the attack fails and the smallest that is broken."""
        self.attacked = list(self.proved)
        while groups := self._groups(self.attacked, [self.broken_place(row) for row in self._rows]):
            for place, rows in groups.items():
                radius, seed = self.radius(place), getattr(self.settings, "seed", 0)
                values = {"norm": self.settings.norm, "epsilon": radius, "seed": seed, "steps": STEPS}
                pgd = PgdSettings.model_validate(values)
                records, points = pgd_points(self.network, self.block.rows(rows), pgd)
                for row, record, point in zip(rows, records, points, strict=True):
                    if not record.robust:
                        self.keep(row, point, "pgd")
                    if self.broken_place(row) > place:
                        self.attacked[row] = place

    @property
    def _rows(self) -> range:
        return range(len(self.block.indices))

    def _groups(self, low: Sequence[int], high: Sequence[int]) -> dict[int, list[int]]:
        """The rows to try at each place: the last one if nothing is known there, else halfway."""
        found: dict[int, list[int]] = {}
        for row in self.right:
            if high[row] - low[row] > 1:
                place = self.steps if high[row] > self.steps else (low[row] + high[row]) // 2
                found.setdefault(place, []).append(row)
        return dict(sorted(found.items()))

    def record(self, row: int, prediction: int, seconds: float) -> RadiusRecord:
        """Write down what was found of an image."""
        block, broken = self.block, self.broken.get(row)
        verified_radius = float_below(self.radius(self.proved[row]))
        about: dict[str, Any] = {"broken_radius": None}
        if row not in self.right:
            about = {"broken_radius": 0.0, "found_by": "clean", "adversarial": prediction}
        elif broken is not None:
            about = {"broken_radius": broken.distance, "found_by": broken.by, "adversarial": broken.prediction}
            if broken.distance <= verified_radius:
                raise GateError(
                    f"image {block.indices[row]}: {self.settings.kind} proves radius {verified_radius:.9g}, but "
                    f"{broken.by} breaks it at {broken.distance:.9g}; this bound is unsound for this network, please "
                    "report it"
                )
        return RadiusRecord(
            index=block.indices[row],
            input_sha=block.shas[row],
            label=int(block.labels[row]),
            prediction=prediction,
            seconds=seconds,
            verified=self.proved[row] == self.steps,
            verified_radius=verified_radius,
            trials=self.trials[row],
            subproblems=self.subproblems[row],
            **about,
        )


def distance_above(point: Tensor, x: Tensor, norm: Norm) -> float:
    """Return the distance of two images, rounded up; in L∞ it is exact where float64 holds every difference."""
    first, second = point.double().flatten(), x.double().flatten()
    offset = first - second
    if norm == "l2":
        return float(torch.linalg.vector_norm(offset)) * ABOVE
    taken = first - offset  # Knuth's two-sum: what the difference lost
    lost = (first - (offset + taken)) + (taken - second)
    length = float(offset.abs().max())
    return length * ABOVE if lost.any() else length
