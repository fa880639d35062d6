"""One short evaluation of every kind, and what its run folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hydrabench.evaluators import (
    EVALUATORS,
    AlphaCrownSettings,
    AutoAttackSettings,
    CleanSettings,
    ExactSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
)
from hydrabench.ledger import (
    AttackRecord,
    CurveRecord,
    ExactRecord,
    SmoothAttackRecord,
    SmoothedRecord,
    VerifiedRecord,
)

PGD = PgdSettings(epsilon="8/255", steps=3)
CROWN = VerifiedSettings(kind="crown-ibp", epsilon="1/255")
SMOOTHING = SmoothingSettings(sigma=0.1, n0=10, samples=60, radii=(0.0, 0.05, 9.0))


def of_kind(kind, **values):
    return EVALUATORS[kind].settings.model_validate({"kind": kind, "epsilon": "8/255"} | values)


# kind -> (settings, images, record class, the field of the verdict)
CASES = {
    "clean": (CleanSettings(), 230, AttackRecord, "robust"),
    "pgd": (PGD, 230, AttackRecord, "robust"),
    "autoattack": (AutoAttackSettings(epsilon="128/255"), 2, AttackRecord, "robust"),
    "ibp": (VerifiedSettings(kind="ibp", epsilon="1/255"), 230, VerifiedRecord, "verified"),
    "crown-ibp": (CROWN, 230, VerifiedRecord, "verified"),
    "symbolic": (VerifiedSettings(kind="symbolic", epsilon="1/255"), 110, VerifiedRecord, "verified"),
    "crown": (VerifiedSettings(kind="crown", epsilon="1/255"), 110, VerifiedRecord, "verified"),
    "cascade": (VerifiedSettings(kind="cascade", epsilon="1/255"), 110, VerifiedRecord, "verified"),
    "smoothing": (SMOOTHING, 6, SmoothedRecord, "radius"),
    "alpha-crown": (AlphaCrownSettings(epsilon="1/255", iterations=3), 12, VerifiedRecord, "verified"),
    "exact": (ExactSettings(epsilon="1/255", max_subproblems=20), 12, ExactRecord, "verified"),
    "apgd": (of_kind("apgd"), 3, AttackRecord, "robust"),
    "fab": (of_kind("fab"), 2, AttackRecord, "robust"),
    "square": (of_kind("square", queries=20), 3, AttackRecord, "robust"),
    "hydra": (of_kind("hydra"), 12, AttackRecord, "robust"),
    "fmn": (of_kind("fmn"), 12, CurveRecord, "robust"),
    "smoothed": (
        of_kind("smoothed", epsilon="0.25", sigma=0.1, steps=2, draws=50, alpha=0.01),
        4, SmoothAttackRecord, "robust",
    ),
}  # fmt: skip


def read(folder, name="run.json"):
    return json.loads((folder / name).read_text())


def numbers(summary):
    """A summary without the hash of its ledger, in which there are times."""
    return {key: value for key, value in summary.items() if key != "records_sha256"}


def interrupt(monkeypatch, kind, call, error=KeyboardInterrupt):
    """Press Ctrl-C, or raise another error, at the `call`-th block from now."""
    original, calls = EVALUATORS[kind], []

    def prepare(*arguments):
        ready = original.ready(*arguments)

        def evaluator(block):
            calls.append(1)
            if len(calls) == call:
                raise error
            return ready.evaluate(block)

        return replace(ready, evaluate=evaluator)

    monkeypatch.setitem(EVALUATORS, kind, replace(original, prepare=prepare))


@dataclass(frozen=True)
class Made:
    """A folder of runs, each of which is made when it is first named: `made / "pgd"`."""

    root: Path
    make: Callable[[str, Path], object]

    def __truediv__(self, name: str) -> Path:
        if not (self.root / name).exists():
            self.make(name, self.root / name)
        return self.root / name
