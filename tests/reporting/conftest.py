"""Ledgers of ten images, written as the evaluators write them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from hydrabench.evaluators import EVALUATORS, ReuseSettings
from hydrabench.files import sha256_of
from hydrabench.ledger import (
    CORRUPTIONS,
    SEVERITIES,
    AttackRecord,
    CorruptionRecord,
    CurveRecord,
    ExactRecord,
    RadiusRecord,
    Record,
    ReuseRecord,
    RunFolder,
    SmoothAttackRecord,
    SmoothedRecord,
    VerifiedRecord,
    open_run,
)
from hydrabench.reporting import summarize

N = 10


def settings_of(kind: str, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"kind": kind}
    if kind == "smoothing":
        base |= {"sigma": 0.25, "n0": 100, "samples": 100_000, "alpha": 0.001, "radii": [0.25, 0.5], "seed": 0}
    elif kind == "smoothed":
        base |= {"norm": "l2", "epsilon": "0.5", "sigma": 0.25, "alpha": 0.001}
    elif kind not in ("clean", "corruptions"):
        base |= {"norm": "linf", "epsilon": "8/255"}
    if kind == "pgd":
        base |= {"steps": 50, "restarts": 1, "losses": ["ce", "margin"], "seed": 0}
    if kind in ("pgd", "smoothing"):
        base |= {"version": 1}
    return base | changes


def protocol_of(asked: dict[str, Any]) -> str:
    model: Any = ReuseSettings if asked.get("mode") == "reused" else EVALUATORS[asked["kind"]].settings
    settings = model.model_validate(asked)
    return str(settings.protocol)


def replace_ledger(run: RunFolder, text: str) -> None:
    """Write another ledger, and its hash into the summary."""
    run.records_path.write_text(text)
    summary = run.summary() | {"records_sha256": sha256_of(run.records_path)}
    (run.path / "summary.json").write_text(json.dumps(summary))


def sha_of(name: object) -> str:
    """What stands for the hash of an image."""
    return hashlib.sha256(str(name).encode()).hexdigest()


def record_of(asked: dict[str, Any], index: int, *, right: bool, holds: bool, radius: float) -> Record:
    """Image `index` has label index % 3; a wrong prediction is the next class."""
    kind = asked["kind"]
    prediction = index % 3 if right else (index + 1) % 3
    base = (index, sha_of(index), index % 3, prediction, 0.01)
    if kind == "smoothing":
        return smoothed_record(asked, base, radius)
    if kind == "corruptions":
        return CorruptionRecord(*base, right={name: [holds] * len(SEVERITIES) for name in CORRUPTIONS})
    if asked.get("search_radius"):
        found = {"broken_radius": 0.0 if not right else None if holds else 0.005}
        found |= (
            {"found_by": None, "adversarial": None} if holds else {"found_by": "fmn", "adversarial": (index + 1) % 3}
        )
        largest = float(Fraction(asked["epsilon"]))
        return RadiusRecord(*base, holds, largest if holds else 0.004 if right else 0.0, **found)
    if EVALUATORS[kind].claims == "lower":
        return verified_record(kind, base, holds)
    return attack_record(asked, base, holds and right)


def smoothed_record(asked: dict[str, Any], base: tuple[Any, ...], radius: float) -> Record:
    abstain = radius == 0
    prediction = base[3]
    base = (*base[:3], -1 if abstain else prediction, 0.01)
    p_lower = 0.4 if abstain else NormalDist(0, asked["sigma"]).cdf(radius)
    votes: dict[str, Any] = {"selected": prediction, "count": 9, "samples": 10, "mode": asked.get("mode", "cohen")}
    certificate: dict[str, Any] = {"p_lower": p_lower, "radius": radius, "abstain": abstain}
    if asked.get("mode") == "reused":
        return ReuseRecord(*base, **votes, **certificate, certificate="reused", parent_p_lower=1.0)
    return SmoothedRecord(*base, **votes, **certificate)


def verified_record(kind: str, base: tuple[Any, ...], holds: bool) -> Record:
    said: dict[str, Any] = {"verified": holds, "lower": 0.1 if holds else -0.1}
    if kind != "exact":
        return VerifiedRecord(*base, **said)
    if base[2] != base[3]:
        return ExactRecord(*base, **said, verdict="broken", found_by="clean", adversarial=base[3])
    return ExactRecord(*base, **said, verdict="verified" if holds else "unknown")


def attack_record(asked: dict[str, Any], base: tuple[Any, ...], robust: bool) -> Record:
    kind, label, right = asked["kind"], base[2], base[2] == base[3]
    broken_by = None if robust else "ce" if right else "clean"
    if kind == "smoothed":
        winner, draws = label if robust else (label + 1) % 3, EVALUATORS[kind].read(asked).draws
        return SmoothAttackRecord(*base, robust, broken_by, [draws if one == winner else 0 for one in range(3)])
    said: dict[str, Any] = {"broken_by": broken_by, "step": None if robust else 3, "margin": 0.1 if robust else -0.1}
    if kind == "fmn":
        return CurveRecord(*base, robust=robust, distance=0.1 if robust else 0.01 if right else 0.0, **said)
    return AttackRecord(*base, robust=robust, **said)


def write_run(
    path: Path,
    kind: str,
    *,
    name: str = "dense",
    wrong: Collection[int] = (),
    fails: Collection[int] = (),
    radius: float = 0.3,
    header: dict[str, Any] | None = None,
    edit: Callable[[list[Record]], list[Record]] = list,
    finish: bool = True,
    **changes: Any,
) -> RunFolder:
    """Write the run of `kind` in which the images in `wrong` are misclassified and those in `fails` do not hold.

    changes: settings that differ from the protocol's. header: what differs in run.json. edit: alters the
    records before they are written. Names containing "sparse" are pruned to a tenth.
    """
    density = 0.1 if "sparse" in name else 1.0
    checkpoint = {
        "name": name,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "arch": "cnn_small",
        "objective": "crown-ibp",
        "density": density,
        "parameters": 20_000,
        "nonzero_parameters": int(20_000 * density),
        "bytes": int(80_000 * density),
    }
    asked = settings_of(kind, **changes)
    full = {
        "command": "attack" if kind in ("clean", "pgd", "autoattack") else "certify",
        "settings": asked,
        "protocol": protocol_of(asked),
        "checkpoint": checkpoint,
        "dataset": {"name": "digits", "split": "test", "n": N, "block_size": 100},
        "precision": "float32",
        "environment": {"python": "3"},
        "world_size": 1,
    } | (header or {})
    run = open_run(path, full, resume=False)
    records = [
        record_of(
            asked, i, right=i not in wrong, holds=i not in fails and i not in wrong, radius=0 if i in fails else radius
        )
        for i in range(full["dataset"]["n"])
    ]
    run.append(edit(records))
    if finish:
        run.finish(summarize(kind, list(run.records()), EVALUATORS[kind].read(asked)))
    return run


@pytest.fixture(name="write_run", scope="session")
def write_run_fixture() -> Callable[..., RunFolder]:
    return write_run


@pytest.fixture(name="replace_ledger", scope="session")
def replace_ledger_fixture() -> Callable[[RunFolder, str], None]:
    return replace_ledger


@pytest.fixture(name="sha_of", scope="session")
def sha_of_fixture() -> Callable[[object], str]:
    return sha_of
