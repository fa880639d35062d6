"""The stopping rules by the names of their modes, and those of older protocols. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hydrabench.smoothing.boundaries import SPARSE_LOOKS, ExactSequential
from hydrabench.smoothing.sequential import FixedSize, GroupSequential, Plan, Rule

RULES: dict[str, Callable[[Plan], Rule]] = {"cohen": FixedSize, "adaptive": ExactSequential}
EXACT_SINCE, DENSE_SINCE = 3, 5  # versions of the protocol


def rule_of(mode: str, version: int) -> Callable[[Plan], Rule]:
    """Return the rule that a mode has in a version of its protocol; ledgers of older ones keep their meaning."""
    if mode != "adaptive" or version >= DENSE_SINCE:
        return RULES[mode]
    return GroupSequential if version < EXACT_SINCE else partial(ExactSequential, spacing=SPARSE_LOOKS)
