"""Mixed-integer programming against the enumeration of all phases and against branch and bound."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hydrabench.bounds.exact import Limits, decide_by_milp, milp
from hydrabench.bounds.exact.formulation import formulation_of, linear_systems
from hydrabench.bounds.exact.root import root_of
from hydrabench.bounds.specification import clean_margins, pose
from hydrabench.errors import ConfigError, UnsupportedLayerError

ACTIVATIONS = pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh], ids=lambda kind: kind.__name__
)
SEEDS = pytest.mark.parametrize(
    "seeds", [range(3), pytest.param(range(3, 100), marks=pytest.mark.slow)], ids=["few", "many"]
)


POOLING = (0, 8, 30)  # seeds of `tiny_dag` with max pooling


def posed(instance):
    return pose(instance.network, instance.x, instance.y, instance.epsilon, norm=instance.norm)


def by_milp(instance, limits=Limits(), confirm=None):  # noqa: B008
    """Decide an instance; adversarial examples are those that the network itself misclassifies."""

    def misclassified(image, points):
        wrong = instance.network(points).argmax(1) != instance.y[image]
        return [point if bad else None for point, bad in zip(points, wrong, strict=True)]

    return decide_by_milp(posed(instance), limits, confirm or misclassified)


def nothing(image, _points):
    return [None] * len(image)


@SEEDS
@ACTIVATIONS
def test_bounds_are_the_smallest_margins_of_the_enumeration(make_instance, activation, seeds):
    """Where nothing stops it early, the bound misses the true minimum by the safety margin at most."""
    for seed in seeds:
        instance = make_instance(seed, activation)
        safety = milp.SAFETY * (1 + clean_margins(posed(instance)).abs().amax(1))
        for decision, smallest, gap in zip(by_milp(instance, confirm=nothing), instance.smallest, safety, strict=True):
            assert decision.lower <= smallest + 1e-9
            if decision.subproblems and smallest <= 0:
                assert decision.lower >= smallest - float(gap) - 1e-5
            assert decision.verdict == ("verified" if decision.lower > 0 else "unknown")


@SEEDS
@ACTIVATIONS
def test_verdicts_are_those_of_the_enumeration_and_of_branch_and_bound(make_instance, activation, seeds):
    verdicts = []
    for seed in seeds:
        instance = make_instance(seed, activation)
        decisions = by_milp(instance)
        for image, (decision, other) in enumerate(zip(decisions, instance.decide(), strict=True)):
            near = abs(instance.smallest[image]) <= 1e-2
            assert near or decision.verdict == other.verdict
            assert decision.verdict in ("unknown", "verified" if instance.smallest[image] > 0 else "broken")
            assert near or decision.verdict != "unknown"
            if decision.verdict == "broken":
                assert instance.network(decision.point.unsqueeze(0)).argmax(1) != instance.y[image]
                assert (decision.point - instance.x[image]).abs().max() <= instance.epsilon + 1e-9
        verdicts += [decision.verdict for decision in decisions]
    assert {"verified", "broken"} <= {*verdicts}


@pytest.mark.parametrize("seed", [1, 24, 34, *POOLING])
def test_where_the_image_is_fixed_the_program_computes_what_the_network_does(tiny_dag, seed):
    """Its smallest and its largest value are those at the point: nothing is cut off, and nothing is added."""
    network, x, y, rng = tiny_dag(seed)
    problem = pose(network, x, y, 0.05)
    root = root_of(problem)
    systems = linear_systems(root)
    for task, image in enumerate(root.image.tolist()):
        program = formulation_of(root, image, systems)
        low, high = (part[image : image + 1] for part in (problem.ball.box.lower(), problem.ball.box.upper()))
        point = low + torch.rand(low.shape, generator=rng, dtype=x.dtype) * (high - low)
        lower, upper = np.concatenate(program.lower), np.concatenate(program.upper)
        lower[program.values[0]] = upper[program.values[0]] = point.flatten().numpy()
        value = float(root.values(point, torch.tensor([task])) - root.offset[task])
        for sign in (1, -1):
            objective = np.zeros(program.columns)
            objective[program.values[-1]] = sign * root.rows[task].flatten().numpy()
            found = milp.milp(
                objective,
                integrality=np.concatenate(program.integral).astype(int),
                bounds=milp.Bounds(lower, upper),
                constraints=milp.LinearConstraint(program.matrix(), *map(np.concatenate, (program.low, program.high))),
            )
            assert found.status == 0
            assert sign * found.fun == pytest.approx(value, abs=1e-5 * (1 + abs(value)))


def test_an_image_is_unknown_at_its_limit(make_instance, monkeypatch):
    instance = make_instance(4)
    assert all(smallest < 0 for smallest in instance.smallest)
    for decision in by_milp(instance, Limits(1), nothing):
        assert (decision.verdict, decision.subproblems) == ("unknown", 1)
    for decision in by_milp(instance, Limits(seconds=1e-9), nothing):
        assert decision.verdict == "unknown"


@pytest.mark.parametrize(
    ("status", "fun", "dual", "bound"),
    [
        (0, 1.0, 0.5, 0.5),
        (1, 1.0, -2.0, -2.0),
        (1, None, None, -np.inf),
        (2, None, None, -np.inf),
        (4, 1.0, 1.0, -np.inf),
    ],
)
def test_only_the_dual_bound_of_a_search_counts(make_instance, monkeypatch, status, fun, dual, bound):
    """Neither the lowest point that was found nor a program that seems to be infeasible proves anything."""
    found = SimpleNamespace(status=status, fun=fun, mip_dual_bound=dual, mip_node_count=3, x=None)
    assert milp._dual_bound(found, is_linear=False) == bound
    instance = make_instance(1)
    monkeypatch.setattr(milp, "milp", lambda *_, **__: found)
    monkeypatch.setattr(milp, "crown_rows", lambda problem: torch.full_like(problem.offset, -torch.inf))
    offsets = posed(instance).offset.amin(1)
    for decision, offset in zip(by_milp(instance), offsets.tolist(), strict=True):
        assert decision.lower < bound + offset or bound == -np.inf == decision.lower


def test_what_has_no_formulation_is_refused(make_instance, monkeypatch):
    with pytest.raises(ConfigError, match="linf balls, got l2; choose --engine branch-and-bound"):
        by_milp(make_instance(0, norm="l2"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 2)).double().eval()
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    with pytest.raises(UnsupportedLayerError, match="no exact formulation for Sigmoid"):
        decide_by_milp(pose(network, x, torch.tensor([0]), 0.1), Limits(), nothing)
    monkeypatch.setattr(milp, "MOST_UNSTABLE", 1)
    with pytest.raises(ConfigError, match="unstable neurons at this radius, at most 1 are allowed"):
        by_milp(make_instance(0))
