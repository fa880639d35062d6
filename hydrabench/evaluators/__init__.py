"""Evaluators: a network and a block of images in, one frozen record per image out.

`EVALUATORS` is keyed by the `kind` of the settings; `evaluate_reused` needs a second network, so it stands apart.
The network is in eval mode, on the device and in the precision of the block's images; reduced-precision
arithmetic is switched off by the caller (`runtime.exact_arithmetic`). A record's `seconds` is its share of
the block's wall time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hydrabench.evaluators.autoattack import evaluate_autoattack, require_pyautoattack, require_suitable
from hydrabench.evaluators.clean import evaluate_clean
from hydrabench.evaluators.pgd import evaluate_pgd
from hydrabench.evaluators.reused import evaluate_reused
from hydrabench.evaluators.smoothed import evaluate_smoothed
from hydrabench.evaluators.verified import evaluate_verified, require_readable
from hydrabench.ledger import Record

Evaluator = Callable[..., Sequence[Record]]  # (network, block, settings), for smoothing also `Sampling`

EVALUATORS: dict[str, Evaluator] = {
    "clean": evaluate_clean,
    "pgd": evaluate_pgd,
    "autoattack": evaluate_autoattack,
    "ibp": evaluate_verified,
    "symbolic": evaluate_verified,
    "crown-ibp": evaluate_verified,
    "crown": evaluate_verified,
    "cascade": evaluate_verified,
    "alpha-crown": evaluate_verified,
    "smoothing": evaluate_smoothed,
}

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "evaluate_autoattack",
    "evaluate_clean",
    "evaluate_pgd",
    "evaluate_reused",
    "evaluate_smoothed",
    "evaluate_verified",
    "require_pyautoattack",
    "require_readable",
    "require_suitable",
]
