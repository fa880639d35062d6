"""Complete verification: verdicts with adversarial examples that anybody can replay, and limits that are kept."""

from __future__ import annotations

from dataclasses import asdict, replace
from fractions import Fraction

import pytest

from hydrabench.bounds.exact import decide_by_milp as milp
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_block, load_images
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS, ExactSettings, VerifiedSettings, decided, parse_settings, record_of
from hydrabench.evaluators.decided import evaluate_exact, exact_points
from hydrabench.evaluators.verified import evaluate_verified
from hydrabench.ledger import ExactRecord

EPSILON = "16/255"


@pytest.fixture(scope="module")
def network():
    return open_ref("digits-trades-99").baked().eval()


@pytest.fixture(scope="module")
def block():
    """Images of all verdicts: some are misclassified, image 403 takes branch and bound."""
    indices = (0, 1, 2, 3, 96, 130, 158, 217, 403)
    return load_block(load_images("digits", "test"), 0, indices)


def some(block, rows):
    indices, shas = (tuple(part[row] for row in rows) for part in (block.indices, block.shas))
    return replace(block, indices=indices, shas=shas, images=block.images[rows], labels=block.labels[rows])


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", EPSILON), ("l2", "0.1")])
def test_every_image_has_a_verdict_that_can_be_replayed(network, block, norm, epsilon):
    settings = ExactSettings(norm=norm, epsilon=epsilon)
    records, points = exact_points(network, block, settings)
    assert {record.verdict for record in records} == {"verified", "broken"}
    for record, point, x, label in zip(records, points, block.images, block.labels.tolist(), strict=True):
        assert not [*record.problems(settings.plain())]
        assert record.verified == (record.verdict == "verified")
        if record.example_within(settings.plain()) is not None:
            assert network(point.unsqueeze(0)).argmax(1).item() == record.adversarial != label
            steps = [
                Fraction(p) - Fraction(q) for p, q in zip(point.flatten().tolist(), x.flatten().tolist(), strict=True)
            ]
            size = max(map(abs, steps)) ** 2 if norm == "linf" else sum(step**2 for step in steps)
            assert size <= settings.epsilon**2
        elif record.verdict == "broken":
            assert record.found_by == "clean"


def test_what_cheap_bounds_prove_is_verified_without_a_subproblem(network, block):
    cheap = evaluate_verified(network, block, VerifiedSettings(kind="cascade", epsilon=EPSILON))
    records = evaluate_exact(network, block, ExactSettings(epsilon=EPSILON))
    assert any(record.verified for record in cheap)
    for before, record in zip(cheap, records, strict=True):
        if before.verified:
            assert (record.verdict, record.subproblems, record.method) == ("verified", 0, before.method)
    assert records[-1].method == "exact"
    assert records[-1].subproblems > 0


def test_a_cascade_may_end_with_exact(network, block):
    """Its records and metrics are those of exact; what cheaper methods prove is theirs."""
    methods = ("ibp", "crown", "exact")
    settings = VerifiedSettings(kind="cascade", epsilon=EPSILON, methods=methods, max_subproblems=500)
    assert settings.protocol == "cascade-ibp+crown+exact-n500@1"
    records = EVALUATORS["cascade"].evaluate(network, block, settings)
    alone = evaluate_exact(network, block, ExactSettings(epsilon=EPSILON))
    assert [record.verdict for record in records] == [record.verdict for record in alone]
    assert {record.method for record in records} <= {"ibp", "crown", "exact", None}
    assert not [problem for record in records for problem in record.problems(settings.plain())]
    assert record_of(settings) is ExactRecord
    lines = [asdict(record) for record in records]
    found = EVALUATORS["cascade"].metrics(lines, settings)
    assert found == EVALUATORS["exact"].metrics(lines, ExactSettings(epsilon=EPSILON))
    assert sum(found["robust_accuracy"].values) == sum(found["verified_accuracy"].values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": ("exact", "ibp")}, "exact, which decides .* comes last"),
        ({"methods": ("exact",)}, "comes last and after another one"),
        ({"methods": ("ibp", "exact", "alpha-crown")}, "exact, which decides .* comes last"),
        ({"max_subproblems": 7}, "max_subproblems: is an option of exact"),
        ({"methods": ("ibp", "exact"), "iterations": 7}, "iterations: is an option of alpha-crown"),
    ],
)
def test_exact_out_of_place_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        parse_settings({"kind": "cascade", "epsilon": EPSILON, **values})


def test_a_cascade_with_exact_takes_a_time_limit():
    settings = VerifiedSettings(kind="cascade", epsilon=EPSILON, methods=("ibp", "exact"), time_limit=5)
    assert settings.protocol == "cascade-ibp+exact-t5@1"


def test_rigor_sound_verifies_what_standard_does_here(network, block):
    sound = evaluate_exact(network, block, ExactSettings(epsilon=EPSILON, rigor="sound"))
    standard = evaluate_exact(network, block, ExactSettings(epsilon=EPSILON))
    assert [record.verdict for record in sound] == [record.verdict for record in standard]


