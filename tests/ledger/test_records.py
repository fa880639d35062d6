"""What cannot be in a record is refused with words that say so; what rounding does to one is no difference."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from statistics import NormalDist

import pytest

from hydrabench.errors import LedgerError
from hydrabench.evaluators import EVALUATORS
from hydrabench.ledger import (
    CORRUPTIONS,
    AttackRecord,
    CorruptionRecord,
    CurveRecord,
    ExactRecord,
    RadiusRecord,
    ReuseRecord,
    SmoothAttackRecord,
    SmoothedRecord,
    VerifiedRecord,
    fingerprint,
    open_run,
    read_record,
    whole_ledger,
)

SHA = "ab" * 32
PGD = {"kind": "pgd", "steps": 50}
IBP = {"kind": "ibp"}
CASCADE = {"kind": "cascade", "methods": ["ibp", "crown"]}
COHEN = {"kind": "smoothing", "sigma": 0.25, "samples": 1000}
REUSED = {**COHEN, "mode": "reused"}
RADIUS = 0.25 * NormalDist().inv_cdf(0.8)

ROBUST = AttackRecord(3, SHA, 5, 5, 0.1, robust=True, broken_by=None, step=None, margin=0.2)
BROKEN = AttackRecord(3, SHA, 5, 5, 0.1, robust=False, broken_by="pgd-ce", step=7, margin=-0.2)
WRONG = AttackRecord(3, SHA, 5, 4, 0.1, robust=False, broken_by="clean", step=0, margin=-0.2)
VERIFIED = VerifiedRecord(3, SHA, 5, 5, 0.1, verified=True, lower=0.2)
OPEN = VerifiedRecord(3, SHA, 5, 5, 0.1, verified=False, lower=-0.2)
PROVED = replace(VERIFIED, method="crown")
CERTIFIED = SmoothedRecord(
    3, SHA, 1, 1, 0.1, selected=1, count=900, samples=1000, p_lower=0.8, radius=RADIUS, abstain=False,
    selection=[1, 99], counts=[100, 900], looks=[[1000, 900]],
)  # fmt: skip
ABSTAINED = replace(
    CERTIFIED, prediction=-1, count=500, p_lower=0.4, radius=0.0, abstain=True, counts=[500, 500], looks=[[1000, 500]]
)
PREDICTED = replace(CERTIFIED, mode="predict", p_lower=0.0, radius=0.0)
CHILD = ReuseRecord(
    3, SHA, 1, 1, 0.1, selected=1, count=90, samples=100, p_lower=0.8, radius=RADIUS, abstain=False, mode="reused",
    counts=[8, 90], looks=[[100, 2]], parent_p_lower=0.85, lost=2, disagreements=2, certificate="reused",
)  # fmt: skip
FMN = {"kind": "fmn", "epsilon": "8/255"}
FAR = CurveRecord(3, SHA, 5, 5, 0.1, robust=True, broken_by=None, step=None, margin=0.2, distance=0.05)
CORRUPTED = CorruptionRecord(3, SHA, 5, 5, 0.1, right={name: [True] * 5 for name in CORRUPTIONS})
NOISY = {"kind": "smoothed", "draws": 10}
OUTVOTED = SmoothAttackRecord(3, SHA, 1, 1, 0.1, robust=False, broken_by="smooth-pgd", votes=[8, 2])
EXACT = {"kind": "exact"}
DECIDED = ExactRecord(3, SHA, 5, 5, 0.1, verified=True, lower=0.2, verdict="verified", subproblems=3)
MISTAKEN = ExactRecord(3, SHA, 5, 4, 0.1, verified=False, lower=-0.2, verdict="broken", found_by="clean", adversarial=4)
RADII = {"kind": "ibp", "epsilon": "8/255", "search_radius": True}
REACHED = RadiusRecord(3, SHA, 5, 5, 0.1, verified=True, verified_radius=8 / 255, broken_radius=None, trials=1)
BETWEEN = RadiusRecord(
    3, SHA, 5, 5, 0.1, verified=False, verified_radius=0.01, broken_radius=0.02, trials=6, found_by="fmn",
    adversarial=4,
)  # fmt: skip
SOUND = [
    (REACHED, RADII), (BETWEEN, RADII),
    (FAR, FMN), (CORRUPTED, {"kind": "corruptions"}), (OUTVOTED, NOISY), (DECIDED, EXACT), (MISTAKEN, EXACT),
    (ROBUST, PGD), (BROKEN, PGD), (WRONG, PGD), (VERIFIED, IBP), (OPEN, IBP), (PROVED, CASCADE), (CERTIFIED, COHEN),
    (ABSTAINED, COHEN), (PREDICTED, {**COHEN, "mode": "predict"}), (CHILD, REUSED),
]  # fmt: skip

# (record, settings, what is written into it, what is said)
EDITS = [
    (FAR, FMN, {"distance": 0.01}, "says robust True with distance 0.01 at the radius"),
    (FAR, FMN, {"distance": 0}, "has distance 0.0, but predicts 5 for label 5"),
    (CORRUPTED, {"kind": "corruptions"}, {"right": {}}, "names the corruptions"),
    (OUTVOTED, NOISY, {"votes": [2, 8]}, "is not robust, but class 1 has the most votes"),
    (OUTVOTED, NOISY, {"votes": [8, 3]}, "has 11 votes, the run 10 draws"),
    (DECIDED, EXACT, {"verdict": "unknown"}, "says verified True, but has verdict unknown"),
    (MISTAKEN, EXACT, {"adversarial": 5}, "found by clean, with class 5 for label 5"),
    (REACHED, RADII, {"verified_radius": 0.01}, "says verified True with verified_radius 0.01"),
    (REACHED, RADII, {"prediction": 4}, "has radii, which needs a right prediction"),
    (BETWEEN, RADII, {"broken_radius": 0.01}, "is verified at 0.01, but broken at 0.01"),
    (BETWEEN, RADII, {"verified_radius": 0.1}, "has verified_radius 0.1, which lies in [0, 0.0313725]"),
    (BETWEEN, RADII, {"found_by": None}, "has broken_radius 0.02, found by None, with class 4"),
    (BROKEN, PGD, {"robust": True}, "says robust True, broken_by 'pgd-ce', step 7, which does not fit"),
    (WRONG, PGD, {"robust": True, "broken_by": None, "step": None, "margin": 0.1}, "is robust, which needs a right"),
    (ROBUST, PGD, {"prediction": 4}, "is robust, which needs a right prediction, but predicts 4 for label 5"),
    (ROBUST, PGD, {"margin": -0.1}, "says robust True with a smallest margin of -0.1"),
    (BROKEN, PGD, {"margin": 0.1}, "says robust False with a smallest margin of 0.1"),
    (BROKEN, PGD, {"broken_by": "clean"}, "is broken by 'clean', but predicts 5 for label 5"),
    (WRONG, PGD, {"broken_by": "pgd-ce"}, "is broken by 'pgd-ce', but predicts 4 for label 5"),
    (BROKEN, PGD, {"step": 51}, "was broken at step 51 of 50"),
    (ROBUST, PGD, {"robust": 1}, "has robust 1: input should be a valid boolean"),
    (ROBUST, PGD, {"robust": None}, "has robust null: input should be a valid boolean"),
    (ROBUST, PGD, {"label": 5.0}, "has label 5.0: input should be a valid integer"),
    (ROBUST, PGD, {"index": -1}, "has index -1, which is at least 0"),
    (ROBUST, PGD, {"seconds": -0.1}, "has seconds -0.1, which is at least 0"),
    (ROBUST, PGD, {"input_sha": "sha"}, "has input_sha 'sha', which is no SHA-256 in hexadecimal"),
    (ROBUST, PGD, {"verified": True}, "has a field 'verified', which this version does not know"),
    (OPEN, IBP, {"verified": True}, "is verified, which needs a bound above 0, with lower -0.2"),
    (VERIFIED, IBP, {"prediction": 4}, "is verified, which needs a right prediction, but predicts 4 for label 5"),
    (VERIFIED, IBP, {"verified": False}, "is not verified, although the prediction is right and lower is 0.2"),
    (VERIFIED, IBP, {"lower": float("nan")}, "has lower NaN: input should be a finite number"),
    (VERIFIED, IBP, {"lower": None}, "has lower null: input should be a valid number"),
    (OPEN, CASCADE, {"method": "ibp"}, "is not verified, but says that ibp proved it"),
    (VERIFIED, CASCADE, {"method": "alpha-crown"}, "was proved by alpha-crown, none of the methods ibp, crown"),
    (CERTIFIED, COHEN, {"radius": 0.5}, "has radius 0.5, but p_lower 0.8 gives 0.210405 at this sigma"),
    (CERTIFIED, COHEN, {"p_lower": 1.5}, "has p_lower 1.5, which is a probability"),
    (CERTIFIED, COHEN, {"count": 1001}, "counts 1001 votes of 1000 samples, of at most 1000"),
    (CERTIFIED, COHEN, {"samples": 2000}, "counts 900 votes of 2000 samples, of at most 1000"),
    (CERTIFIED, COHEN, {"count": 950}, "counts 950 votes for class 1, which its counts do not say"),
    (CERTIFIED, COHEN, {"counts": [200, 900]}, "has counts of 1100 votes for 1000 samples"),
    (CERTIFIED, COHEN, {"looks": [[1000, 1001]]}, "looked at more votes than there are draws"),
    (CERTIFIED, COHEN, {"prediction": 0}, "predicts 0, but class 1 was selected"),
    (CERTIFIED, COHEN, {"abstain": True}, "predicts 1 with abstain True; -1 and true go together"),
    (ABSTAINED, COHEN, {"radius": 0.1}, "abstains, so it has no radius, but says 0.1"),
    (ABSTAINED, COHEN, {"p_lower": 0.8, "radius": RADIUS}, "abstains, so it has no radius"),
    (CERTIFIED, COHEN, {"prediction": -2}, "has prediction -2, which is at least -1"),
    (CERTIFIED, COHEN, {"mode": "adaptive"}, "has mode adaptive, the run cohen"),
    (CHILD, REUSED, {"p_lower": 0.9}, "has p_lower 0.9, above that of its parent, 0.85"),
    (CHILD, REUSED, {"certificate": "none"}, "has no certificate, but does not abstain"),
    (CHILD, REUSED, {"certificate": "own"}, "has certificate 'own', which is reused or none"),
    (CHILD, REUSED, {"lost": 3}, "lost 3 votes in 2 disagreements"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "settings"), SOUND)
def test_a_record_is_read_as_it_was_written(record, settings):
    assert read_record(asdict(record), type(record), settings) == record


@pytest.mark.parametrize(("record", "settings", "edit", "said"), EDITS, ids=range(len(EDITS)))
def test_a_record_that_cannot_be_is_refused(record, settings, edit, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is compared below
        read_record({**asdict(record), **edit}, type(record), settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(("record", "settings"), SOUND)
def test_every_field_without_a_default_is_needed(record, settings):
    for name in ("index", "input_sha", "label", "prediction", "seconds"):
        values = {key: value for key, value in asdict(record).items() if key != name}
        with pytest.raises(ValueError, match=rf"^lacks '{name}'"):
            read_record(values, type(record), settings)


def test_every_class_of_records_is_tested():
    assert {type(record) for record, _ in SOUND} == {one.record for one in EVALUATORS.values()} | {
        ReuseRecord,
        RadiusRecord,
    }


# The whole ledger ------------------------------------------------------------------------------


def ledger(folder, records, **dataset):
    header = {"command": "attack", "settings": PGD, "dataset": {"n": 3, **dataset}}
    run = open_run(folder, header, resume=False)
    run.append(records)
    return run


THREE = [replace(ROBUST, index=index) for index in range(3)]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (THREE[:2], "has no record of image 2, of 3 images"),
        ([*THREE, THREE[1]], "holds more than one record of image 1, of 3 images"),
        ([*THREE, ROBUST], "holds 4 records but selects 3 images"),
        ([*THREE[:2], replace(BROKEN, index=2, robust=True)], "the record of image 2 says robust True, broken_by"),
    ],
)
def test_a_ledger_is_whole_if_every_image_has_one_record_that_can_be(tmp_path, records, said):
    with pytest.raises(LedgerError) as caught:
        whole_ledger(ledger(tmp_path, records), range(3), AttackRecord)
    assert f"{tmp_path}{':' * said.startswith('the')} {said}" in str(caught.value)


def test_the_records_must_be_about_the_images_of_the_run(tmp_path):
    right = fingerprint([(SHA, 5)] * 3)
    assert whole_ledger(ledger(tmp_path / "a", THREE[::-1], fingerprint=right), range(3), AttackRecord)[2]["index"] == 2
    others = ledger(tmp_path / "b", [*THREE[:2], replace(THREE[2], label=4, prediction=4)], fingerprint=right)
    with pytest.raises(LedgerError, match=r"its records are about other images than its run\.json says"):
        whole_ledger(others, range(3), AttackRecord)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda line: line.replace('"label": 5', '"label": 5, "label": 5'), "'label' stands twice"),
        (lambda line: line.replace('"seconds": 0.', '"seconds": 1e999, "later": 0.'), "is too large"),
        (lambda line: line[:-2], "is not readable as JSON"),
    ],
)
def test_a_line_that_says_something_twice_or_not_at_all_is_named(tmp_path, edit, said):
    run = ledger(tmp_path, THREE)
    lines = run.records_path.read_text().splitlines()
    lines[1] = edit(lines[1])
    run.records_path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError) as caught:
        whole_ledger(run, range(3), AttackRecord)
    assert "line 2" in str(caught.value)
    assert said in str(caught.value)


def test_a_ledger_from_before_a_field_is_read_as_it_is(tmp_path):
    old = {key: value for key, value in asdict(VERIFIED).items() if key not in ("method", "rechecked")}
    run = ledger(tmp_path, [])
    run.records_path.write_text("".join(json.dumps({**old, "index": index}) + "\n" for index in range(3)))
    assert whole_ledger(run, range(3), VerifiedRecord) == tuple({**old, "index": index} for index in range(3))


# The same record made again --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (ROBUST, replace(ROBUST, seconds=9.0, margin=0.2 + 1e-3), []),
        (ROBUST, replace(ROBUST, margin=0.25), ["margin was 0.2 and is now 0.25, beyond the tolerance of 0.01"]),
        (ROBUST, replace(BROKEN, margin=-9e-6), []),
        (ROBUST, BROKEN, ["robust was True and is now False"]),
        (ROBUST, replace(ROBUST, input_sha="cd" * 32), ["input_sha was abababababababab and is now cdcdcdcdcdcdcdcd"]),
        (VERIFIED, replace(VERIFIED, lower=0.2 + 5e-5), []),
        (VERIFIED, replace(VERIFIED, lower=0.201), ["lower was 0.2 and is now 0.201, beyond the tolerance of 0.0001"]),
        (VERIFIED, replace(OPEN, lower=-0.2), ["verified was True and is now False"]),
        (replace(VERIFIED, lower=5e-6), replace(OPEN, lower=-5e-6), []),
        (CERTIFIED, replace(CERTIFIED, count=902, p_lower=0.81, radius=0.22), []),
        (CERTIFIED, replace(CERTIFIED, count=903), ["count was 900 and is now 903"]),
        (CERTIFIED, replace(CERTIFIED, p_lower=0.81), ["p_lower was 0.8 and is now 0.81, beyond the"]),
        (CERTIFIED, ABSTAINED, ["prediction was 1", "abstain was False", "count was 900"]),
    ],
)  # fmt: skip
def test_verdicts_are_compared_exactly_and_numbers_up_to_rounding(old, new, said):
    found = list(old.differences(new))
    assert len(found) == len(said)
    assert all(one.startswith(expected) for one, expected in zip(found, said, strict=True))


def test_records_are_written_as_json_that_reads_back(tmp_path):
    run = ledger(tmp_path, THREE)
    assert [
        read_record(json.loads(line), AttackRecord, PGD) for line in run.records_path.read_text().splitlines()
    ] == THREE
