"""Values of --precision that are for some evaluators only. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydrabench.errors import ConfigError
from hydrabench.evaluators.registry import EVALUATORS

FULL_PRECISIONS = ("float32", "float64")
MIXED = "mixed"  # a setting of some attacks, which --precision stands for: gradients in bfloat16, verdicts in float32


def require_precision(kind: str, precision: str) -> None:
    """Raise ConfigError for reduced precision where a verdict would depend on it."""
    if precision in FULL_PRECISIONS or EVALUATORS[kind].reduced_precision:
        return
    able = [name for name, evaluator in EVALUATORS.items() if evaluator.reduced_precision]
    raise ConfigError(
        f"--precision {precision} is for {', '.join(able)} only, whose statistics hold for any base classifier; "
        f"choose one of: {', '.join(FULL_PRECISIONS)}"
    )


def with_precision(values: Mapping[str, Any], precision: str) -> tuple[dict[str, Any], str]:
    """Return settings and a precision for what --precision says: "mixed" is a setting, in float32.

    Args: values: of the settings, with their `kind`.
    Raises: ConfigError naming the attacks that have it, for others.
    """
    if precision != MIXED:
        return dict(values), precision
    able = [name for name, evaluator in EVALUATORS.items() if MIXED in evaluator.settings.model_fields]
    if values["kind"] not in able:
        raise ConfigError(
            f"--precision mixed computes the gradients of an attack in bfloat16, and is for {', '.join(able)}; "
            f"with {values['kind']} choose one of: {', '.join(FULL_PRECISIONS)}"
        )
    return {**values, MIXED: True}, "float32"
