"""Replay public certification logs: how many draws each mode saves, and what it loses, beside a lower bound.

Usage: python benchmarks/replay.py [DIR] [--images 500] [--samples 10000,100000] [--radii grid,auto,0.5] [--figure FILE]

Without DIR one population is simulated, sigma 0.25: probabilities 1 - 10^u, u uniform in [-5, 0], all classes right.
DIR is a folder of tables as Cohen's certify.py writes them (`idx label predict radius correct time`); its path or
name says sigma (`noise_0.25`, `sigma_0.25`). A column `count` holds the votes among `--log-samples` draws; without
it they are computed from the radius. The votes over `--log-samples` are taken for the true probability p of the class
(abstentions have p uniform in [0.40, 0.502], as their votes are not logged), and N draws are made again from it. All
modes see the same draws: counts between known ones follow the hypergeometric law.

"fewer" is N over the mean draws (selection left out). "bound" is the same of a Wald-type bound, and "ratio" the
draws over those of the bound. To claim p_k at level alpha takes log(1/alpha) / KL(p, p_k) draws on average, and to give
up a radius that N draws would certify half of the time, at q, with probability 1e-3 takes log(1000) / KL(p, q); the
bound takes the larger of both for each image, at most N. "worst" is the largest loss of certified accuracy at a radius
against `cohen` on the same draws, "ACR" the average certified radius.
"""

from __future__ import annotations

import argparse
import csv
import re
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom

from hydrabench.evaluators.smoothing_settings import largest_radius
from hydrabench.laws import radius_of
from hydrabench.smoothing.rules import RULES
from hydrabench.smoothing.sequential import Plan, Rule

ALPHA, RESIGN, STEP = 0.001, 1e-3, 0.25
NOISE = re.compile(r"(?:sigma|noise)[_=-]?(\d+(?:\.\d+)?)")
GRID = tuple(STEP * k for k in range(4))
SIZES = (1000, 10_000, 100_000)
YES = np.array(True)
Modes = dict[str, Callable[[Plan], Rule]]
MODES: Modes = {**RULES, "adaptive, t 0.02": lambda plan: RULES["adaptive"](replace(plan, tolerance=0.02))}


@dataclass(frozen=True)
class Log:
    """One table. p: probability of the selected class for each image. right: whether that is the label."""

    name: str
    sigma: float
    p: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """Of one mode on one log. draws and radius (-1: abstained) of each image."""

    draws: np.ndarray
    radius: np.ndarray

    def certified(self, log: Log, radii: Sequence[float]) -> np.ndarray:
        """Certified accuracy at each radius."""
        return np.array([np.mean(log.right & (self.radius >= radius)) for radius in radii])

    def average(self, log: Log) -> float:
        """Average certified radius."""
        return float(np.mean(np.where(log.right, np.maximum(self.radius, 0), 0)))


class Votes:
    """The votes of one image, revealed at any numbers of draws in any order."""

    def __init__(self, p: float, samples: int, seed: Sequence[int]) -> None:
        self.random = np.random.default_rng(seed)
        self.sizes, self.counts = [0, samples], {0: 0, samples: int(self.random.binomial(samples, p))}

    def at(self, n: int) -> int:
        """Votes for the class among the first n draws."""
        if n not in self.counts:
            place = bisect_right(self.sizes, n)
            low, high = self.sizes[place - 1], self.sizes[place]
            votes = self.counts[high] - self.counts[low]
            drawn = self.random.hypergeometric(votes, high - low - votes, n - low)
            self.counts[n] = self.counts[low] + int(drawn)
            insort(self.sizes, n)
        return self.counts[n]