def test_mixed_integer_programming_agrees_and_finds_its_own_adversarial_examples(network, block, monkeypatch):
    other = evaluate_exact(network, block, ExactSettings(epsilon=EPSILON))
    settings = ExactSettings(epsilon=EPSILON, engine="milp")
    monkeypatch.setattr(decided._Replay, "attack", lambda _replay, _rows: None)
    records = evaluate_exact(network, block, settings)
    assert {record.found_by for record in records} == {"clean", "milp", None}
    assert settings.protocol == "exact-milp@1"
    assert [record.verdict for record in records] == [record.verdict for record in other]
    assert not [problem for record in records for problem in record.problems(settings.plain())]
    assert records[-1].subproblems > 0
    with pytest.raises(ConfigError, match="engine: milp takes linf balls, got l2"):
        parse_settings({"kind": "exact", "epsilon": "0.1", "norm": "l2", "engine": "milp"})
    with pytest.raises(ConfigError, match="engine: milp rests on floating point, got rigor sound"):
        parse_settings({"kind": "exact", "epsilon": EPSILON, "rigor": "sound", "engine": "milp"})


def test_a_cascade_may_end_with_mixed_integer_programming(network, block, monkeypatch):
    values = {"kind": "cascade", "epsilon": EPSILON, "methods": ["ibp", "exact"], "engine": "milp"}
    settings = parse_settings(values)
    assert settings.protocol == "cascade-ibp+exact-milp@1"
    assert parse_settings({**values, "time_limit": 9}).protocol == "cascade-ibp+exact-t9-milp@1"
    few, seen = some(block, [0, 8]), []
    monkeypatch.setattr(decided, "decide_by_milp", lambda problem, *rest: seen.append(problem) or milp(problem, *rest))
    records = EVALUATORS["cascade"].evaluate(network, few, settings)
    alone = evaluate_exact(network, few, ExactSettings(epsilon=EPSILON))
    assert [record.verdict for record in records] == [record.verdict for record in alone]
    assert len(seen) == 1
    for changed in ({"methods": ["ibp", "crown"]}, {"norm": "l2", "epsilon": "0.1"}, {"kind": "ibp", "methods": None}):
        wrong = {key: value for key, value in {**values, **changed}.items() if value is not None}
        with pytest.raises(ConfigError, match="engine: milp is for exact, as the last of methods, in linf balls"):
            parse_settings(wrong)


def test_an_image_is_unknown_at_its_limit():
    network, block = open_ref("digits-trades-90").baked().eval(), load_block(load_images("digits", "test"), 0, (30,))
    (record,) = evaluate_exact(network, block, ExactSettings(epsilon=EPSILON, max_subproblems=1))
    assert (record.verdict, record.verified, record.method) == ("unknown", False, None)
    assert record.lower < 0
    assert record.subproblems >= 1


def test_a_verdict_does_not_depend_on_the_block(network, block):
    settings = ExactSettings(epsilon=EPSILON)
    together = [replace(record, seconds=0.0) for record in evaluate_exact(network, block, settings)]
    for row in (4, 8):
        (alone,) = evaluate_exact(network, some(block, [row]), settings)
        assert not [*together[row].differences(alone)]
        assert alone.subproblems == together[row].subproblems


def test_the_protocol_spells_out_limits_and_rigor():
    def protocol(**values):
        return ExactSettings(epsilon=EPSILON, **values).protocol

    assert protocol() == "exact@1"
    assert protocol(max_subproblems=500) == "exact-n500@1"
    assert protocol(time_limit=30, rigor="sound", seed=2) == "exact-t30-sound-s2@1"
    assert not EVALUATORS["exact"].repeatable(ExactSettings(epsilon=EPSILON, time_limit=30))
    with pytest.raises(ConfigError, match="max_subproblems"):
        parse_settings({"kind": "exact", "epsilon": EPSILON, "max_subproblems": 0})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"verdict": "robust"}, "has verdict 'robust', which is one of verified, broken, unknown"),
        ({"verdict": "unknown"}, "says verified True, but has verdict unknown"),
        ({"subproblems": -1}, "bounded -1 subproblems"),
        ({"found_by": "pgd"}, "found by pgd, with class None for label 3"),
        ({"verified": False, "lower": -1.0, "verdict": "broken", "adversarial": 1}, "found by None"),
        (
            {"verified": False, "lower": -1.0, "verdict": "broken", "adversarial": 1, "found_by": "clean"},
            "was found by clean, but predicts 3 for label 3",
        ),
        ({"verified": False, "lower": -1.0, "verdict": "broken", "adversarial": 3, "found_by": "pgd"}, "with class 3"),
    ],
)
def test_a_record_that_contradicts_itself_is_named(changed, said):
    values = {"index": 0, "input_sha": "0" * 64, "label": 3, "prediction": 3, "seconds": 0.1, "verified": True}
    fine = ExactRecord(**values, lower=0.5, verdict="verified")
    assert not [*fine.problems({})]
    assert any(said in problem for problem in ExactRecord(**{**asdict(fine), **changed}).problems({}))
