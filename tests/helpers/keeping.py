"""Evaluations that keep adversarial images, and what a run folder then holds."""

from __future__ import annotations

import numpy as np

from hydrabench.evaluators import parse_settings
from hydrabench.ledger import ExampleStore

RADIUS = "32/255"
CASES = {
    "pgd": ({"kind": "pgd", "epsilon": RADIUS, "steps": 4}, 230),
    "curve": ({"kind": "pgd", "epsilon": f"16/255,{RADIUS}", "steps": 4}, 30),
    "l2": ({"kind": "pgd", "norm": "l2", "epsilon": "0.8", "steps": 4}, 30),
    "fmn": ({"kind": "fmn", "norm": "l2", "epsilon": "0.5", "steps": 10}, 20),
    "hydra": ({"kind": "hydra", "epsilon": RADIUS, "steps": 20}, 30),
    "square": ({"kind": "square", "epsilon": RADIUS, "queries": 60}, 30),
    "autoattack": ({"kind": "autoattack", "epsilon": RADIUS, "attacks": ("apgd-ce",), "cascade": True}, 20),
    "smoothed": ({"kind": "smoothed", "epsilon": "1.0", "sigma": 0.1, "steps": 4, "copies": 4, "draws": 100}, 20),
    "radii": ({"kind": "crown-ibp", "epsilon": RADIUS, "search_radius": True, "tolerance": RADIUS}, 12),
    "exact": ({"kind": "exact", "epsilon": RADIUS, "max_subproblems": 20}, 12),
    "cascade": ({"kind": "cascade", "epsilon": RADIUS, "methods": ("ibp", "exact"), "max_subproblems": 20}, 12),
}
PGD, _ = CASES["pgd"]


def settings_of(values):
    keeps = values["kind"] not in ("exact", "cascade", "crown-ibp")
    return parse_settings({**values, "keep": "adversarial"} if keeps else values)


def stored(folder):
    """The examples of a run: image -> pixels."""
    return {
        index: pixels for _, one in ExampleStore(folder) for index, pixels in zip(one.indices, one.pixels, strict=True)
    }


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
