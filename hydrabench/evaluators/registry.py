"""All evaluators, and their settings read from recipes, options and ledgers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydrabench.config import parse
from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators.apgd import APGD
from hydrabench.evaluators.autoattack import AUTOATTACK
from hydrabench.evaluators.clean import CLEAN
from hydrabench.evaluators.corruptions import COMMON_CORRUPTIONS
from hydrabench.evaluators.description import EvaluationSettings, Evaluator
from hydrabench.evaluators.exact import EXACT
from hydrabench.evaluators.fab import FAB
from hydrabench.evaluators.fmn import FMN
from hydrabench.evaluators.hydra import HYDRA
from hydrabench.evaluators.pgd import PGD
from hydrabench.evaluators.smooth_attack import SMOOTHED_ATTACK
from hydrabench.evaluators.smoothing import SMOOTHING
from hydrabench.evaluators.square import SQUARE
from hydrabench.evaluators.verification import ALPHA_CROWN, CASCADE, CROWN, CROWN_IBP, IBP, SYMBOLIC
from hydrabench.ledger import Record

EVALUATORS: dict[str, Evaluator] = {
    "clean": CLEAN,
    "corruptions": COMMON_CORRUPTIONS,
    "pgd": PGD,
    "hydra": HYDRA,
    "apgd": APGD,
    "fab": FAB,
    "square": SQUARE,
    "fmn": FMN,
    "autoattack": AUTOATTACK,
    "ibp": IBP,
    "symbolic": SYMBOLIC,
    "crown-ibp": CROWN_IBP,
    "crown": CROWN,
    "cascade": CASCADE,
    "alpha-crown": ALPHA_CROWN,
    "exact": EXACT,
    "smoothing": SMOOTHING,
    "smoothed": SMOOTHED_ATTACK,
}


def parse_settings(values: Mapping[str, Any], source: str = "") -> EvaluationSettings:
    """Check the settings of an evaluation, which name their evaluator as `kind`.

    Args: source: where they stand, for messages; its kind if that is not given.
    Raises: ConfigError naming every problem, or the evaluators that there are.
    """
    kind = str(values.get("kind"))
    return parse(lookup("evaluator", EVALUATORS, kind).settings, values, source or kind)


def recorded_settings(values: Mapping[str, Any], protocol: str, source: str = "settings") -> EvaluationSettings:
    """Read settings as `run.json` has them.

    Raises: ConfigError naming, as part of `source`, what is wrong; also if the settings make another protocol.
    """
    model, _ = lookup("evaluator", EVALUATORS, str(values.get("kind"))).models(values)
    if "version" in model.model_fields and "version" not in values and protocol.endswith("@1"):
        values = {**values, "version": 1}  # as ledgers from before there were other versions
    settings = parse(model, values, source)
    if settings.protocol != protocol:
        raise ConfigError(f"{source} make the protocol {settings.protocol}, not {protocol}")
    return settings


def record_of(settings: EvaluationSettings) -> type[Record]:
    """The class of the records that a run with these settings writes."""
    return EVALUATORS[settings.kind].models(settings.plain())[1]


def with_default_threat(entry: Any, threat: Mapping[str, Any]) -> Any:
    """Fill in a missing radius and norm, or noise level, of evaluation options from `threat`."""
    evaluator = EVALUATORS.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
    if evaluator is None:
        return entry
    fields = evaluator.settings.model_fields
    if "sigma" in fields and "sigma" in threat:
        return {"sigma": threat["sigma"], **entry}
    if "epsilon" not in fields or "epsilon" in entry or "epsilon" not in threat:
        return entry
    if "norm" in entry and entry["norm"] != threat.get("norm", "linf"):
        return entry
    norm = {"norm": threat["norm"]} if threat.get("norm") and "norm" in fields else {}
    return {**norm, **entry, "epsilon": threat["epsilon"]}
