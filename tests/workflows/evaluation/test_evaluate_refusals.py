"""What attack and certify refuse before anything is written, and what stops them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from hydrabench.bounds import lirpa
from hydrabench.data import load_block, load_images
from hydrabench.errors import (
    DataError,
    HydrabenchError,
    LedgerError,
    NonFiniteError,
    UnsupportedLayerError,
)
from hydrabench.evaluators import (
    EVALUATORS,
    AlphaCrownSettings,
    AutoAttackSettings,
    CleanSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
)
from hydrabench.ledger import (
    open_run,
)
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.run_options import RunOptions

PGD = PgdSettings(epsilon="8/255", steps=3)

CROWN = VerifiedSettings(kind="crown-ibp", epsilon="1/255")

SMOOTHING = SmoothingSettings(sigma=0.1, n0=10, samples=60, radii=(0.0, 0.05, 9.0))


def read(folder, name="run.json"):
    return json.loads((folder / name).read_text())


def test_a_layer_without_a_rule_is_refused_by_name_before_anything_is_written(subject, cpu, tmp_path):
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(18, 10)).eval()
    strange = replace(subject, network=pooled.requires_grad_(False))
    for kind in ("ibp", "crown-ibp"):
        with pytest.raises(UnsupportedLayerError, match=r"cannot bound 1 \(LPPool2d\): it has no sound rule"):
            evaluate(strange, VerifiedSettings(kind=kind, epsilon="1/255"), tmp_path / "run", options=cpu, n=5)
    assert not (tmp_path / "run").exists()
    evaluate(strange, PGD, tmp_path / "run", options=cpu, n=5)  # an attack needs no rules


def test_a_layer_whose_settings_have_no_rule_is_refused_as_well():
    reflecting = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")).eval()
    with pytest.raises(UnsupportedLayerError, match=r"pads with padding_mode='reflect'"):
        EVALUATORS[CROWN.kind].require(reflecting, CROWN)
    EVALUATORS[PGD.kind].require(reflecting, PGD)


@pytest.mark.parametrize(
    "settings",
    [
        AlphaCrownSettings(epsilon="1/255", engine="auto_lirpa"),
        VerifiedSettings(kind="ibp", epsilon="1/255", engine="auto_lirpa"),
    ],
    ids=lambda settings: settings.protocol,
)
def test_without_auto_lirpa_nothing_is_written(subject, cpu, tmp_path, monkeypatch, settings):
    lirpa.auto_lirpa.cache_clear()
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    with pytest.raises(HydrabenchError, match=r"auto_LiRPA cannot be imported .* `pip install --no-deps auto_LiRPA`"):
        evaluate(subject, settings, tmp_path / "run", options=cpu, n=5)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not find_spec("auto_LiRPA"), reason="auto_LiRPA is not installed")
@pytest.mark.parametrize(
    "settings",
    [
        AlphaCrownSettings(epsilon="1/255", engine="auto_lirpa"),
        VerifiedSettings(kind="crown", epsilon="1/255", engine="auto_lirpa"),
    ],
    ids=lambda settings: settings.protocol,
)
def test_what_auto_lirpa_cannot_read_is_refused_before_anything_is_written(
    subject, cpu, tmp_path, monkeypatch, settings
):
    def refuse(_network, x):
        assert len(x) == 1
        raise UnsupportedLayerError("auto_LiRPA knows no rule for a part of this network")

    monkeypatch.setattr("hydrabench.evaluators.verified.bounded_module", refuse)
    with pytest.raises(UnsupportedLayerError, match="auto_LiRPA knows no rule"):
        evaluate(subject, settings, tmp_path / "run", options=cpu, n=5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        AlphaCrownSettings(epsilon="1/255"),
        VerifiedSettings(kind="cascade", epsilon="1/255", methods=("ibp", "alpha-crown")),
    ],
    ids=lambda settings: settings.protocol,
)
def test_alpha_crown_needs_rules_of_our_own(subject, cpu, tmp_path, settings):
    strange = replace(subject, network=nn.Sequential(subject.network, nn.Softmax(dim=1)).eval())
    with pytest.raises(UnsupportedLayerError, match="Softmax"):
        evaluate(strange, settings, tmp_path / "run", options=cpu, n=5)
    assert not (tmp_path / "run").exists()


def test_what_autoattack_cannot_judge_is_refused_before_anything_is_written(subject, cpu, tmp_path, monkeypatch):
    settings = AutoAttackSettings(epsilon="8/255")
    three = replace(subject, network=nn.Sequential(subject.network, nn.Linear(10, 3)).eval())
    with pytest.raises(HydrabenchError, match=r"name the attacks that are defined with --attacks apgd-ce,fab-t,square"):
        evaluate(three, settings, tmp_path / "run", options=cpu, n=5)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(HydrabenchError, match=r"not installed; run: pip install pyautoattack"):
        evaluate(subject, settings, tmp_path / "run", options=cpu, n=5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n", [0, -1, 501])
def test_images_that_the_data_set_does_not_have_are_refused(subject, cpu, tmp_path, n):
    with pytest.raises(DataError, match=rf"-n {n} is outside 1\.\.500, the test images of digits"):
        evaluate(subject, PGD, tmp_path / "run", options=cpu, n=n)
    assert not (tmp_path / "run").exists()


def test_missing_data_are_refused(subject, tmp_path):
    with pytest.raises(DataError, match=r"data folder .*nowhere' does not exist; correct --data-dir"):
        evaluate(subject, PGD, tmp_path / "run", options=RunOptions("cpu", tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_an_infinite_logit_stops_the_run_and_the_blocks_that_are_done_stay(subject, cpu, comparable, tmp_path):
    unlucky = load_block(load_images("digits", "test"), 1, (150,)).images

    class Overflowing(nn.Module):
        def forward(self, x):
            found = (x == unlucky).flatten(1).all(1)
            return subject.network(x).masked_fill(found[:, None], torch.inf)

    with pytest.raises(NonFiniteError, match=r"image 150: a logit of the clean image is NaN or infinite"):
        evaluate(replace(subject, network=Overflowing().eval()), CleanSettings(), tmp_path / "run", options=cpu, n=230)
    assert len(comparable(tmp_path / "run")) == 100
    assert read(tmp_path / "run")["status"] == "running"


def test_a_folder_that_holds_something_else_is_refused(subject, cpu, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(LedgerError, match=r"is no run folder but holds thesis\.tex; choose a new --out"):
        evaluate(subject, PGD, tmp_path / "run", options=cpu, n=5)
    open_run(tmp_path / "other", {"command": "train"}, resume=False)
    with pytest.raises(LedgerError, match=r'cannot resume .*command was "train" and is now "attack"'):
        evaluate(subject, PGD, tmp_path / "other", options=cpu, n=5, resume=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"thesis.tex"}
