"""Adversarial images in a report: of a contradiction, and a few of every run."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from hydrabench.errors import DataError, GateError
from hydrabench.evaluators import EVALUATORS
from hydrabench.ledger import VerifiedRecord, open_run, read_run
from hydrabench.reporting import summarize
from hydrabench.workflows.reporting import write_report
from tests.helpers.keeping import RADIUS, stored


def certified(run, path, indices):
    """Write a ledger that calls these images of a run verified."""
    lines = list(run.records())
    known = ("index", "input_sha", "label", "prediction", "seconds")
    header = {key: run.header[key] for key in ("checkpoint", "dataset", "precision", "origin")}
    settings = {"kind": "ibp", "norm": "linf", "epsilon": RADIUS}
    forged = open_run(path, {**header, "command": "certify", "settings": settings, "protocol": "ibp@1"}, resume=False)
    told = [(line, line["index"] in indices) for line in lines]
    forged.append(
        [
            VerifiedRecord(*[line[key] for key in known], verified=holds, lower=0.1 if holds else -9.0)
            for line, holds in told
        ]
    )
    forged.finish(summarize("ibp", list(forged.records()), EVALUATORS["ibp"].read(settings)))


def test_a_contradiction_comes_with_the_image_its_adversarial_image_and_the_perturbation(runs, tmp_path):
    run = read_run(runs / "pgd")
    index, pixels = list(stored(run.path).items())[1]
    certified(run, tmp_path / "runs" / "ibp", {index})
    shutil.copytree(run.path, tmp_path / "runs" / "pgd")
    with pytest.raises(GateError, match=f"broken at L∞ {RADIUS} in .*: image {index};"):
        write_report([tmp_path / "runs"], tmp_path / "out", ["json"])
    folder = tmp_path / "out" / "contradiction"
    shown = {name: np.load(folder / f"{name}.npy") for name in ("image", "adversarial", "perturbation")}
    assert np.array_equal(shown["adversarial"], pixels)
    assert np.array_equal(shown["perturbation"], pixels.astype(float) - shown["image"])
    assert 0 < np.abs(shown["perturbation"]).max() <= 32 / 255
    commands = (folder / "reproduce.sh").read_text().splitlines()[1:]
    assert commands[0].startswith("hydrabench certify --ckpt digits-trades-95 --method ibp")
    assert commands[1].endswith(f"--steps 4 -n {index + 1} --keep adversarial")


def test_a_report_shows_images_adversarial_images_and_perturbations(runs, tmp_path):
    for name in ("pgd", "l2"):
        shutil.copytree(runs / name, tmp_path / "runs" / name)
    write_report([tmp_path / "runs"], tmp_path / "out", ["html"])
    table = pd.read_csv(tmp_path / "out" / "figures" / "adversarial.csv")
    assert set(table["network"]) == {"digits-trades-95"}
    assert (table["label"] != table["class"]).all()
    assert len(table) == 8
    assert table["linf"].between(1e-3, 32 / 255 + 1e-9).all() or table["l2"].between(1e-3, 0.8).all()
    assert {path.suffix for path in (tmp_path / "out" / "figures").glob("adversarial.*")} == {".csv", ".png", ".pdf"}
    assert "Adversarial images" in (tmp_path / "out" / "index.html").read_text()


def test_of_runs_whose_images_are_not_at_hand_none_are_shown(runs, tmp_path, monkeypatch):
    def gone(*_arguments):
        raise DataError("no such data set here")

    monkeypatch.setattr("hydrabench.data.load_images", gone)
    shutil.copytree(runs / "pgd", tmp_path / "runs" / "pgd")
    write_report([tmp_path / "runs"], tmp_path / "out", ["html"])
    assert not list((tmp_path / "out" / "figures").glob("adversarial.*"))
