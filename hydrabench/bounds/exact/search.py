"""Branch and bound: whether functions of a network's output are positive on whole balls.

Every image has a queue of open subproblems of its functions. In each round the worst of them are cut in two; what is
proved is done, the rest goes back. Rounds of several images are computed together, but what is done for one depends on
no other: an image ends when its queue is empty (verified), when a point of its ball is confirmed to be an adversarial
example (broken), or at its limit (unknown).
Source: Bunel et al. (2020), arXiv:1909.06588, algorithm 1; Wang et al. (2021), arXiv:2103.06624, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hydrabench.bounds.backward import MEMORY
from hydrabench.bounds.exact.branching import CutScores
from hydrabench.bounds.exact.leaves import settle
from hydrabench.bounds.exact.points import descended, lowest_points
from hydrabench.bounds.exact.queue import Queue
from hydrabench.bounds.exact.root import Root, root_of
from hydrabench.bounds.exact.saved import current_store, key_of
from hydrabench.bounds.exact.splits import Constraints, Subproblem
from hydrabench.bounds.exact.walk import Steps, Walk
from hydrabench.bounds.progress import Branching, tell
from hydrabench.bounds.specification import Problem

Verdict = Literal["verified", "broken", "unknown"]
# (image of each point, points (P, *image)) -> for each point None, or the adversarial example that it was rounded to
Confirm = Callable[[Tensor, Tensor], Sequence["Tensor | None"]]
ROUND = 64  # subproblems of an image that are cut together
FEW_UNSTABLE = 32  # neurons; the boxes of subproblems with so few are refreshed
BATCH = 1024  # subproblems that are bounded together, if their coefficients fit into `backward.MEMORY`
ENTRIES = 4, 16  # that a pass holds for each coefficient of every value, and for each place that can be cut
FIRST = Steps(iterations=50)
LATER = Steps(iterations=20)


@dataclass(frozen=True)
class Limits:
    """The limits of a search. subproblems: >= 1, that are bounded. seconds: its share of time, or None."""

    subproblems: int = 100_000
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Decision:
    """The verdict on an image.

    lower: a lower bound of the smallest of its functions on the ball. point: an adversarial example, (*image), if it
    is broken. subproblems: how many were bounded.
    """

    verdict: Verdict
    lower: float
    point: Tensor | None
    subproblems: int


def decide(problem: Problem, limits: Limits, confirm: Confirm) -> list[Decision]:
    """Decide for each image of a problem whether all its functions are positive on the whole ball.

    The functions may be anything linear in the last value of the problem's program, and the ball anything with its
    methods: of a VNN-LIB property, each output constraint is a function.

    Args:
        problem: in float64, its radius rounded up.
        confirm: whether points with a function that is not positive are adversarial examples.
    Returns: for each image; subproblems are those of all its functions.
    Source: arXiv:2103.06624, section 3.3.
    """
    with torch.no_grad():
        return _Search(root_of(problem), limits, confirm).run()


@dataclass(eq=False)
class _Tree:
    """The search for one image. done: lowest bound of what is proved. serial: of the next subproblem."""

    queue: Queue = field(default_factory=Queue)
    done: float = float("inf")
    count: int = 0
    serial: int = 0
    seconds: float = 0.0
    point: Tensor | None = None

    def lower(self) -> float:
        return min(self.done, self.queue.lowest())

    def add(self, subproblem: Subproblem) -> None:
        """Settle a subproblem that is proved, keep another one."""
        if subproblem.lower > 0:
            self.done = min(self.done, subproblem.lower)
        else:
            self.queue.push(subproblem)

    def is_open(self, limits: Limits) -> bool:
        late = limits.seconds is not None and self.seconds >= limits.seconds
        return self.point is None and len(self.queue) > 0 and self.count < limits.subproblems and not late

    def numbers(self) -> dict[str, Any]:
        """Return what JSON can hold: all but the open subproblems."""
        point = None if self.point is None else self.point.flatten().tolist()
        done = None if self.done == float("inf") else self.done
        return {"done": done, "count": self.count, "serial": self.serial, "seconds": self.seconds, "point": point}

    def decision(self) -> Decision:
        verdict: Verdict = "broken" if self.point is not None else "unknown" if len(self.queue) else "verified"
        return Decision(verdict, self.lower(), self.point, self.count)


@dataclass(eq=False)
class _Search:
    root: Root
    limits: Limits
    confirm: Confirm

    def __post_init__(self) -> None:
        self.trees = [_Tree() for _ in range(len(self.root.lower))]
        places = self.root.places
        entries = ENTRIES[0] * sum(shape.numel() for shape in places.shapes) + ENTRIES[1] * places.size
        self.together = max(1, min(BATCH, MEMORY // (8 * entries)))
        self.store = current_store()
        self.key = key_of(self.root) if self.store else ""

    def run(self) -> list[Decision]:
        """Search until every image is decided or given up, from where a killed search has left off if there is one."""
        if not self._resumed():
            self._begin()
        while active := [image for image, tree in enumerate(self.trees) if tree.is_open(self.limits)]:
            taken: list[Subproblem] = []
            for image in active:
                if len(taken) < max(self.together // 2, 1):
                    taken += self.trees[image].queue.pop(ROUND)
            self._timed(taken, self._advance)
            self._tell()
            if self.store and self.store.is_due():
                open_ = [each for tree in self.trees for each in tree.queue.all()]
                self.store.save(self.key, open_, [tree.numbers() for tree in self.trees])
        return [tree.decision() for tree in self.trees]

    def _resumed(self) -> bool:
        """Take the state of a killed search of the same problem."""
        state = self.store.load(self.key) if self.store else None
        if state is None:
            return False
        subproblems, numbers = state
        for image, (tree, known) in enumerate(zip(self.trees, numbers, strict=True)):
            tree.done = float("inf") if known["done"] is None else known["done"]
            tree.count, tree.serial, tree.seconds = known["count"], known["serial"], known["seconds"]
            if known["point"] is not None:
                x = self.root.ball.x[image : image + 1]
                (tree.point,) = self.confirm(
                    torch.tensor([image], device=x.device), x.new_tensor(known["point"]).view_as(x)
                )
        for each in subproblems:
            self._tree(each).queue.push(each)
        return True

    def _tell(self) -> None:
        """Say how far the search has come."""
        left = [tree for tree in self.trees if tree.is_open(self.limits)]
        lowest = min((tree.queue.lowest() for tree in left), default=0.0)
        counts = sum(tree.count for tree in self.trees), sum(len(tree.queue) for tree in left)
        tell(Branching(len(self.trees) - len(left), len(self.trees), *counts, lowest))

    def _timed(self, batch: Sequence[Subproblem], work: Callable[[Sequence[Subproblem]], None]) -> None:
        """Do work and charge its time to the images of the batch, in equal shares."""
        start = perf_counter()
        work(batch)
        share = (perf_counter() - start) / max(len(batch), 1)
        for each in batch:
            self._tree(each).seconds += share

    def _tree(self, subproblem: Subproblem) -> _Tree:
        return self.trees[self.root.owners[subproblem.task]]

    def _begin(self) -> None:
        empty = (np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(0), np.zeros(0))
        roots = [Subproblem(task, -float("inf"), *empty) for task in range(len(self.root.image))]
        for part in self._parts(roots):
            self._timed(part, lambda batch: self._bound(batch, FIRST))

    def _advance(self, parents: Sequence[Subproblem]) -> None:
        children = self._cut(parents)
        for part in self._parts(children):
            self._bound(part, LATER)

    def _parts(self, batch: Sequence[Subproblem]) -> Iterator[Sequence[Subproblem]]:
        return (batch[start : start + self.together] for start in range(0, len(batch), self.together))

    def _walk(self, batch: Sequence[Subproblem]) -> Walk:
        task = torch.tensor([each.task for each in batch], device=self.root.lower.device)
        constraints = Constraints.of(batch, self.root.lower)
        image = self.root.image[task]
        lower, upper = constraints.narrowed(self.root.lower[image], self.root.upper[image])
        lower, upper = self._refreshed(image, lower, upper, constraints)
        return Walk(self.root, task, lower, upper, constraints, self._slopes(batch))

    def _refreshed(
        self, image: Tensor, lower: Tensor, upper: Tensor, constraints: Constraints
    ) -> tuple[Tensor, Tensor]:
        """Bound all values anew where that is cheap, because few are unstable, or where the image itself was cut."""
        few = self.root.undecided(lower, upper).sum(1) <= FEW_UNSTABLE
        cuts_image = ((constraints.places < self.root.places.parts[0].stop) & (constraints.sides != 0)).any(1)
        rows = ((few & (constraints.sides != 0).any(1)) | cuts_image).nonzero().squeeze(1)
        if not len(rows):
            return lower, upper
        low, high = self.root.refreshed(image[rows], lower[rows], upper[rows])
        return lower.index_copy(0, rows, low), upper.index_copy(0, rows, torch.maximum(low, high))

    def _slopes(self, batch: Sequence[Subproblem]) -> Tensor | None:
        known = [each.slopes for each in batch if each.slopes is not None]
        if not known:
            return None
        found = self.root.lower.new_full((len(batch), len(known[0]), self.root.places.size), torch.nan)
        for row, each in enumerate(batch):
            if each.slopes is not None:
                given = torch.from_numpy(each.slopes).to(found)
                found[row, :, self.root.free[self.root.owners[each.task]]] = given
        return found

    def _bound(self, batch: Sequence[Subproblem], steps: Steps) -> None:
        """Bound subproblems, look for adversarial examples where their bounds come from, and sort them in."""
        walk = self._walk(batch)
        known = torch.tensor([each.lower for each in batch], dtype=torch.float64, device=walk.lower.device)
        points = settle(walk, walk.improve(steps, torch.full_like(known, -torch.inf)), self.together)
        scores = CutScores(walk)
        lower, rows = walk.rounded(scores.observe)
        lower = torch.maximum(lower.nan_to_num(nan=-torch.inf), known)
        bounds: list[float] = lower.tolist()
        candidates, cuts = (part.cpu().numpy() for part in scores.candidates(rows))
        slopes, multipliers = walk.dense().float().cpu(), walk.constraints.multipliers.detach().cpu().numpy()
        for row, each in enumerate(batch):
            tree = self._tree(each)
            bound = bounds[row]
            free = self.root.free[self.root.owners[each.task]]
            tree.add(
                replace(
                    each,
                    lower=bound,
                    multipliers=multipliers[row, : len(each.places)],
                    slopes=None if bound > 0 else slopes[row][:, free.cpu()].numpy(),
                    candidates=candidates[row][candidates[row] >= 0].astype(np.int32),
                    cuts=cuts[row][candidates[row] >= 0],
                    serial=tree.serial,
                )
            )
            tree.serial += 1
            tree.count += 1
        self._try(walk, rows, lower, points)

    def _try(self, walk: Walk, rows: Tensor, lower: Tensor, known: Mapping[int, Tensor]) -> None:
        """Look for adversarial examples where bounds are lowest, and downhill from there."""
        unproved = (~(lower > 0)).nonzero().squeeze(1)
        points = lowest_points(walk, rows, known)[unproved]
        task, image = walk.task[unproved], walk.image[unproved]
        values = self.root.values(points, task)
        order = values.argsort(stable=True)
        firsts = {int(image[place]): place for place in order.flip(0).tolist()}  # the lowest of each image stays
        if not firsts:
            return
        chosen = torch.tensor([*firsts.values()], device=image.device)
        points, values = descended(self.root, points[chosen], task[chosen], image[chosen])
        for place, number in enumerate(firsts):
            tree = self.trees[number]
            if values[place] <= 0 and tree.point is None:
                (tree.point,) = self.confirm(image[chosen[place : place + 1]], points[place : place + 1])

    def _cut(self, parents: Sequence[Subproblem]) -> list[Subproblem]:
        """Return the parts of subproblems, cut where the worse part gets the best bound at once."""
        trials = [
            (each, int(place), float(point))
            for each in parents
            for place, point in zip(each.candidates, each.cuts, strict=True)
        ]
        parts = [part for each, place, point in trials for part in each.cut(place, point, (-float("inf"),) * 2)]
        bounds: list[float] = []
        for some in self._parts(parts):
            walk = self._walk(some)
            bounds += walk.rounded(lambda _position, _rows: None)[0].nan_to_num(nan=-torch.inf).tolist()
        children: list[Subproblem] = []
        number = 0
        for each in parents:
            options = []
            for place, point in zip(each.candidates, each.cuts, strict=True):
                options.append((int(place), float(point), bounds[2 * number : 2 * number + 2]))
                number += 1
            children += self._best(each, options)
        return children

    def _best(self, parent: Subproblem, options: list[tuple[int, float, list[float]]]) -> list[Subproblem]:
        """Return the parts of the best cut that are not proved already; the parent itself if nothing can be cut."""
        tree = self._tree(parent)
        if not options:
            return [parent]
        place, point, bounds = max(options, key=_worth)
        children = []
        for part in parent.cut(place, point, bounds):
            if part.lower > 0:
                tree.add(part)
                tree.count += 1
            else:
                children.append(part)
        return children


def _worth(option: tuple[int, float, list[float]]) -> tuple[float, float]:
    """The bounds of both parts, the worse one first, without the last bits, in which equal ones may differ."""
    worse, better = sorted(float(np.float32(bound)) for bound in option[2])
    return min(worse, 0.0), better
