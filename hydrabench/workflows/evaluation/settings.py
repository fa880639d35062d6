"""The settings of an evaluation, completed by what a checkpoint was trained for. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from hydrabench.checkpoints import Header
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, parse_settings, with_default_threat
from hydrabench.threat import Norm


def complete_settings(name: str, header: Header | None, values: Mapping[str, Any]) -> EvaluationSettings:
    """Complete evaluation options with the radius that a checkpoint was trained for, and check them.

    Args:
        name: of the network, for messages. values: `kind` and whatever was given of its settings.
        header: None for a network that does not say what it was trained for, nor yet how many classes it has.
    Raises: ConfigError naming every option that is wrong or missing, or what the network has too few classes for.
    """
    threat = header.default_threat() if header else {}
    complete = with_default_threat(dict(values), threat) if threat else dict(values)
    known_norm = complete.get("norm", "linf") in get_args(Norm)
    needs_radius = "epsilon" in EVALUATORS[complete["kind"]].conditions()
    if known_norm and needs_radius and "epsilon" not in complete:
        raise ConfigError(
            f"{name} does not say which radius it was trained for in this norm; add --epsilon, for example "
            f"{'0.25' if complete.get('norm') == 'l2' else '8/255'}"
        )
    settings = parse_settings(complete)
    if header is None:
        return settings
    fitted: EvaluationSettings = EVALUATORS[settings.kind].fitted(settings, header.num_classes)
    return fitted
