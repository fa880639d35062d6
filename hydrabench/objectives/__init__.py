"""Training objectives: pure functions of network, batch, settings and step; and how each selects its best epoch."""

from __future__ import annotations

from hydrabench.config.passes import BOXES, INPUT_GRADIENT, TRAINING
from hydrabench.objectives.cat_rs import CAT_RS
from hydrabench.objectives.cc_ibp import CC_IBP
from hydrabench.objectives.consistency import CONSISTENCY
from hydrabench.objectives.crown_ibp import CROWN_IBP
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.exp_ibp import EXP_IBP
from hydrabench.objectives.free import FREE
from hydrabench.objectives.ibp import IBP
from hydrabench.objectives.macer import MACER
from hydrabench.objectives.mixtrain import MIXTRAIN
from hydrabench.objectives.mtl_ibp import MTL_IBP
from hydrabench.objectives.natural import NATURAL
from hydrabench.objectives.pgd import PGD
from hydrabench.objectives.sabr import SABR
from hydrabench.objectives.schedules import EPSILON_SCHEDULES, SCHEDULES, constant, cosine, linear_epsilon
from hydrabench.objectives.smoothadv import SMOOTHADV
from hydrabench.objectives.smoothmix import SMOOTHMIX
from hydrabench.objectives.stability import STABILITY
from hydrabench.objectives.step import StepLoss, TrainingStep
from hydrabench.objectives.trades import TRADES

OBJECTIVES: dict[str, Objective] = {
    "natural": NATURAL,
    "trades": TRADES,
    "pgd": PGD,
    "free": FREE,
    "stability": STABILITY,
    "smoothadv": SMOOTHADV,
    "consistency": CONSISTENCY,
    "macer": MACER,
    "smoothmix": SMOOTHMIX,
    "cat-rs": CAT_RS,
    "ibp": IBP,
    "crown-ibp": CROWN_IBP,
    "mixtrain": MIXTRAIN,
    "sabr": SABR,
    "mtl-ibp": MTL_IBP,
    "cc-ibp": CC_IBP,
    "exp-ibp": EXP_IBP,
}

__all__ = [
    "BOXES",
    "EPSILON_SCHEDULES",
    "INPUT_GRADIENT",
    "OBJECTIVES",
    "SCHEDULES",
    "TRAINING",
    "Objective",
    "ObjectiveSettings",
    "StepLoss",
    "TrainingStep",
    "Workload",
    "constant",
    "cosine",
    "linear_epsilon",
]
