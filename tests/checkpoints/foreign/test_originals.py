"""Files as the original's train.py writes them: with numpy's numbers, and beside their dense twin."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hydrabench.checkpoints import (
    import_checkpoint,
    state_of,
)
from hydrabench.checkpoints.foreign.torch_files import read_torch_file
from hydrabench.cli import main
from hydrabench.data import DATASETS
from hydrabench.errors import CheckpointError
from hydrabench.masking import score_masks
from hydrabench.models import build_model
from tests.helpers.foreign_files import (
    BARE,
    CIFAR,
    train_py,
)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "protocol 2 pickles"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["DataParallel", "one GPU"])
@pytest.mark.parametrize("k", [0.1, 0.9])
def test_what_the_originals_train_py_writes_is_read(tmp_path, k, wrapped, zipped):
    path = train_py(tmp_path, k=k, wrapped=wrapped, zipped=zipped)
    masked = import_checkpoint(path, **CIFAR)
    dense = import_checkpoint(tmp_path / "model_best_dense.pth.tar", **CIFAR)
    assert masked.header.density == dense.header.density == k
    assert score_masks(masked.network)
    assert ("the prefix 'module.'" in masked.notes[0]) if wrapped else masked.notes == ()
    stored = torch.load(tmp_path / "model_best_dense.pth.tar", weights_only=False)["state_dict"]
    for key, tensor in state_of(masked.baked()).items():
        assert torch.equal(tensor, stored[f"module.{key}" if wrapped else key])
        assert torch.equal(tensor, state_of(dense.network)[key])


def test_attack_certify_prune_and_finetune_take_the_originals_file(tmp_path, monkeypatch):
    """With the options of `zoo export`, on images of the data set that is given."""
    monkeypatch.chdir(tmp_path)
    path = train_py(tmp_path)
    dense = import_checkpoint(tmp_path / "model_best_dense.pth.tar", **CIFAR)
    assert dense.header.normalization is None
    small = build_model("cifar_model", DATASETS["digits"].shape, 10).eval()
    torch.save({"arch": "cifar_model", "state_dict": small.state_dict(), "lr": np.float64(0.1)}, "d.pth.tar")
    judged = ["--ckpt", "d.pth.tar", "--dataset", "digits", "--epsilon", "8/255", "-n", "4"]
    for command in (["attack", "--steps", "1"], ["certify", "--method", "ibp"]):
        result = CliRunner().invoke(main, [*command, *judged, "--normalization", "none", "--out", command[0]])
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["attack", "--ckpt", str(path), "-n", "4", "--epsilon", "8/255"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "give --dataset, one of cifar10, svhn" in result.output


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("zipped", [True, False])
def test_numpys_values_are_read_under_both_names_of_its_package(tmp_path, core, zipped, monkeypatch):
    """What another version of numpy would have written has the other name in it."""
    values = {"f": np.float64(0.25), "i": np.int32(-3), "b": np.bool_(True), "s": np.str_("x"),
              "a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "big": np.arange(3, dtype=">i4")}  # fmt: skip
    torch.save(values, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pt").read_bytes()
    assert b"numpy._core.multiarray" in data or b"numpy.core.multiarray" in data
    data = data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", f"numpy.{core}.".encode())
    (tmp_path / "x.pt").write_bytes(data)
    found, _, _ = read_torch_file(tmp_path / "x.pt")
    assert (found["f"], found["i"], found["b"], found["s"]) == (0.25, -3, True, "x")
    assert found["a"].tensor().tolist() == values["a"].tolist()
    assert found["big"].value.tolist() == [0, 1, 2]


def test_weights_in_arrays_of_numpys_are_read(tmp_path):
    network = build_model("cifar_model", (3, 32, 32), 10)
    torch.save({key: tensor.numpy() for key, tensor in network.state_dict().items()}, tmp_path / "x.pt")
    found = import_checkpoint(tmp_path / "x.pt", **BARE)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in state_of(found.network).items())


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3, dtype=object),
        np.zeros(2, dtype=[("a", "f4")]),
        np.datetime64("2020-01-01"),
        np.random.default_rng(0),
    ],
    ids=["objects", "records", "dates", "generators"],
)
def test_other_values_of_numpys_are_refused(tmp_path, value):
    torch.save({"state_dict": {}, "x": value}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"running code|is no file of torch\.save") as error:
        import_checkpoint(tmp_path / "x.pt", **BARE)
    assert "\n" not in str(error.value)


def test_the_dense_twin_is_part_of_the_identity(tmp_path):
    path = train_py(tmp_path)
    alone = import_checkpoint(path, density=0.1, **CIFAR)
    both = import_checkpoint(path, **CIFAR)
    train_py(tmp_path, k=0.05)
    other = import_checkpoint(path, **CIFAR)
    assert len({alone.sha256, both.sha256, other.sha256}) == 3
    assert (both.header.density, other.header.density) == (0.1, 0.05)


def test_a_twin_of_another_epoch_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    path = train_py(tmp_path)
    train_py(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "model_best_dense.pth.tar", tmp_path)
    with pytest.raises(CheckpointError, match=r"model_best_dense\.pth\.tar is not model_best\.pth\.tar with its masks"):
        import_checkpoint(path, **CIFAR)


def test_a_twin_with_a_kept_weight_of_zero_still_tells_the_density(tmp_path):
    path = train_py(tmp_path)
    files = {name: torch.load(tmp_path / name, weights_only=False) for name in (path.name, "model_best_dense.pth.tar")}
    place = tuple(files["model_best_dense.pth.tar"]["state_dict"]["5.weight"].nonzero()[7])
    for name, values in files.items():
        values["state_dict"]["5.weight"][place] = 0
        torch.save(values, tmp_path / name)
    found = import_checkpoint(path, **CIFAR)
    assert (found.header.density, found.header.kept) == (0.1, None)
