"""Evaluation settings read back from `run.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydrabench.config.evaluation import EVALUATIONS, EvaluationSettings
from hydrabench.config.parsing import parse
from hydrabench.config.reuse import ReuseSettings
from hydrabench.errors import ConfigError


def recorded_settings(values: Mapping[str, Any], protocol: str, source: str = "settings") -> EvaluationSettings:
    """Read settings as `run.json` has them; those from before there was a `version` have it in the protocol id.

    Raises: ConfigError naming, as part of `source`, what is wrong; also if the settings make another protocol.
    """
    kind: Any = ReuseSettings if values.get("mode") == "reused" else EvaluationSettings
    number = protocol.rpartition("@")[2]
    versioned = "version" in getattr(EVALUATIONS.get(str(values.get("kind"))), "model_fields", {})
    known = {"version": int(number)} if versioned and number.isdecimal() else {}
    settings: EvaluationSettings = parse(kind, {**known, **values}, source)
    if settings.protocol != protocol:
        raise ConfigError(f"{source} make the protocol {settings.protocol}, not {protocol}")
    return settings