def read(path: Path, root: Path, images: int, samples: int) -> Log | None:
    """Read a table; None if the file is none, or its noise is not known."""
    noises = NOISE.findall(str(path.relative_to(root)))
    if not noises:
        return None
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"label", "predict"} < rows[0].keys() or not {"radius", "count"} & rows[0].keys():
        return None
    rows = rows[:: max(1, len(rows) // images)][:images]
    sigma = float(noises[-1])
    random = np.random.default_rng(0)
    p = []
    for row in rows:
        if row["predict"] == "-1" and "count" not in row:
            p.append(random.uniform(0.40, 0.502))
        elif "count" in row:
            p.append(int(row["count"]) / samples)
        else:
            lower = NormalDist().cdf(float(row["radius"]) / sigma)
            p.append(min(samples, binom.isf(ALPHA, samples, lower) + 1) / samples)
    # An abstention does not say which class was selected; its radius counts nothing anyway.
    right = np.array([row["predict"] in (row["label"], "-1") for row in rows])
    return Log(str(path.relative_to(root)), sigma, np.array(p), right)


def replay(rule: Rule, votes: Sequence[Votes], sigma: float) -> Outcome:
    """Run a rule on every image."""
    draws, radii = [], []
    for one in votes:
        n, best = rule.first, 0.0
        while True:
            verdict = rule.look(n, one.at(n), best)
            best = verdict.p_lower
            if verdict.following is None:
                break
            n = verdict.following
        draws.append(n)
        found = radius_of(best, sigma=sigma)
        radii.append(-1.0 if found is None else found)
    return Outcome(np.array(draws), np.array(radii))


def bound(log: Log, plan: Plan) -> np.ndarray:
    """Least mean draws of each image, see the module's docstring."""
    limits = np.array([NormalDist().cdf(radius / plan.sigma) for radius in plan.radii])
    needed = (binom.isf(plan.alpha, plan.samples, limits) + 1) / plan.samples  # what N draws would certify with
    found = []
    for p in log.p:
        claimed = int(np.searchsorted(needed, p, side="right"))
        draws = 1.0
        if claimed:
            draws = max(draws, -np.log(plan.alpha) / divergence(p, limits[claimed - 1]))
        if claimed < len(limits) and needed[claimed] <= 1:
            draws = max(draws, -np.log(RESIGN) / max(divergence(p, needed[claimed]), 1e-12))
        found.append(min(draws, plan.samples))
    return np.array(found)


def divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of two coins."""
    terms = [a * np.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0 and b > 0]
    return np.inf if q >= 1 > p else max(sum(terms), 1e-12)


def grid(text: str, sigma: float, samples: int) -> tuple[float, ...]:
    """The radii that a name stands for."""
    largest = largest_radius(sigma=sigma, samples=samples, alpha=ALPHA)
    if text == "auto":
        return tuple(STEP * k for k in range(int(largest / STEP) + 1))
    radii = GRID if text == "grid" else (float(text),)
    return tuple(radius for radius in radii if radius <= largest)


@dataclass(frozen=True)
class Row:
    """What one mode did, averaged over logs. worst: largest loss of certified accuracy at a radius against `cohen`."""

    mode: str
    draws: float
    accuracy: float
    worst: float
    average: float


def compare(logs: Sequence[Log], plan: Plan, modes: Modes) -> list[Row]:
    """Replay every mode; the last row is the bound, with the certificates of `cohen`."""
    rules = {mode: make(plan) for mode, make in modes.items()}
    found: dict[str, list[tuple[float, np.ndarray, float]]] = defaultdict(list)
    for place, log in enumerate(logs):
        votes = [Votes(p, plan.samples, (place, image)) for image, p in enumerate(log.p)]
        for mode, rule in rules.items():
            one = replay(rule, votes, plan.sigma)
            found[mode].append((float(one.draws.mean()), one.certified(log, plan.radii), one.average(log)))
        _, *certificates = found["cohen"][-1]
        found["bound"].append((float(bound(log, plan).mean()), *certificates))
    full = np.mean([accuracy for _, accuracy, _ in found["cohen"]], axis=0)
    rows = []
    for mode, of_logs in found.items():
        draws, accuracy, average = (np.mean(np.array(values), axis=0) for values in zip(*of_logs, strict=True))
        rows.append(Row(mode, float(draws), float(accuracy.mean()), float((accuracy - full).min()), float(average)))
    return rows


def table(logs: dict[float, list[Log]], sizes: Sequence[int], radii: Sequence[str]) -> None:
    """Print what each mode saves."""
    print(f"{'sigma':>5} {'radii':<6}{'N':>8} {'mode':<18}{'draws':>9}{'fewer':>8}{'ratio':>8}{'worst':>9}{'ACR':>8}")
    for sigma, of_noise in logs.items():
        for name in radii:
            for samples in sizes:
                asked = grid(name, sigma, samples)
                if not asked:
                    continue
                found = compare(of_noise, Plan(samples, ALPHA, sigma, asked), MODES)
                least = found[-1].draws
                for one in found:
                    print(
                        f"{sigma:>5g} {name:<6}{samples:>8} {one.mode:<18}{one.draws:>9.0f}"
                        f"{samples / one.draws:>7.2f}x{one.draws / least:>8.2f}{one.worst * 100:>+8.2f}p"
                        f"{one.average:>8.3f}",
                        flush=True,
                    )


def draw(logs: dict[float, list[Log]], path: Path) -> None:
    """Write the figure: mean draws against certified accuracy, averaged over 0 to 0.75, as N grows.

    A radius that N draws cannot certify counts with accuracy 0, so that all points average over the same radii.
    """
    figure = Figure(figsize=(4.2 * len(logs), 3.6), layout="constrained")
    for axes, (sigma, of_noise) in zip(np.ravel(figure.subplots(1, len(logs))), logs.items(), strict=True):
        curves = defaultdict(list)
        for samples in SIZES:
            plan = Plan(samples, ALPHA, sigma, grid("grid", sigma, samples))
            reached = len(plan.radii) / len(GRID)
            for one in compare(of_noise, plan, MODES):
                curves[one.mode].append((one.draws, 100 * one.accuracy * reached))
        for mode, points in curves.items():
            style = ":" if mode == "bound" else "-"
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=mode, ls=style)
        axes.set(xscale="log", xlabel="draws per image", title=f"σ = {sigma:g}")
        axes.set_ylabel("mean certified accuracy (%)")
        axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Read the options and the logs, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", nargs="?")
    parser.add_argument("--images", type=int, default=500, help="of each log, evenly spread")
    parser.add_argument("--samples", default="10000,100000")
    parser.add_argument("--radii", default="grid,auto,0.5", help="grid: 0, 0.25, 0.5, 0.75; auto: all; or a number")
    parser.add_argument("--log-samples", type=int, default=100_000, help="draws that the logs were made with")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.folder is None:
        read_logs = [Log("simulated", 0.25, 1 - 10 ** np.random.default_rng(0).uniform(-5, 0, given.images), YES)]
    else:
        paths = sorted(path for path in given.folder.rglob("*") if path.is_file())
        read_logs = list(filter(None, (read(one, given.folder, given.images, given.log_samples) for one in paths)))
    if not read_logs:
        parser.error(f"{given.folder} holds no table whose path names sigma")
    found: dict[float, list[Log]] = defaultdict(list)
    for log in read_logs:
        found[log.sigma].append(log)
    logs = {sigma: found[sigma] for sigma in sorted(found)}
    for sigma, of_noise in logs.items():
        print(f"sigma {sigma:g}: {len(of_noise)} logs, {sum(len(log.p) for log in of_noise)} images")
    table(logs, [int(n) for n in given.samples.split(",")], given.radii.split(","))
    if given.figure:
        draw(logs, given.figure)


if __name__ == "__main__":
    main()
