"""Ensembles and denoised classifiers: what they compute, whom they ask, and that the command takes them."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hydrabench.checkpoints import open_ref
from hydrabench.checkpoints.composed import Ensemble, denoised, ensemble
from hydrabench.cli import main
from hydrabench.errors import ConfigError

ENSEMBLE = "hydrabench.checkpoints.composed:ensemble"


class Fixed(nn.Module):
    """Logits by image, whose first pixel is its row; remembers which rows it saw."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.seen = torch.tensor(logits), []

    def forward(self, x):
        rows = x[:, 0, 0, 0].long()
        self.seen += rows.tolist()
        return self.logits[rows]


def rows(count):
    return torch.arange(float(count)).reshape(-1, 1, 1, 1)


def test_the_sum_of_logits_decides_not_the_number_of_votes():
    """Two weak votes for class 0 lose to one strong vote for class 1."""
    networks = [Fixed([[1.0, 0.0]]), Fixed([[1.0, 0.0]]), Fixed([[0.0, 3.0]])]
    assert Ensemble(networks)(rows(1)).tolist() == [[2.0, 3.0]]


def test_the_others_are_asked_only_where_the_first_disagree():
    first, second = Fixed([[1.0, 0.0], [1.0, 0.0]]), Fixed([[2.0, 0.0], [0.0, 2.0]])
    third = Fixed([[0.0, 9.0], [5.0, 0.0]])
    assert Ensemble([first, second, third], consensus=2)(rows(2)).tolist() == [[3.0, 0.0], [6.0, 2.0]]
    assert third.seen == [1]


@pytest.mark.parametrize("consensus", [1, 3, 4])
def test_a_consensus_of_too_few_or_all_is_refused(consensus):
    with pytest.raises(ConfigError, match=f"consensus {consensus} of 3 networks: give 2 to 2, or 0"):
        Ensemble([Fixed([[0.0]])] * 3, consensus)


def test_an_ensemble_of_one_is_refused():
    with pytest.raises(ConfigError, match="networks=digits-trades is no ensemble; name at least two"):
        ensemble("digits-trades")


def test_an_ensemble_of_checkpoints_adds_their_logits():
    x = torch.rand(3, 1, 8, 8)
    names = ("digits-trades", "digits-trades-90")
    expected = sum(open_ref(name).baked().eval()(x) for name in names)
    assert torch.allclose(ensemble(",".join(names))(x), expected)


@pytest.mark.parametrize(("asked", "expected"), [({}, 10), ({"num_classes": 7}, 7)])
def test_networks_of_libraries_have_the_classes_that_are_asked_for(asked, expected):
    pytest.importorskip("torchvision")
    names = "torchvision:squeezenet1_1,torchvision:squeezenet1_1"
    assert ensemble(names, **asked).eval()(torch.rand(1, 3, 32, 32)).shape == (1, expected)


@pytest.fixture
def halving(tmp_path):
    """A denoiser of one weight, which halves its images, or does what its file of weights says."""
    file = tmp_path / "denoiser.py"
    file.write_text("import torch\ndef build():\n    return torch.nn.Conv2d(1, 1, 1, bias=False)\n")
    torch.save({"weight": torch.full((1, 1, 1, 1), 0.5)}, tmp_path / "half.pt")
    return f"{file}:build", str(tmp_path / "half.pt")


def test_a_denoiser_stands_in_front_of_the_whole_network(halving):
    x = torch.rand(3, 1, 8, 8)
    network = open_ref("digits-trades").baked().eval()
    assert torch.allclose(denoised("digits-trades", *halving)(x), network(x / 2))


def test_the_command_certifies_an_ensemble_and_says_of_what(tmp_path):
    words = ["certify", "--method", "smoothing", "--model", ENSEMBLE, "--dataset", "digits", "--samples", "200"]
    words += ["--model-args", "networks=digits-trades,digits-trades-90", "-n", "3", "--n0", "10", "--json"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n"] == 3
    about = json.loads((tmp_path / "run" / "run.json").read_text())["checkpoint"]
    assert about["arguments"] == {"networks": "digits-trades,digits-trades-90"}
