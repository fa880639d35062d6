"""The example of an evaluator: nothing of the package knows it, and everything treats it as one of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import hydrabench
from hydrabench.cli import main
from hydrabench.data import load_block, load_images
from hydrabench.evaluators import EVALUATORS, parse_settings
from hydrabench.recipes import load_plugin

FILE = Path(hydrabench.__file__).parents[1] / "examples" / "extend" / "corruption_accuracy.py"
ATTACK = ("attack", "--ckpt", "digits-trades", "--attack", "contrast", "-n", "60")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_it_is_run_reported_and_asked_for_by_name(tmp_path, monkeypatch, forget):
    monkeypatch.chdir(tmp_path)
    for severity in (1, 5):
        forget()
        run(*ATTACK, "--plugin", FILE, "--set", f"severity={severity}", "--out", f"runs/{severity}")
    header = json.loads((tmp_path / "runs/5/run.json").read_text())
    assert (header["command"], header["protocol"]) == ("attack", "contrast-5@1")
    assert [plugin["file"] for plugin in header["plugins"]] == [FILE.name]
    found = [json.loads((tmp_path / f"runs/{one}/summary.json").read_text())["metrics"] for one in (1, 5)]
    assert found[0]["clean_accuracy"] == found[1]["clean_accuracy"]
    assert found[0]["corruption_accuracy"]["value"] > found[1]["corruption_accuracy"]["value"]
    assert "10 records of runs/5 are what computing them again gives" in run(
        "verify", "runs/5", "--plugin", FILE, "--sample", 10
    )
    run("report", "runs", "--plugin", FILE, "--out", "report")
    text = (tmp_path / "report/leaderboard.md").read_text()
    assert "| clean | contrast severity 1 | contrast severity 5 |" in text
    assert "`contrast-5@1`: accuracy on images whose contrast is lowered" in text
    forget()
    assert "needs plugin corruption_accuracy.py" in run("report", "runs", "--out", "again", code=1)
    assert "unknown method 'contrast'" in run(*ATTACK, "--out", "again", code=1)


def test_a_severity_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = run(*ATTACK, "--plugin", FILE, "--set", "severity=6", "--out", "run", code=1)
    assert "contrast: severity: input should be less than or equal to 5 (got 6)" in message


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.4), (5, 0.05)])
def test_contrast_is_what_is_left_around_the_mean(severity, factor):
    load_plugin(FILE)
    block, seen = load_block(load_images("digits", "test"), 0, (0, 1)), []

    class Noted(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 10)

    settings = parse_settings({"kind": "contrast", "severity": severity})
    EVALUATORS["contrast"].evaluate(Noted().eval(), block, settings)
    clean, corrupted = seen
    assert torch.allclose(corrupted.mean((1, 2, 3)), clean.mean((1, 2, 3)))
    assert torch.allclose(corrupted.std((1, 2, 3)), factor * clean.std((1, 2, 3)))
