"""Complete verification by mixed-integer programming, with HiGHS: a second opinion beside branch and bound.

It shares the bounds in front of activations with `search`, and nothing else. HiGHS computes in floating point with
tolerances of 1e-7 to 1e-6, so that its bounds are no proofs. They count only if they clear a margin of safety.
Source: Tjeng et al. (2019), arXiv:1711.07356.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from hydrabench.bounds.crown import crown_rows
from hydrabench.bounds.exact.formulation import (
    Floats,
    Formulation,
    LinearSystem,
    formulation_of,
    linear_systems,
    require_piecewise_linear,
)
from hydrabench.bounds.exact.root import Root, root_of
from hydrabench.bounds.exact.search import Confirm, Decision, Limits
from hydrabench.bounds.progress import Branching, tell
from hydrabench.bounds.specification import Problem, clean_margins
from hydrabench.errors import ConfigError

MOST_UNSTABLE = 1000  # activations of an image with more than one piece
SAFETY = 1e-4  # of 1 + the largest clean margin: how far HiGHS's bound must lie above 0


@torch.no_grad()
def decide_by_milp(problem: Problem, limits: Limits, confirm: Confirm) -> list[Decision]:
    """Decide for each image whether all its functions are positive on the whole ball; the contract of `search.decide`.

    Functions that CROWN proves are left out; each of the others is minimised until one is not positive at a point that
    `confirm` accepts. A bound is the dual one of HiGHS less `SAFETY`, so an image whose smallest margin lies
    within that of 0 is unknown. `Decision.subproblems` counts the nodes of HiGHS's searches.

    Args:
        problem: in float64, its radius rounded up, its ball L-infinity.
        limits: of subproblems, and of seconds for an image.
    Raises: UnsupportedLayerError for an operation without a formulation, ConfigError for an L2 ball or an image with
        more than `MOST_UNSTABLE` unstable neurons.
    Source: arXiv:1711.07356, section 4.
    """
    if problem.ball.norm != "linf":
        raise ConfigError(f"engine milp takes linf balls, got {problem.ball.norm}; choose --engine branch-and-bound")
    require_piecewise_linear(problem.body)
    root = root_of(problem)
    _require_few_unstable(root)
    systems, known = linear_systems(root), crown_rows(problem)
    safety = SAFETY * (1 + clean_margins(problem).abs().amax(1))
    decisions = []
    for image in range(len(known)):
        search = _Search(root, image, limits, confirm, safety=float(safety[image]))
        decisions.append(search.run(known[image].cpu().numpy(), systems))
        tell(Branching(image + 1, len(known), sum(each.subproblems for each in decisions), 0, decisions[-1].lower))
    return decisions


def _require_few_unstable(root: Root) -> None:
    most = max((len(places) for places in root.free), default=0)
    if most > MOST_UNSTABLE:
        raise ConfigError(
            f"engine milp is for small networks: an image has {most:,} unstable neurons at this radius, at most "
            f"{MOST_UNSTABLE:,} are allowed; choose a smaller --epsilon or --engine branch-and-bound"
        )


@dataclass(eq=False)
class _Search:
    """The search for one image. nodes: of HiGHS, so far. point: the adversarial example, if there is one."""

    root: Root
    image: int
    limits: Limits
    confirm: Confirm
    safety: float
    nodes: int = 0
    point: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.end = None if self.limits.seconds is None else perf_counter() + self.limits.seconds

    def run(self, known: Floats, systems: dict[int, LinearSystem]) -> Decision:
        """Minimise the functions that are not proved, the one with the worst bound first.

        Args: known: lower bounds of the functions by CROWN, (S,).
        """
        lower = np.where(np.isnan(known), -np.inf, known)
        open_ = [int(place) for place in np.argsort(lower, kind="stable") if not lower[place] > 0]
        if open_:
            program = formulation_of(self.root, self.image, systems)
            matrix = program.matrix()
            for place in open_:
                lower[place] = max(lower[place], self._minimised(program, matrix, place))
                if self.point is not None or self._spent():
                    break
        verdict = "broken" if self.point is not None else "verified" if (lower > 0).all() else "unknown"
        return Decision(verdict, float(lower.min()), self.point, self.nodes)  # type: ignore[arg-type]

    def _spent(self) -> bool:
        late = self.end is not None and perf_counter() >= self.end
        return late or self.nodes >= self.limits.subproblems

    def _minimised(self, program: Formulation, matrix: Any, place: int) -> float:
        """Return a lower bound of a function, and look at the point where HiGHS found it lowest."""
        task = self.image * (len(self.root.image) // len(self.root.lower)) + place
        objective = np.zeros(program.columns)
        objective[program.values[-1]] = self.root.rows[task].flatten().cpu().numpy()
        options: dict[str, float] = {"mip_rel_gap": 0.0, "node_limit": self.limits.subproblems - self.nodes}
        if self.end is not None:
            options["time_limit"] = max(self.end - perf_counter(), 0.01)
        integral = np.concatenate(program.integral)
        sides = [np.concatenate([np.zeros(0), *part]) for part in (program.low, program.high)]
        found = milp(
            objective,
            integrality=integral.astype(int),
            bounds=Bounds(np.concatenate(program.lower), np.concatenate(program.upper)),
            constraints=LinearConstraint(matrix, *sides) if program.rows else (),
            options=options,
        )
        self.nodes += max(1, found.mip_node_count or 0)
        offset = float(self.root.offset[task])
        if found.x is not None and found.fun + offset <= self.safety:
            self._try(np.clip(found.x[program.values[0]], program.lower[0], program.upper[0]))
        return _dual_bound(found, is_linear=not integral.any()) + offset - self.safety

    def _try(self, entries: Floats) -> None:
        x = self.root.ball.x[self.image : self.image + 1]
        image = torch.tensor([self.image], device=x.device)
        (self.point,) = self.confirm(image, torch.from_numpy(entries).to(x).view_as(x))


def _dual_bound(found: Any, *, is_linear: bool) -> float:
    """The bound that HiGHS proved; that of a linear program is its optimum. A box is never empty: that proves nothing.

    Returns: -inf if there is none.
    """
    if is_linear:
        return float(found.fun) if found.status == 0 else -np.inf
    known = found.status in (0, 1) and found.mip_dual_bound is not None
    return float(found.mip_dual_bound) if known else -np.inf
