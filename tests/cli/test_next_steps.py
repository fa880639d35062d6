"""A mistake in a path or a name is answered with the nearest one there is, or with the option that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from hydrabench.files import close_name

NETWORK = """
from torch import nn


def build(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""
FEW = ("--dataset", "digits", "--epsilon", "1/255", "-n", 4)
CODE = ("--model", "mynet.py:build", "--weights", "mynet.pt")


@pytest.fixture
def folder(here: Path) -> Path:
    """A network of code with its weights, a recipe, a plugin, an empty run and an empty baseline."""
    (here / "mynet.py").write_text(NETWORK)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.ReLU(), torch.nn.Linear(4, 10))
    torch.save(network.state_dict(), here / "mynet.pt")
    (here / "net.onnx").write_bytes(b"not read")
    (here / "images.npz").write_bytes(b"not read")
    (here / "myloss.py").write_text("")
    (here / "mine.yml").write_text(yaml.safe_dump({"name": "mine"}))
    (here / "runs" / "attack").mkdir(parents=True)
    (here / "robustness").mkdir()
    return here


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("attack", "--model", "mynt.py:build", *FEW), "did you mean 'mynet.py'?"),
        (("attack", "--model", "mynet.py", *FEW), "for example mynet.py:build"),
        (("attack", "--model", "net.onx", *FEW), "did you mean 'net.onnx'?"),
        (("attack", "--model", "mynet.py:build", "--weights", "mynett.pt", *FEW), "did you mean 'mynet.pt'?"),
        (("attack", "--ckpt", "mynett.pt", *FEW), "did you mean 'mynet.pt'?"),
        (("attack", "--ckpt", "net.onnx", *FEW), "give --model net.onnx in place of --ckpt"),
        (("attack", "--ckpt", "mynet.pt", *FEW), "--model FILE.py:NAME --weights mynet.pt in place of --ckpt"),
        (("attack", *CODE, "--dataset", "npz:image.npz", "--epsilon", "0.1"), "did you mean 'images.npz'?"),
        (("attack", *CODE, *FEW, "--plugin", "mylos.py"), "did you mean 'myloss.py'?"),
        (("prune", "--config", "mien.yml", *CODE), "did you mean 'mine.yml'?"),
        (("train", "--config", "digits-trade"), "did you mean 'digits-trades'?"),
        (("verify", "runs/attac"), "does not exist; did you mean 'runs/attack'?"),
        (("verify", "runs/attack"), "runs/attack is not a run folder: it holds no run.json"),
        (("report", "run"), "did you mean 'runs'?"),
    ],
    ids=lambda part: part if isinstance(part, str) else " ".join(map(str, part)),
)
def test_the_answer_names_what_was_probably_meant(folder, hydrabench, words, said):
    result = hydrabench(*words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr) < 500, "a list of everything hides the answer"


def test_a_gate_names_the_nearest_baseline_and_how_to_make_one(folder, hydrabench):
    result = hydrabench("gate", "runs", "--against", "robustnes")
    assert result.exit_code == 3
    said = " ".join(result.stdout.split())
    assert "it does not exist; did you mean 'robustness'?; `hydrabench baseline RUNS --out robustnes` makes one" in said


def test_a_name_that_is_like_nothing_gets_no_suggestion(folder):
    assert close_name(folder / "something else") == ""
    assert close_name(folder / "nowhere" / "runs") == ""


def test_verify_says_which_network_of_other_code_a_run_was_about(folder, hydrabench):
    arguments = ("--model-args", "width=4")
    made = hydrabench("attack", *CODE, *arguments, *FEW, "--attack", "pgd", "--steps", 1, "--out", "runs/mine")
    assert made.exit_code == 0, made.stderr
    result = hydrabench("verify", "runs/mine")
    assert result.exit_code == 1
    assert "name it again: --model mynet.py:build --model-args width=4 --weights FILE" in result.stderr
