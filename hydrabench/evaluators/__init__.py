"""Evaluators: a network and a block of images in, one frozen record per image out.

`EVALUATORS` holds a description of each, keyed by the `kind` of its settings; see `description.Evaluator`. To add one,
write a file with its settings, its function and its description, and add a line here; a plugin adds an entry at run
time. Importing this package imports no torch.
"""

from __future__ import annotations

from hydrabench.evaluators.autoattack import AUTOATTACK
from hydrabench.evaluators.clean import CLEAN
from hydrabench.evaluators.description import Computing, Evaluator, Metric, Option, Sizes, at, said
from hydrabench.evaluators.pgd import PGD
from hydrabench.evaluators.smoothing import SMOOTHING
from hydrabench.evaluators.verification import ALPHA_CROWN, CASCADE, CROWN, CROWN_IBP, IBP, SYMBOLIC

EVALUATORS: dict[str, Evaluator] = {
    "clean": CLEAN,
    "pgd": PGD,
    "autoattack": AUTOATTACK,
    "ibp": IBP,
    "symbolic": SYMBOLIC,
    "crown-ibp": CROWN_IBP,
    "crown": CROWN,
    "cascade": CASCADE,
    "alpha-crown": ALPHA_CROWN,
    "smoothing": SMOOTHING,
}

__all__ = ["EVALUATORS", "Computing", "Evaluator", "Metric", "Option", "Sizes", "at", "said"]
