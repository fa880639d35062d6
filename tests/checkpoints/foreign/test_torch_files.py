"""Files that are not what they should be: code is refused, and what is wrong or missing is named."""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from hydrabench.checkpoints import (
    open_ref,
)
from hydrabench.errors import CheckpointError
from tests.helpers.originals import (
    dense_state,
    imported,
    masked_state,
    refused,
    write,
)


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch '{self.proof}'",)


@pytest.mark.parametrize("wrap", ["whole", "entry", "plain pickle"])
@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_named_and_not_run(tmp_path, wrap, new_format):
    proof, path = tmp_path / "proof", tmp_path / "model_best.pth.tar"
    values = {"state_dict": masked_state("cifar_model"), "arch": "cifar_model", "args": Command(proof)}
    if wrap == "plain pickle":
        path.write_bytes(pickle.dumps(Command(proof), protocol=2))
    else:
        torch.save(Command(proof) if wrap == "whole" else values, path, _use_new_zipfile_serialization=new_format)
    for load in (lambda: imported(path, density=0.1), lambda: open_ref(str(path), density=0.1)):
        with pytest.raises(CheckpointError, match=r"only be loaded by running code \(\w+\.system\), which is refused"):
            load()
    assert not proof.exists()
    with path.open("rb") as file:  # the trap works: loaded without care, it would have run
        torch.load(file, weights_only=False) if wrap != "plain pickle" else pickle.load(file)
    assert proof.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_file_is_refused(tmp_path, share, new_format):
    path = write(tmp_path / "m.pth.tar", masked_state("cifar_model"), "cifar_model", new_format=new_format)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, "damaged or cut short; fetch or write it again" if share else "is empty; fetch it again")
    with pytest.raises(CheckpointError, match=r"cut short|is empty"):
        open_ref(str(path))


def zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html><html><head>", "is a web page, not weights"),
        (b"<HTML>", "is a web page, not weights"),
        (zip_of("net/a.pth.tar", "net/a_dense.pth.tar"), r"a zip without weights \(it holds net/a\.pth\.tar, net/a_d"),
        (zip_of(), r"a zip without weights \(it holds nothing\)"),
        (pickle.dumps({"a": 1}, protocol=4), "holds no state dict of tensors|is no file of torch.save"),
        (bytes(range(1, 200)), "is no file of torch.save"),
    ],
)
def test_other_files_are_refused_for_what_they_are(tmp_path, content, message):
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    refused(path, message)
    with pytest.raises(CheckpointError, match=message):
        open_ref(str(path))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (torch.ones(3), "Tensor"),
        ({"epoch": 3, "model": {}}, "epoch, model"),
        ({"state_dict": {"0.weight": 3}}, "state_dict"),
        ({"state_dict": {}}, "state_dict"),
        ({}, "dict"),
        ({0: torch.ones(3)}, "int"),
        ({"state_dict": {"0.weight": torch.eye(3).to_sparse()}}, "state_dict"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, values, found):
    torch.save(values, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", rf"holds no state dict of tensors \(found: {found}\)", arch="cifar_model")


def test_a_missing_file_and_values_that_are_not_finite_are_named(tmp_path):
    refused(tmp_path / "no.pth.tar", "no checkpoint at")
    state = dense_state("cifar_model", 1.0)
    state["2.bias"][0] = math.nan
    refused(write(tmp_path / "d.pth.tar", state, "cifar_model"), r"not finite .* in 2\.bias")
