"""Which pairs of ledgers contradict each other, and which only look as if they did."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from hydrabench.errors import GateError, LedgerError
from hydrabench.ledger import CurveRecord
from hydrabench.reporting.contradictions import refuse_contradictions
from hydrabench.reporting.evaluations import read_evaluations


def gate(*runs):
    refuse_contradictions(read_evaluations(runs))


def contradiction(*runs):
    with pytest.raises(GateError) as caught:
        gate(*runs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def pair(tmp_path, write_run):
    """Image 4 is verified at one threat and broken at another."""

    def make(verified, broken, *, kind="pgd", method="crown-ibp", **attack):
        certify = write_run(tmp_path / "certify", method, **dict(zip(("norm", "epsilon"), verified, strict=True)))
        threat = dict(zip(("norm", "epsilon"), broken, strict=True))
        return certify, write_run(tmp_path / "attack", kind, fails=[4], **threat, **attack)

    return make


@pytest.mark.parametrize("kind", ["pgd", "autoattack"])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_verified_and_broken_at_the_same_radius_names_checkpoint_image_and_both_runs(pair, kind, method):
    certify, attack = pair(("linf", "8/255"), ("linf", "8/255"), kind=kind, method=method)
    for order in ((certify, attack), (attack, certify)):
        message = contradiction(*order)
        for part in ("checkpoint dense", "1 of 10 images", f"in {certify.path}", f"in {attack.path}", ": image 4;"):
            assert part in message


@pytest.mark.parametrize(
    ("verified", "broken"),
    [
        (("linf", "8/255"), ("linf", "2/255")),  # broken by less than what is verified
        (("linf", "0.1"), ("linf", "1/10")),  # the same radius, written otherwise
        (("linf", "0.1"), ("l2", "0.1")),  # an L2 ball lies inside the L∞ ball of the same radius
        (("linf", "0.1"), ("l2", "0.05")),
    ],
)
def test_a_break_inside_the_verified_ball_is_a_contradiction(pair, verified, broken):
    assert "image 4" in contradiction(*pair(verified, broken))


@pytest.mark.parametrize(
    ("verified", "broken"),
    [
        (("linf", "2/255"), ("linf", "8/255")),
        (("linf", "8/255"), ("linf", "0.0314")),  # 8/255 is 0.03137
        (("linf", "0.1"), ("l2", "0.11")),  # may reach outside the L∞ ball
    ],
)
def test_a_break_that_may_lie_outside_the_verified_ball_is_none(pair, verified, broken):
    gate(*pair(verified, broken))


def test_another_checkpoint_may_be_broken(pair):
    gate(*pair(("linf", "8/255"), ("linf", "8/255"), name="sparse"))


def test_an_image_that_is_not_verified_may_be_broken(tmp_path, write_run):
    gate(write_run(tmp_path / "v", "ibp", fails=[4, 5]), write_run(tmp_path / "a", "pgd", fails=[4, 5]))


def test_another_split_may_be_broken(pair):
    gate(*pair(("linf", "8/255"), ("linf", "8/255"), header={"dataset": {"name": "digits", "split": "val", "n": 10}}))


def test_another_precision_may_not_be_broken(pair):
    """A certificate holds for the network, in whatever precision it is run."""
    assert "image 4" in contradiction(*pair(("linf", "8/255"), ("linf", "8/255"), header={"precision": "float64"}))


@pytest.mark.parametrize("kind", ["clean", "pgd", "autoattack", "ibp"])
def test_a_misclassified_clean_image_cannot_be_verified_whatever_the_radii(tmp_path, write_run, kind):
    """The perturbation 0 lies in every ball, even if the attack's own radius is larger than the verified one."""
    threat = {} if kind == "clean" else {"epsilon": "16/255"}
    certify = write_run(tmp_path / "v", "crown-ibp", epsilon="1/255")
    other = write_run(tmp_path / "a", kind, wrong=[2, 3], **threat)
    message = contradiction(certify, other)
    assert "2 of 10 images verified at L∞ 1/255" in message
    assert f"misclassified in {other.path}" in message
    assert "images 2, 3" in message


def test_a_misclassified_image_cannot_be_verified_even_at_radius_zero(tmp_path, write_run):
    message = contradiction(write_run(tmp_path / "v", "ibp", epsilon="0"), write_run(tmp_path / "a", "pgd", wrong=[2]))
    assert "verified at L∞ 0 " in message


