"""Flags: what a network and a ledger show that makes accuracy under attack doubtful."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import hydrabench
from hydrabench.evaluators import EVALUATORS, AutoAttackSettings, PgdSettings
from hydrabench.evaluators.flags import FLAGS, flag_texts, record_flags


def lines(**counts):
    """Records: `name=3` makes three images broken by `name`; `robust=5` five that nothing breaks."""
    made = []
    for name, count in counts.items():
        broken = name.replace("_", "-")
        robust = name == "robust"
        line = {"label": 0, "prediction": 0, "robust": robust, "broken_by": None if robust else broken, "restart": None}
        made += [line] * count
    return made


@pytest.mark.parametrize(("square", "flagged"), [(0, False), (1, False), (2, True), (9, True)])
def test_square_alone_is_flagged_above_two_in_a_thousand(square, flagged):
    found = record_flags(lines(apgd_ce=300, robust=600 - square, square=square), AutoAttackSettings(epsilon="0.1"))
    assert found == ({"square-alone": square / 900} if flagged else {})


def test_square_is_not_compared_with_itself():
    assert record_flags(lines(square=50, robust=50), AutoAttackSettings(epsilon="0.1", attacks=("square",))) == {}


@pytest.mark.parametrize(("restart", "share"), [(0, None), (9, None), (10, 0.01), (19, 0.01)])
def test_late_restarts_are_flagged(restart, share):
    broken = {"label": 0, "prediction": 0, "robust": False, "broken_by": "pgd-ce", "restart": restart}
    found = record_flags([*lines(robust=99), broken], PgdSettings(epsilon="0.1", restarts=20))
    assert found == ({} if share is None else {"late-restarts": share})


def test_one_restart_cannot_tell():
    broken = {"label": 0, "prediction": 0, "robust": False, "broken_by": "pgd-ce", "restart": 0}
    assert record_flags([broken], PgdSettings(epsilon="0.1")) == {}


def test_texts_say_what_and_how_many():
    assert flag_texts({"zero-gradient": 0.275, "softmax-output": 1.0}) == [
        "zero-gradient (zero gradient where the attack starts, 27.5% of the images)",
        "softmax-output (probabilities instead of logits)",
    ]
    assert flag_texts({"new": 1.0}) == ["new (a sign that this version does not know)"]
    assert all(text and not text.endswith(".") for text in FLAGS.values())


class Detached(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.detach())


def right_network():
    """A linear network, and eight images with the classes that it gives them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    return network, (x, network(x).argmax(1))


# Settings under which an attack is soon done, of those that are none for other kinds of images.
FEW = {
    "apgd": {},
    "autoattack": {"attacks": ["fab-t"]},
    "fab": {},
    "fmn": {"steps": 2},
    "hydra": {"steps": 2},
    "pgd": {"steps": 2},
    "smoothed": {"steps": 2, "sigma": 0.01, "draws": 20, "copies": 2},
    "square": {"queries": 5},
}


@pytest.mark.parametrize("attack", FEW)
def test_every_attack_survives_a_detached_input(attack):
    """Where no gradient reaches the input, an attack finds what chance finds; none ends in a traceback."""
    network, data = right_network()
    attacks = {kind for kind, one in EVALUATORS.items() if one.command == "attack"}
    assert FEW.keys() | {"clean", "corruptions"} == attacks
    run = hydrabench.attack(Detached(network).eval(), data, attack, "1/255", **FEW[attack])
    name = "smoothed_robust_accuracy" if attack == "smoothed" else "robust_accuracy"
    assert run.summary["metrics"][name]["value"] > 0.5
    if attack != "smoothed":  # whose number is about the smoothed classifier: it has no flags
        assert run.summary["flags"]["detached-input"] == 1.0


@pytest.mark.parametrize(("attack", "settings"), [("pgd", {"steps": 3}), ("autoattack", {"attacks": ["apgd-ce"]})])
def test_a_detached_input_is_flagged_in_summary_output_and_report(tmp_path, capsys, attack, settings):
    """Without the flag nobody would see why hardly any image breaks."""
    network, data = right_network()
    run = hydrabench.attack(Detached(network).eval(), data, attack, "0.05", out=tmp_path / "run", **settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["robust_accuracy"]["value"] > 0.7
    assert summary["flags"] == {"detached-input": 1.0, "zero-gradient": 1.0}
    assert "flagged: detached-input (no gradient reaches the input)" in capsys.readouterr().err
    hydrabench.report([run], out=tmp_path / "report")
    text = (tmp_path / "report" / "leaderboard.md").read_text()
    assert "Flagged, by checks" in text
    assert "detached-input (no gradient reaches the input)" in text
    plain = hydrabench.attack(network.eval(), data, attack, "0.05", out=tmp_path / "plain", **settings)
    assert json.loads((plain.path / "summary.json").read_text())["metrics"]["robust_accuracy"]["value"] < 0.7
    assert json.loads((plain.path / "summary.json").read_text())["flags"] == {}
