"""No certificate of any bound, on any checkpoint that comes with hydrabench, is broken by an attack at its radius."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hydrabench.bounds import BOUNDS
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_block, load_images
from hydrabench.evaluators import AlphaCrownSettings, PgdSettings, VerifiedSettings
from hydrabench.evaluators.pgd import evaluate_pgd
from hydrabench.evaluators.verified import evaluate_verified
from hydrabench.files import shipped

NAMES = sorted(path.name for path in shipped("zoo").glob("digits-*"))
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


SEARCH = {"epsilon": "18/255", "iterations": 10}


@pytest.mark.parametrize(
    "name", [name if name == "digits-trades-90" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_cascade_proves_the_union_and_names_the_first_method_that_proves(block, name):
    """In every order of some of the methods, each of them alone; and each image by itself."""
    network = open_ref(name).baked().eval()
    few = replace(block, indices=block.indices[:30], images=block.images[:30], labels=block.labels[:30])
    alone = {kind: VerifiedSettings(kind=kind, epsilon=SEARCH["epsilon"]) for kind in ("ibp", "crown-ibp", "crown")}
    alone |= {"symbolic": VerifiedSettings(kind="symbolic", epsilon=SEARCH["epsilon"])}
    alone |= {"alpha-crown": AlphaCrownSettings(**SEARCH)}
    proofs = {
        kind: [record.verified for record in evaluate_verified(network, few, settings)]
        for kind, settings in alone.items()
    }
    for methods in (
        ("ibp", "crown-ibp", "crown", "alpha-crown"),
        ("crown", "ibp", "symbolic"),
        ("symbolic", "crown-ibp", "alpha-crown"),
    ):
        search = SEARCH if methods[-1] == "alpha-crown" else {"epsilon": SEARCH["epsilon"]}
        settings = VerifiedSettings(kind="cascade", methods=methods, **search)
        records = evaluate_verified(network, few, settings)
        first = [next((kind for kind in methods if proofs[kind][row]), None) for row in range(30)]
        assert [record.method for record in records] == first
        assert [record.verified for record in records] == [kind is not None for kind in first]
        if name != "digits-trades-90":
            continue
        assert set(first) >= {methods[0], None}
        assert methods[-1] in first or methods[-1] == "symbolic"
        for row in range(0, 30, 8):
            single = replace(few, indices=(row,), images=few.images[[row]], labels=few.labels[[row]])
            (again,) = evaluate_verified(network, single, settings)
            assert (again.verified, again.method) == (records[row].verified, records[row].method)
            assert again.lower == pytest.approx(records[row].lower, rel=1e-3, abs=1e-4)
