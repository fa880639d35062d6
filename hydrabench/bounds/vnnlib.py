"""Robustness as a VNN-LIB property, the text that the verifiers of the VNN-COMP competition read.

A property describes what an adversarial example is: a verifier answers "unsat" where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from torch import Tensor


def robustness_property(lower: Tensor, upper: Tensor, *, label: int, classes: int, comments: Sequence[str] = ()) -> str:
    """Describe the images of a box that a network gives another class than `label`, or as high a logit.

    Args:
        lower, upper: corners of the box, (C, H, W); X_i of the text is their element i in this order.
        label: the true class, in [0, classes). Y_j of the text is the logit of class j.
        comments: lines to put on top.
    Returns: the text; its numbers are the very corners, without rounding.
    Raises: ValueError if a corner is not finite, the box is empty, or `label` is not a class.
    Source: VNN-LIB 1.0 (Demarchi et al., 2023), the part that VNN-COMP uses.
    """
    lows, highs = lower.flatten().tolist(), upper.flatten().tolist()
    if not 0 <= label < classes:
        raise ValueError(f"out of range: {label=}, must be in [0, {classes})")
    if lower.shape != upper.shape or not bool((lower <= upper).all()):
        raise ValueError("not a box: a lower corner lies above the upper one, or is NaN")
    rivals = [f"    (and (>= Y_{rival} Y_{label}))" for rival in range(classes) if rival != label]
    lines = [
        *(f"; {comment}" for comment in comments),
        *(f"(declare-const X_{i} Real)" for i in range(len(lows))),
        *(f"(declare-const Y_{j} Real)" for j in range(classes)),
        *(
            line
            for i, (low, high) in enumerate(zip(lows, highs, strict=True))
            for line in (f"(assert (>= X_{i} {exact_decimal(low)}))", f"(assert (<= X_{i} {exact_decimal(high)}))")
        ),
        *("(assert (or", *rivals, "))"),
    ]
    return "\n".join(lines) + "\n"


def exact_decimal(value: float) -> str:
    """Write a finite number as the decimal number that equals it, without exponent: 0.5, 0.100000001490116…, 1.0.

    Raises: ValueError if it is not finite.
    """
    exact = Decimal(value)
    if not exact.is_finite():
        raise ValueError(f"out of range: {value=}, must be finite")
    text = format(exact, "f")
    return text if "." in text else f"{text}.0"
