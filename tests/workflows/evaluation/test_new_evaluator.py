"""An evaluator that only the registry knows goes the whole way: run, ledger, report, gate, dry run."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from click.testing import CliRunner
from pydantic import PositiveInt

from hydrabench.cli import main
from hydrabench.config import Radius
from hydrabench.errors import GateError
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, Evaluator
from hydrabench.evaluators.clean import attack_records, clean_breaks, clean_logits
from hydrabench.evaluators.description import robust_metrics
from hydrabench.ledger import AttackRecord, read_run
from hydrabench.reporting import build_leaderboard, markdown
from hydrabench.threat import Norm
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject, settings_for
from hydrabench.workflows.planning.plan import dry_run
from hydrabench.workflows.training.commands import fresh_network


class EverySettings(EvaluationSettings):
    """Of an attack that claims to break every so many images."""

    kind: Literal["every"] = "every"
    norm: Norm = "linf"
    epsilon: Radius
    every: PositiveInt = 3

    @property
    def protocol(self) -> str:
        return f"every-{self.every}@1"


def break_some(network, block, settings):
    logits = clean_logits(network, block)
    breaks = [
        broken or (("every", None) if index % settings.every == 0 else None)
        for broken, index in zip(clean_breaks(logits, block), block.indices, strict=True)
    ]
    return attack_records(block, logits, breaks, [None] * len(breaks), started=0.0)


EVERY = Evaluator(
    settings=EverySettings,
    evaluate=break_some,
    record=AttackRecord,
    metrics=robust_metrics,
    claims="upper",
    command="attack",
    heading=lambda settings: f"every {settings.every}",
    meaning="not among every so many images",
    passes=lambda settings, _sizes: 1 + settings.every,
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(EVALUATORS, "every", EVERY)


@pytest.fixture
def attacked(line, tmp_path):
    arguments = ["--attack", "every", "--set", "every=4", "--epsilon", "1/255", "-n", "20", "--device", "cpu"]
    result = CliRunner().invoke(main, ["attack", "--ckpt", str(line.train), *arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_it_makes_a_ledger_and_a_column(attacked):
    header = json.loads((attacked / "run.json").read_text())
    assert (header["command"], header["protocol"], header["settings"]["every"]) == ("attack", "every-4@1", 4)
    records = list(read_run(attacked).records())
    assert [record["index"] for record in records if record["broken_by"] == "every"] == [
        index for index in (0, 4, 8, 12, 16) if records[index]["broken_by"] != "clean"
    ]
    text = markdown(build_leaderboard([read_run(attacked)]))
    assert "| clean | every 4 L∞ 1/255 |" in text
    assert "`every-4@1`: not among every so many images; every 4" in text
    assert "verified ≤ true ≤ attacked" in text


def test_the_gate_holds_it_against_a_certificate(attacked, line, cpu, monkeypatch, tmp_path):
    subject = open_subject(str(line.train), options=cpu)
    settings = settings_for(subject, {"kind": "ibp", "epsilon": "0"})
    evaluate(subject, settings, tmp_path / "ibp", options=cpu, n=20)
    certificate = read_run(tmp_path / "ibp")
    build_leaderboard([read_run(attacked), certificate])  # radius 0 says nothing about 1/255
    monkeypatch.setitem(certificate.header["settings"], "epsilon", "1/255")
    with pytest.raises(GateError, match=r"verified at L∞ 1/255 .* but broken at L∞ 1/255 .*\(every-4@1\)"):
        build_leaderboard([read_run(attacked), certificate])


def test_the_dry_run_counts_its_passes(make_recipe):
    recipe = make_recipe(evaluate=[{"kind": "every", "every": 6}])
    (planned,) = dry_run(recipe, fresh_network(recipe).eval(), device="cpu")["evaluations"]
    assert (planned["protocol"], planned["passes"]) == ("every-6@1", 7)


def test_a_recipe_and_the_command_line_check_its_settings(line, tmp_path):
    base = ["attack", "--ckpt", str(line.train), "--out", str(tmp_path / "run"), "--attack"]
    for arguments, message in (
        (["every", "--set", "every=0"], "every: every: input should be greater than 0 (got 0)"),
        (["every", "--set", "evry=2"], "every: evry: unknown key, did you mean 'every'?"),
        (["every", "--steps", "3"], "--steps is for --attack pgd, hydra, fmn, smoothed; with every leave it out"),
        (["evry"], "did you mean 'every'? choose one of: apgd, autoattack, clean, corruptions, every"),
    ):
        result = CliRunner().invoke(main, [*base, *arguments])
        assert result.exit_code == 1
        assert message in result.output
