"""`robustbench:NAME` asks the library for a network by name, data set and threat; a stand-in plays the library."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hydrabench.cli import main
from hydrabench.errors import ConfigError
from hydrabench.models.own_code import build_code


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A robustbench that knows one network; what it was asked for is kept."""
    asked = []

    def load_model(model_name, model_dir, dataset, threat_model):
        asked.append((model_name, dataset, threat_model, model_dir))
        if model_name != "Known2020Network":
            raise KeyError(model_name)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    package, utils = ModuleType("robustbench"), ModuleType("robustbench.utils")
    package.__version__, utils.load_model = "1.0", load_model
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "cache"))
    return asked


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, images=generator.integers(0, 255, (20, 32, 32, 3), np.uint8), labels=np.arange(20) % 10)
    return f"npz:{path}"


def test_a_network_is_evaluated_under_its_own_normalisation(library, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["attack", "--model", "robustbench:Known2020Network", "--threat", "L2", "--dataset", images]
    command += ["--model-args", "dataset=cifar10", "--attack", "clean", "--out", "run"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "fresh weights" not in result.output
    assert library == [("Known2020Network", "cifar10", "L2", str(tmp_path / "cache" / "robustbench"))]
    about = json.loads((tmp_path / "run" / "run.json").read_text())["checkpoint"]
    assert about["spec"] == "robustbench:Known2020Network"
    assert about["arguments"] == {"dataset": "cifar10", "threat_model": "L2"}
    assert about["version"] == "1.0"


def test_the_threat_is_linf_unless_said_and_weights_are_those_of_the_library(library):
    built = build_code("robustbench:Known2020Network", {"dataset": "cifar10"}, 10)
    assert library[0][:3] == ("Known2020Network", "cifar10", "Linf")
    assert built.normalizes
    assert built.module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Unknown", {"dataset": "cifar10"}, r"robustbench:Unknown \(cifar10, Linf\): KeyError: 'Unknown'"),
        ("Known2020Network", {"dataset": "svhn"}, "one of cifar10, cifar100, imagenet; for other images give"),
        ("Known2020Network", {"dataset": "cifar10", "width": 2}, "takes --threat and the data set"),
    ],
)
def test_what_the_zoo_does_not_have_is_one_line(library, name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_code(f"robustbench:{name}", arguments, 10)


def test_without_the_library_there_is_a_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(ConfigError, match=r"needs robustbench .*`pip install robustbench`"):
        build_code("robustbench:Known2020Network", {"dataset": "cifar10"}, 10)


def test_a_threat_of_another_network_is_refused(images):
    command = ["attack", "--model", "torchvision:resnet18", "--threat", "L2", "--dataset", images, "--attack", "clean"]
    result = CliRunner().invoke(main, [*command, "--normalization", "none"])
    assert result.exit_code == 1
    assert "--threat is for --model robustbench:NAME; leave it out" in result.output
