"""attack, certify and verify as functions: the same records as the command, and networks that stay as they are."""

from __future__ import annotations

import copy
import json
from fractions import Fraction

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import TensorDataset

import hydrabench as hb
from hydrabench.cli import main
from hydrabench.errors import CheckpointError, ConfigError, DataError, LedgerError, UnsupportedLayerError

ZOO = "digits-trades-95"
QUICK = {"steps": 2, "epsilon": "8/255", "device": "cpu"}


def without_times(run):
    return run.records.drop(columns="seconds")


def test_the_command_and_the_function_write_the_same_run(tmp_path):
    run = hb.attack(ZOO, n=30, out=tmp_path / "python", **QUICK)
    command = ["attack", "--ckpt", ZOO, "-n", "30", "--epsilon", "8/255", "--set", "steps=2", "--device", "cpu"]
    assert CliRunner().invoke(main, [*command, "--out", str(tmp_path / "shell")]).exit_code == 0
    other = hb.Run(tmp_path / "shell")
    pd.testing.assert_frame_equal(without_times(run), without_times(other))
    assert run.summary["metrics"] == other.summary["metrics"] == json.loads(
        (tmp_path / "python" / "summary.json").read_text()
    )["metrics"]  # fmt: skip
    volatile = {"started", "ended", "peak_memory"}
    assert {k: v for k, v in run.header.items() if k not in volatile} == {
        k: v for k, v in other.header.items() if k not in volatile
    }


def test_without_out_a_run_is_the_same_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, kept = hb.attack(ZOO, n=12, **QUICK), hb.attack(ZOO, n=12, out="kept", **QUICK)
    pd.testing.assert_frame_equal(without_times(run), without_times(kept))
    folder = run.path
    assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    del run
    assert not folder.exists()


def test_a_run_shows_its_metrics_with_intervals_and_one_row_an_image(few):
    run = hb.certify(ZOO, few, method="ibp", epsilon="1/255", device="cpu")
    assert list(run.records.index) == list(range(24))
    assert run.records["label"].tolist() == few[1].tolist()
    share = run.records["verified"].mean()
    assert run["verified_accuracy"] == pytest.approx(share)
    first, *lines = repr(run).splitlines()
    assert first.startswith(f"ibp@1 of {ZOO} at L∞ 1/255, 24 images of images-")
    assert first.endswith(", in memory")
    metric = run.summary["metrics"]["verified_accuracy"]
    assert f"  verified_accuracy               {share:.4f}  [{metric['low']:.4f}, {metric['high']:.4f}]" in lines
    with pytest.raises(KeyError, match="this run has clean_accuracy, verified_accuracy"):
        run["robust_accuracy"]


def test_radii_are_the_same_as_text_float_and_fraction(few):
    runs = [hb.attack(ZOO, few, epsilon=epsilon, steps=1) for epsilon in ("8/255", 8 / 255, Fraction(8, 255))]
    assert {run.header["settings"]["epsilon"] for run in runs} == {"8/255"}
    for epsilon in (8, Fraction(8), "8"):
        with pytest.raises(ConfigError, match=r"outside \[0, 1\], the pixel range"):
            hb.attack(ZOO, few, epsilon=epsilon)


FORMS = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "grey levels": lambda x, y: ((x * 255).round().to(torch.uint8), y),
    "dataset": TensorDataset,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_images_in_any_form_are_those_of_the_registered_set(form, few, own_network):
    expected = hb.attack(own_network, "digits", n=24, **QUICK)
    found = hb.attack(own_network, form(*few), n=24, **QUICK)
    pd.testing.assert_frame_equal(without_times(found), without_times(expected))


def test_images_between_grey_levels_are_judged_as_they_are(own_network, few):
    between = few[0] * 0.9 + 0.013
    run = hb.attack(own_network, (between, few[1]), attack="clean")
    own_network.eval()
    assert run.records["prediction"].tolist() == own_network(between).argmax(1).tolist()
    assert not torch.equal(own_network(between), own_network((between * 255).round() / 255))


