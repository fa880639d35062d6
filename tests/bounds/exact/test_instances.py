"""Cases of properties against brute force: every answer is right, and none is open on tiny networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds.exact import instances
from hydrabench.bounds.exact.instances import decide_property
from hydrabench.bounds.properties import Case

GRID = 81


def network_of(seed):
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 1.5)
    return network


def cases_of(seed, count=3):
    """Random boxes beside zero, and one to three constraints on the output each; two cases share a box."""
    generator = torch.Generator().manual_seed(seed + 1000)

    def number(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for place in range(count):
        lower = number(2) if place != 1 else found[0].lower
        upper = lower + (number(2).abs() + 0.1) if place != 1 else found[0].upper
        rows = number(place + 1, 3)
        found.append(Case(lower, upper, rows, number(place + 1) - 1.5))
    return found


def lowest(network, case):
    """The smallest of max_k (row_k . y - bound_k) on a grid over the box."""
    ends = [torch.linspace(0, 1, GRID, dtype=torch.float64) * (b - a) + a for a, b in zip(case.lower, case.upper)]  # noqa: B905
    points = torch.cartesian_prod(*ends)
    with torch.no_grad():
        y = network.double()(points)
        network.float()
    return (y @ case.rows.T - case.bounds).amax(1).min().item()


def decide(network, cases, seconds=60.0):
    return decide_property(network, (2,), cases, seconds, network)


def require_right(network, cases, answer):
    values = [lowest(network, case) for case in cases]
    if min(values) < 0:
        assert answer.verdict == "broken"
    if answer.verdict == "broken":
        x = answer.point.double()
        y = network(answer.point.unsqueeze(0)).double()
        inside = [
            bool((case.lower <= x).all() and (x <= case.upper).all() and (y @ case.rows.T <= case.bounds).all())
            for case in cases
        ]
        assert any(inside)
    return answer.verdict


def test_answers_agree_with_a_grid():
    verdicts = []
    for seed in range(12):
        network, cases = network_of(seed), cases_of(seed)
        verdicts.append(require_right(network, cases, decide(network, cases)))
    assert set(verdicts) == {"verified", "broken"}


def test_a_case_without_constraints_is_violated_by_any_input_and_an_empty_box_by_none():
    network = network_of(0)
    nothing = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    corner = torch.zeros(2, dtype=torch.float64)
    assert decide(network, [Case(corner, corner + 1, *nothing)]).verdict == "broken"
    assert decide(network, [Case(corner + 1, corner, *nothing)]).verdict == "verified"


def test_without_time_the_answer_is_unknown():
    found = None
    for seed in range(12):
        network, cases = network_of(seed), cases_of(seed)
        answer = decide(network, cases, seconds=0.0)
        require_right(network, cases, answer)
        found = found or (answer.verdict == "unknown")
    assert found is not None


# Planted bugs ----------------------------------------------------------------------------------


def forgets_the_last_case(real):
    return lambda cases: real(cases[:-1] if len(cases) > 1 else cases)


def takes_the_first_constraint(_real):
    def planted(cases):
        return instances_most([Case(case.lower, case.upper, case.rows[:1], case.bounds[:1]) for case in cases])

    return planted


def turns_the_sign(real):
    def planted(cases):
        return real([Case(case.lower, case.upper, -case.rows, case.bounds) for case in cases])

    return planted


instances_most = instances._most_violated


@pytest.mark.parametrize("planted", [forgets_the_last_case, takes_the_first_constraint, turns_the_sign])
def test_planted_bugs_are_caught(planted, monkeypatch):
    monkeypatch.setattr(instances, "_most_violated", planted(instances._most_violated))
    monkeypatch.setattr(instances._Search, "attack", lambda _search: None)
    caught = False
    for seed in range(40):
        network, cases = network_of(seed), cases_of(seed)
        try:
            answer = decide(network, cases, seconds=0.5)
            require_right(network, cases, answer)
            caught |= answer.verdict == "unknown"  # what is never positive nor found
        except (AssertionError, RuntimeError):
            caught = True
        if caught:
            return
    raise AssertionError("nobody noticed")
