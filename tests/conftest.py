"""What all tests need: threads as the command line sets them (see hydrabench/process.py), and no caches of the user's.

Properties are tried on the same examples in every run, so that `make test` says the same to everybody; `make test-all`
draws new ones (`--hypothesis-profile random`). And what tests of two rooms need: a reader of
VNN-LIB, auto_LiRPA.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None)
settings.load_profile("fixed")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
os.environ.pop("HYDRABENCH_DATA", None)


@dataclass
class Property:
    """What a VNN-LIB file asserts: bounds of the inputs, and a disjunction of conjunctions of `Y_a >= Y_b`."""

    lower: list[Fraction]
    upper: list[Fraction]
    cases: list[list[tuple[int, int]]]

    def holds(self, inputs: Iterable[float], outputs: Sequence[float]) -> bool:
        """Whether the inputs lie in the box and the outputs fulfil one of the cases."""
        box = zip(self.lower, map(Fraction, inputs), self.upper, strict=True)
        inside = all(low <= value <= high for low, value, high in box)
        return inside and any(all(outputs[a] >= outputs[b] for a, b in case) for case in self.cases)


def parse_property(text: str) -> Property:
    """Read the part of VNN-LIB that VNN-COMP uses, as S-expressions; anything else fails."""
    words = re.findall(r"[()]|[^()\s]+", re.sub(r";.*", "", text))

    def expression() -> Any:
        word = words.pop(0)
        if word != "(":
            return word
        inner = []
        while words[0] != ")":
            inner.append(expression())
        words.pop(0)
        return inner

    declared: set[str] = set()
    bounds: dict[str, dict[str, Fraction]] = {">=": {}, "<=": {}}
    cases: list[list[tuple[int, int]]] = []
    while words:
        match expression():
            case ["declare-const", name, "Real"]:
                declared.add(name)
            case ["assert", ["or", *options]]:
                assert not cases
                for option in options:
                    head, *comparisons = option
                    assert head == "and"
                    assert all(sign == ">=" and {a, b} <= declared for sign, a, b in comparisons)
                    cases.append([(int(a.removeprefix("Y_")), int(b.removeprefix("Y_"))) for _, a, b in comparisons])
            case ["assert", [sign, name, number]]:
                assert name in declared
                assert name not in bounds[sign]
                bounds[sign][name] = Fraction(number)
            case other:
                raise AssertionError(f"not VNN-LIB: {other}")
    inputs = [f"X_{i}" for i in range(len(bounds[">="]))]
    return Property([bounds[">="][name] for name in inputs], [bounds["<="][name] for name in inputs], cases)


@pytest.fixture
def auto_lirpa() -> Any:
    """The library as it is imported now, which some tests do anew; where it is not installed, the test is skipped."""
    from hydrabench.bounds import lirpa
    from hydrabench.errors import HydrabenchError

    try:
        return lirpa.auto_lirpa()
    except HydrabenchError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def read_property() -> Callable[[str], Property]:
    """text -> what it asserts; a reader of its own."""
    return parse_property