def test_a_network_stays_as_it_is_in_mode_gradients_and_statistics(own_network, few):
    own_network.train()
    own_network.features[1].eval()  # a part that its owner froze
    own_network.head.bias.requires_grad_(False)
    before = copy.deepcopy(own_network.state_dict())
    hb.certify(own_network, few, method="crown-ibp", epsilon="1/255")
    hb.attack(own_network, few, **QUICK)
    modes = [part.training for part in own_network.modules()]
    assert modes.count(False) == 1
    assert not own_network.features[1].training
    assert [p.requires_grad for p in own_network.parameters()].count(False) == 1
    assert all(torch.equal(value, before[key]) for key, value in own_network.state_dict().items())
    own_network(few[0]).sum().backward()


def test_networks_that_compute_something_else_with_equal_tensors_are_told_apart(few):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)]
    one, other = nn.Sequential(*layers), nn.Sequential(*layers[:2], nn.LeakyReLU(0.1), layers[3])
    hashes = [hb.attack(net, few, attack="clean").header["checkpoint"]["sha256"] for net in (one, other, one)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_an_own_network_goes_on_in_its_folder_and_grows(own_network, few, tmp_path):
    hb.attack(own_network, few, n=10, out=tmp_path / "run", **QUICK)
    with pytest.raises(LedgerError, match="already holds a run"):
        hb.attack(own_network, few, n=10, out=tmp_path / "run", **QUICK)
    grown = hb.attack(own_network, few, out=tmp_path / "run", resume=True, **QUICK)
    pd.testing.assert_frame_equal(without_times(grown), without_times(hb.attack(own_network, few, **QUICK)))
    with torch.no_grad():
        own_network.head.bias += 1
    with pytest.raises(LedgerError, match=r"cannot resume .*checkpoint\.sha256 was"):
        hb.attack(own_network, few, out=tmp_path / "run", resume=True, **QUICK)


def test_computing_options_and_settings_are_told_apart(few):
    run = hb.certify(ZOO, few, method="smoothing", sigma=0.25, samples=100, n0=10, batch=7, n=3, device="cpu")
    assert run.header["settings"]["samples"] == 100
    assert "batch" not in run.header["settings"]
    assert len(run.records) == 3
    with pytest.raises(ConfigError, match=r"pgd: step: unknown key, did you mean 'steps'\?"):
        hb.attack(ZOO, few, step=3, epsilon="8/255")


def test_load_gives_the_network_that_the_zoo_id_names(few):
    network = hb.load(ZOO)
    assert not network.training
    x, y = few
    clean = hb.attack(ZOO, few, attack="clean").records["prediction"].tolist()
    assert network(x).argmax(1).tolist() == clean
    assert (hb.bounds.crown_ibp_margins(network, x, y, 0.0) > 0).tolist() == (network(x).argmax(1) == y).tolist()


def test_load_reads_a_file_of_others_with_what_it_does_not_say(tmp_path):
    network = nn.Sequential(*hb.load("digits-trades-95").children())
    inner = network[1] if len(network) == 2 else network
    torch.save(inner.state_dict(), tmp_path / "theirs.pt")
    given = {"arch": "cifar_model_bn", "dataset": "digits"}
    loaded = hb.load(tmp_path / "theirs.pt", normalization=([0.5], [0.25]), **given)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(x), inner.eval()((x - 0.5) / 0.25))
    same = hb.load(str(tmp_path / "theirs.pt"), normalization="0.5/0.25", **given)
    assert torch.equal(same(x), loaded(x))


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x.flatten(1), x


class Noisy(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] + torch.rand(len(x), 10)