def test_an_image_is_named_once_however_many_ledgers_contradict_it(tmp_path, write_run):
    certify = write_run(tmp_path / "v", "ibp")
    attacks = [write_run(tmp_path / "a", "pgd", fails=[2]), write_run(tmp_path / "b", "autoattack", fails=[2, 6])]
    message = contradiction(certify, *attacks)
    assert message.count("image 2") == message.count("image 6") == 1


def test_one_record_can_contradict_itself(tmp_path, write_run):
    """Verified, with a wrong prediction."""

    def mislabel(records):
        return [replace(r, verified=True) if r.index == 7 else r for r in records]

    run = write_run(tmp_path / "v", "ibp", wrong=[7], edit=mislabel)
    with pytest.raises(LedgerError, match=r"image 7 is verified, which needs a right prediction, but predicts 2 for"):
        read_evaluations([run])


def test_smoothing_is_not_compared_with_the_network_it_smooths(tmp_path, write_run):
    smoothing = write_run(tmp_path / "s", "smoothing", wrong=[1])
    gate(smoothing, write_run(tmp_path / "v", "ibp"), write_run(tmp_path / "a", "pgd", fails=[0], epsilon="9/255"))


def test_many_images_are_counted_and_the_first_ten_named(tmp_path, write_run):
    twelve = {"dataset": {"name": "digits", "split": "test", "n": 12}}
    certify = write_run(tmp_path / "v", "ibp", header=twelve)
    attack = write_run(tmp_path / "a", "pgd", fails=range(12), header=twelve)
    message = contradiction(certify, attack)
    assert "12 of 12 images" in message
    assert "images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more" in message


def test_the_attack_may_have_seen_fewer_images(tmp_path, write_run):
    five = {"dataset": {"name": "digits", "split": "test", "n": 5}}
    certify = write_run(tmp_path / "v", "ibp")
    gate(certify, write_run(tmp_path / "a", "pgd", header=five))
    assert "image 4" in contradiction(certify, write_run(tmp_path / "b", "pgd", header=five, fails=[4]))


def test_a_distance_inside_the_verified_ball_is_a_contradiction_whatever_the_radius_of_the_attack(tmp_path, write_run):
    """Fast minimum norm at 8/255 finds image 4 at distance 0.01 and the others at 0.1, so that they count as robust."""
    attack = write_run(tmp_path / "a", "fmn", fails=[4])
    message = contradiction(write_run(tmp_path / "v", "crown-ibp", epsilon="0.02"), attack)
    assert "verified at L∞ 0.02" in message
    assert "broken at L∞ distance 0.01 in" in message
    assert ": image 4;" in message
    assert "10 of 10 images" in contradiction(write_run(tmp_path / "w", "crown-ibp", epsilon="0.2"), attack)
    gate(write_run(tmp_path / "x", "crown-ibp", epsilon="0.0099"), attack)


def test_a_radius_of_a_security_curve_counts_for_the_images_that_broke_there(tmp_path, write_run):
    """Image 2 broke at 4/255, image 4 at 16/255; the certificate covers 4/255, to the last digit."""

    def distances(records):
        far = {2: 4 / 255, 4: 16 / 255}
        kept = [asdict(one) | {"distance": far.get(one.index)} for one in records]
        return [CurveRecord(**one) for one in kept]

    radii = {"epsilons": ["4/255", "16/255"], "epsilon": "16/255", "version": 2}
    attack = write_run(tmp_path / "a", "pgd", fails=[2, 4], edit=distances, **radii)
    message = contradiction(write_run(tmp_path / "v", "crown-ibp", epsilon="4/255"), attack)
    assert ": image 2;" in message


def test_what_complete_verification_breaks_is_not_verified_by_another_method(tmp_path, write_run):
    def broken(records):
        found = {"verified": False, "lower": -0.1, "verdict": "broken", "found_by": "pgd", "adversarial": 0}
        return [replace(one, **found) if one.index == 5 else one for one in records]

    exact = write_run(tmp_path / "e", "exact", edit=broken)
    assert "broken at L∞ 8/255" in contradiction(exact, write_run(tmp_path / "v", "crown-ibp"))
    gate(exact, write_run(tmp_path / "w", "crown-ibp", fails=[5]))
