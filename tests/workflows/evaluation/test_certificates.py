"""Images that an earlier run verifies are not attacked, and the records say why."""

from __future__ import annotations

import json
import shutil

import pytest

from hydrabench.errors import ConfigError, LedgerError
from hydrabench.evaluators import AutoAttackSettings, CleanSettings, PgdSettings, VerifiedSettings
from hydrabench.workflows.evaluation import in_turn
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.verifying import verify_run

N = 60
PGD = PgdSettings(epsilon="30/255", steps=3)
CURVE = PgdSettings(epsilon="10/255,30/255", steps=3)
APGD = AutoAttackSettings(epsilon="30/255", attacks=("apgd-ce",))


@pytest.fixture(scope="module")
def subject(cpu):
    return open_subject("digits-crown-ibp-99", options=cpu)


@pytest.fixture(scope="module")
def certified(subject, cpu, tmp_path_factory):
    """A run at a larger radius than that of the attacks; it verifies some images."""
    folder = tmp_path_factory.mktemp("certified") / "ibp"
    evaluate(subject, VerifiedSettings(kind="ibp", epsilon="40/255"), folder, options=cpu, n=N)
    return folder


def skipping(folder):
    return RunOptions(device="cpu", computing={"skip_certified": folder})


def lines(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def verified(folder):
    return {line["index"] for line in lines(folder) if line["verified"]}


@pytest.mark.parametrize("settings", [PGD, CURVE, APGD], ids=lambda settings: settings.protocol)
def test_verified_images_are_robust_without_an_attack_and_the_others_get_the_same_verdict(
    subject, cpu, certified, tmp_path, settings, capsys
):
    evaluate(subject, settings, tmp_path / "all", options=cpu, n=N)
    evaluate(subject, settings, tmp_path / "rest", options=skipping(certified), n=N)
    spared = verified(certified)
    assert 5 < len(spared) < N
    for whole, rest in zip(lines(tmp_path / "all"), lines(tmp_path / "rest"), strict=True):
        assert (whole["prediction"], whole["robust"], whole["input_sha"]) == (
            rest["prediction"],
            rest["robust"],
            rest["input_sha"],
        )
        assert rest["certified_by"] == ("ibp@1 at L∞ 40/255" if rest["index"] in spared else None)
        assert rest["margin"] == (None if rest["index"] in spared else whole["margin"])
    assert f"{len(spared)} of {N} images need no attack: verified by ibp@1 at L∞ 40/255" in capsys.readouterr().err
    assert json.loads((tmp_path / "rest" / "run.json").read_text())["skipped"]["certificates"] == "ibp@1 at L∞ 40/255"
    if settings is APGD:
        attacked = {
            json.loads(line)["image"] for line in (tmp_path / "rest" / "attacks.jsonl").read_text().splitlines()
        }
        assert attacked == set(range(N)) - spared
    assert not verify_run(tmp_path / "rest", options=cpu, sample=N).differing


def test_a_run_that_skips_is_continued_with_the_same_certificates_only(subject, cpu, certified, tmp_path, monkeypatch):
    def killed(_self, _attack, _waiting):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(in_turn.Turns, "_round", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, APGD, tmp_path / "run", options=skipping(certified), n=N)
    with pytest.raises(LedgerError, match="skipped was"):
        evaluate(subject, APGD, tmp_path / "run", options=cpu, n=N, resume=True)
    evaluate(subject, APGD, tmp_path / "run", options=skipping(certified), n=N, resume=True)
    assert {line["index"] for line in lines(tmp_path / "run") if line["certified_by"]} == verified(certified)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PgdSettings(epsilon="41/255"), r"verifies images at L∞ 40/255, which does not cover L∞ 41/255; certify at"),
        (AutoAttackSettings(epsilon="1/255", version=1), r"aa-standard@1 attacks whole blocks of images"),
        (AutoAttackSettings(epsilon="1/255", ensemble="rand"), r"aa-rand@2 attacks whole blocks of images"),
    ],
)
def test_certificates_that_do_not_cover_the_attack_are_refused(subject, certified, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        evaluate(subject, settings, tmp_path / "run", options=skipping(certified), n=N)
    assert not (tmp_path / "run").exists()


def test_certificates_about_something_else_are_refused(subject, cpu, certified, tmp_path):
    other = open_subject("digits-crown-ibp-95", options=cpu)
    with pytest.raises(LedgerError, match=r"is about a network with SHA-256 \w+…, this one has"):
        evaluate(other, PGD, tmp_path / "run", options=skipping(certified), n=N)
    evaluate(subject, CleanSettings(), tmp_path / "clean", options=cpu, n=5)
    with pytest.raises(LedgerError, match=r"no run of certify that verifies images"):
        evaluate(subject, PGD, tmp_path / "run", options=skipping(tmp_path / "clean"), n=N)
    shutil.copytree(certified, tmp_path / "altered")
    with (tmp_path / "altered" / "records.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(LedgerError, match=r"one was altered"):
        evaluate(subject, PGD, tmp_path / "run", options=skipping(tmp_path / "altered"), n=N)
    assert not (tmp_path / "run").exists()
