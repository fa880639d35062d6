"""VNN-LIB properties as the verifiers of the VNN-COMP competition read them: boxes, and linear constraints on outputs.

Source: VNN-LIB 1.0 (Demarchi et al., 2023), the part that VNN-COMP uses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hydrabench.errors import DataError, shortened
from hydrabench.threat import float_above, float_below

MOST_CASES = 10_000
_COMMENT, _TOKEN = re.compile(r";.*"), re.compile(r"[()]|[^\s()]+")
_NAME, _NUMBER = (
    re.compile(r"([XY])_(\d{1,7})"),
    re.compile(r"[+-]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})([eE][+-]?\d{1,3})?"),
)
_SIGNS = {"<=": 1, "<": 1, ">=": -1, ">": -1}  # a strict comparison is read as the other one, as the competition does

Conjunction = list["Atom"]


@dataclass(frozen=True)
class Atom:
    """sum of coefficients times variables <= bound. variables: ("X", 3) -> coefficient."""

    variables: tuple[tuple[tuple[str, int], int], ...]
    bound: Fraction


@dataclass(frozen=True, eq=False)
class Case:
    """A way to violate a property: an input of a box where all constraints on the output hold.

    lower, upper: corners, rounded outwards, (N,). rows @ y <= bounds: the constraints, (M, K) and (M,), bounds rounded
    up; M may be 0. All float64.
    """

    lower: Tensor
    upper: Tensor
    rows: Tensor
    bounds: Tensor


def read_property(text: str) -> list[Case]:
    """Read a property; it holds if there is no input of any of the cases.

    Raises: DataError in one line if it is no VNN-LIB 1.0, compares inputs with outputs, leaves an input without bounds,
        or has more than `MOST_CASES` cases.
    """
    counts, disjunctions = {"X": 0, "Y": 0}, []
    for statement in _statements(text):
        if statement[:1] == ["assert"] and len(statement) == 2:
            disjunctions.append(_disjunction(statement[1]))
        elif statement[:1] == ["declare-const"] and len(statement) == 3 and (named := _NAME.fullmatch(statement[1])):
            counts[named[1]] = max(counts[named[1]], int(named[2]) + 1)
        else:
            raise DataError(f"is no VNN-LIB 1.0: {shortened(_text(statement), 60)} is neither declare-const nor assert")
    if not all(counts.values()):
        raise DataError("declares no inputs X_0, ... or no outputs Y_0, ...")
    if math.prod(map(len, disjunctions)) > MOST_CASES:
        raise DataError(f"has {math.prod(map(len, disjunctions)):,} cases, at most {MOST_CASES:,} are read")
    shared = [atom for parts in disjunctions if len(parts) == 1 for atom in parts[0]]
    several = [parts for parts in disjunctions if len(parts) > 1]
    return [_case([*shared, *(atom for part in parts for atom in part)], counts) for parts in product(*several)]


def _statements(text: str) -> Iterator[Any]:
    """Yield the lists of a text, lists of texts and lists."""
    open_: list[list[Any]] = [[]]
    for line in text.splitlines():
        for token in _TOKEN.findall(_COMMENT.sub("", line)):
            if token == "(":
                open_.append([])
            elif token != ")":
                open_[-1].append(token)
            elif len(open_) > 1:
                done = open_.pop()
                open_[-1].append(done)
            else:
                raise DataError("is no VNN-LIB 1.0: a parenthesis is closed that was not opened")
    if len(open_) > 1:
        raise DataError("is no VNN-LIB 1.0: a parenthesis is not closed")
    yield from open_[0]


def _text(statement: Any) -> str:
    return statement if isinstance(statement, str) else f"({' '.join(map(_text, statement))})"


def _disjunction(formula: Any) -> list[Conjunction]:
    """Return a formula as a disjunction of conjunctions of atoms."""
    if not isinstance(formula, list) or len(formula) < 2:
        raise DataError(f"has {shortened(_text(formula), 60)}, which is no formula")
    first, *rest = formula
    if first == "or":
        return [part for one in rest for part in _disjunction(one)]
    if first == "and":
        parts = [_disjunction(one) for one in rest]
        if math.prod(map(len, parts)) > MOST_CASES:
            raise DataError(f"has more than {MOST_CASES:,} cases")
        return [[atom for part in chosen for atom in part] for chosen in product(*parts)]
    if first not in _SIGNS or len(rest) != 2:
        raise DataError(f"has {shortened(_text(formula), 60)}; known are and, or, {', '.join(_SIGNS)} of two values")
    sign, variables, bound = _SIGNS[first], dict[tuple[str, int], int](), Fraction(0)
    for factor, operand in zip((sign, -sign), rest, strict=True):
        named = _NAME.fullmatch(operand) if isinstance(operand, str) else None
        if named:
            key = named[1], int(named[2])
            variables[key] = variables.get(key, 0) + factor
        elif isinstance(operand, str) and _NUMBER.fullmatch(operand):
            bound -= factor * Fraction(operand)
        else:
            raise DataError(f"has {shortened(_text(operand), 60)} where a variable or a number belongs")
    return [[Atom(tuple(sorted((key, factor) for key, factor in variables.items() if factor)), bound)]]


def _case(atoms: Sequence[Atom], counts: dict[str, int]) -> Case:
    low, high = [-math.inf] * counts["X"], [math.inf] * counts["X"]
    rows: list[list[float]] = []
    bounds: list[float] = []
    for atom in atoms:
        letters = {letter for (letter, _), _ in atom.variables}
        if letters == {"X"} and len(atom.variables) == 1:
            (((_, place), factor),) = atom.variables
            _require_declared(place, counts["X"], "X")
            if factor > 0:
                high[place] = min(high[place], float_above(atom.bound))
            else:
                low[place] = max(low[place], float_below(-atom.bound))
        elif "X" in letters:
            raise DataError("compares inputs with inputs or outputs; known are boxes of inputs")
        else:
            row = [0.0] * counts["Y"]
            for (_, place), factor in atom.variables:
                _require_declared(place, counts["Y"], "Y")
                row[place] = float(factor)
            rows.append(row)
            bounds.append(float_above(atom.bound))
    for place, ends in enumerate(zip(low, high, strict=True)):
        if not all(map(math.isfinite, ends)):
            raise DataError(f"leaves X_{place} without a lower or an upper bound")
    lower, upper = (torch.tensor(part, dtype=torch.float64) for part in (low, high))
    matrix = torch.tensor(rows, dtype=torch.float64).view(len(rows), counts["Y"])
    return Case(lower, upper, matrix, torch.tensor(bounds, dtype=torch.float64))


def _require_declared(place: int, count: int, letter: str) -> None:
    if place >= count:
        raise DataError(f"uses {letter}_{place}, which is not declared")
