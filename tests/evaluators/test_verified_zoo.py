"""No certificate of any bound, on any checkpoint that comes with hydrabench, is broken by an attack at its radius."""

from __future__ import annotations

import pytest

from hydrabench.bounds import BOUNDS
from hydrabench.checkpoints import open_ref
from hydrabench.config import PgdSettings, VerifiedSettings
from hydrabench.data import load_block, load_images
from hydrabench.evaluators.pgd import evaluate_pgd
from hydrabench.evaluators.verified import evaluate_verified
from hydrabench.files import shipped

NAMES = sorted(path.name for path in shipped("zoo").iterdir() if path.is_dir())
RADII = {"linf": ("8/255", "24/255"), "l2": ("0.25", "0.8")}  # proves many, proves few


@pytest.fixture(scope="module")
def block():
    return load_block(load_images("digits", "test"), 0, tuple(range(50)))


@pytest.mark.slow
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("name", NAMES)
def test_no_attack_breaks_a_certificate_and_a_cascade_proves_what_its_methods_prove(block, name, norm):
    """Verified at the larger radius is verified at the smaller one by interval bounds, whose boxes grow with it."""
    network = open_ref(name).baked().eval()
    by_intervals = []
    for epsilon in RADII[norm]:
        proofs = {}
        for kind in BOUNDS:
            records = evaluate_verified(network, block, VerifiedSettings(kind=kind, norm=norm, epsilon=epsilon))
            proofs[kind] = {record.index for record in records if record.verified}
        attacked = evaluate_pgd(network, block, PgdSettings(norm=norm, epsilon=epsilon, steps=30, restarts=2))
        broken = {record.index for record in attacked if not record.robust}
        assert broken
        assert {kind: found & broken for kind, found in proofs.items()} == {kind: set() for kind in BOUNDS}
        assert proofs["cascade"] >= proofs["ibp"] | proofs["crown-ibp"] | proofs["crown"]
        by_intervals.append(proofs["ibp"])
    assert by_intervals[1] <= by_intervals[0]