MISTAKES = {
    "no data": (nn.Flatten(), None, {}, ConfigError, r"does not say what it was made for; give data"),
    "array": (ZOO, "array", {}, DataError, r"data has the shape \(24, 1, 8, 8\) and no labels; give a registered name"),
    "no data set": (ZOO, "cifar11", {}, ConfigError, r"unknown data set 'cifar11'; did you mean 'cifar10'\?"),
    "other size": (ZOO, "wide", {}, DataError, r"images have shape \(1, 9, 9\); digits-trades-95 takes \(1, 8, 8\)"),
    "own size": (
        nn.Linear(8, 10),
        "wide",
        {},
        ConfigError,
        r"Linear fails on images of 1 x 1 x 9 x 9 \(RuntimeError: mat1",
    ),
    "logits": (
        nn.Identity(),
        "few",
        {},
        ConfigError,
        r"Identity returns \(1, 1, 8, 8\) for 1 images; it must return logits",
    ),
    "tuple": (TwoOutputs(), "few", {}, ConfigError, r"TwoOutputs returns tuple for 1 images; it must return logits"),
    "classes": (ZOO, "labels", {}, ConfigError, r"digits-trades-95 has 10 outputs, images-\w+ has 15 classes"),
    "outputs": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
        "digits",
        {},
        ConfigError,
        r"Sequential has 4 outputs, digits has 10 classes",
    ),
    "method": (ZOO, "few", {"attack": "crown"}, ConfigError, r"unknown attack 'crown'; .*choose one of: .*pgd"),
    "resume": (ZOO, "few", {"resume": True}, ConfigError, r"resume continues the run in a folder; name it with out"),
    "network": (3, "few", {}, ConfigError, r"network is a int; give a module, a checkpoint's path, a run folder"),
    "zoo": ("digits-trades-96", "few", {}, ConfigError, r"unknown checkpoint 'digits-trades-96'; did you mean"),
    "softmax": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)),
        "few",
        {},
        ConfigError,
        r"probabilities, whose gradients vanish; take the softmax off",
    ),
    "noise": (Noisy(), "few", {}, ConfigError, r"dropout or other noise is on in eval mode"),
    "n": (ZOO, "few", {"n": 25}, DataError, r"-n 25 is outside 1\.\.24"),
    "radius": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        "few",
        {"epsilon": None},
        ConfigError,
        "does not say which radius",
    ),
}


@pytest.mark.parametrize(("network", "data", "options", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(network, data, options, error, message, few, tmp_path):
    x, y = few
    known = {"few": few, "wide": (torch.rand(24, 1, 9, 9), y), "labels": (x, y + 5), "array": x.numpy()}
    out = {} if "resume" in options else {"out": tmp_path / "run"}
    with pytest.raises(error, match=message) as caught:
        hb.attack(network, known.get(data, data), **{"epsilon": "1/255", **out, **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_bounds_name_the_operation_that_they_do_not_know(few):
    class Sorted(nn.Module):
        def forward(self, x):
            return x.flatten(1).sort(1).values[:, :10]

    with pytest.raises(UnsupportedLayerError, match="sort"):
        hb.certify(Sorted(), few, epsilon="1/255")


def test_verify_computes_records_again_and_notices_other_networks_and_images(own_network, few):
    run = hb.certify(own_network, few, method="ibp", epsilon="1/255")
    again = hb.verify(run, own_network, few, sample=6)
    assert len(again) == 6
    assert set(again["differences"]) == {""}
    darker = (few[0] * 0.5, few[1])
    assert hb.verify(run, own_network, darker, sample=3)["differences"].str.contains("input_sha").all()
    with torch.no_grad():
        own_network.head.bias += 1
    with pytest.raises(CheckpointError, match=r"OwnNetwork has SHA-256 .*…, .* was made with"):
        hb.verify(run, own_network, few)
    with pytest.raises(ConfigError, match=r"is about images that were handed over; give them again as data"):
        hb.verify(run, own_network)
    with pytest.raises(ConfigError, match=r"data alone does not say what was judged on it; give network, too"):
        hb.verify(run, data=few)


def test_verify_finds_the_checkpoint_that_a_run_names():
    run = hb.attack(ZOO, n=12, **QUICK)
    assert set(hb.verify(run.path, sample=4, device="cpu")["differences"]) == {""}
