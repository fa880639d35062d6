"""What must hold before an evaluation begins, so that a mistake costs no time and leaves no folder behind."""

from __future__ import annotations

from torch import nn

from hydrabench.bounds import program_of, read, require_auto_lirpa
from hydrabench.config import AlphaCrownSettings, EvaluationSettings, VerifiedSettings
from hydrabench.errors import ConfigError
from hydrabench.evaluators import require_pyautoattack
from hydrabench.runtime import PRECISIONS


def require_rules(network: nn.Module, settings: EvaluationSettings) -> None:
    """Refuse a network that the bound of `settings` cannot pass, or settings whose package is missing.

    auto_LiRPA learns which layers a network has from its images: see `evaluators.require_readable`.

    Args:
        network: in eval mode.
    Raises: UnsupportedLayerError naming the first layer without a rule; HydrabenchError if auto_LiRPA or
        pyautoattack is needed and not installed.
    """
    if getattr(settings, "needs_auto_lirpa", False):
        require_auto_lirpa()
    if isinstance(settings, VerifiedSettings | AlphaCrownSettings) and settings.engine != "auto_lirpa":
        read(program_of(network))
    elif settings.kind == "autoattack":
        require_pyautoattack()


def require_precision(precision: str, settings: EvaluationSettings) -> None:
    """Refuse reduced precision wherever a verdict would rest on it. Raises: ConfigError."""
    if precision not in PRECISIONS and settings.kind != "smoothing":
        raise ConfigError(
            f"--precision {precision} is for smoothing only, whose statistics hold for any base classifier; "
            f"choose one of: {', '.join(sorted(PRECISIONS))}"
        )
