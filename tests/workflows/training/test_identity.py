"""A training run has one writer, and goes on with the images that it was started with or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hydrabench.data import load_images, load_training_images
from hydrabench.data.identity import source_fingerprint
from hydrabench.errors import LedgerError
from hydrabench.ledger import writing
from hydrabench.workflows.training import commands as training
from hydrabench.workflows.training import phase as workflow


def swapped(images, part):
    """The same training images, but for one label of a part."""
    source = getattr(images, part)
    labels = source.labels.clone()
    labels[5] = (labels[5] + 1) % 10
    return replace(images, **{part: replace(source, labels=labels)})


@pytest.mark.parametrize("part", ["labelled", "validation"])
def test_a_run_is_not_continued_on_other_images(line, make_recipe, cpu, monkeypatch, part):
    """Images that were trained on would be called held-out."""
    before = {path: path.read_bytes() for path in line.train.iterdir()}
    images = swapped(load_training_images(make_recipe().data, seed=0), part)
    monkeypatch.setattr(workflow, "load_training_images", lambda *_, **__: images)
    with pytest.raises(LedgerError, match=r"cannot resume .*: dataset\.images are not those it was started with"):
        training.train(make_recipe(), line.train, options=cpu, resume=True)
    assert {path: path.read_bytes() for path in line.train.iterdir()} == before


def test_a_fingerprint_depends_on_pixels_labels_and_order():
    digits = load_images("digits", "test")
    pixels, labels = digits.images.clone(), digits.labels.clone()
    pixels[3, 0, 0, 0] += 1
    labels[3] += 1
    flipped = digits.subset(torch.arange(len(digits)).flip(0), "test")
    others = [replace(digits, images=pixels), replace(digits, labels=labels), flipped]
    assert len({source_fingerprint(images) for images in (digits, *others)}) == 4
    assert source_fingerprint(digits) == source_fingerprint(load_images("digits", "test"))


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "summary.json"])
def test_a_finished_run_that_lost_a_file_trains_again_to_the_same_bytes(make_recipe, cpu, tmp_path, capsys, name):
    training.train(make_recipe(), tmp_path, options=cpu)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    training.train(make_recipe(), tmp_path, options=cpu, resume=True)
    assert (tmp_path / name).read_bytes() == before
    assert f"was complete, but {name} is gone; it is trained again" in capsys.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "complete"


def test_a_finished_run_whose_checkpoint_was_replaced_is_refused(line, make_recipe, cpu, tmp_path):
    training.train(make_recipe(), tmp_path, options=cpu)
    (tmp_path / "checkpoint.safetensors").write_bytes((line.finetune / "checkpoint.safetensors").read_bytes())
    with pytest.raises(LedgerError, match=r"checkpoint\.safetensors has SHA-256 .*, its summary\.json says"):
        training.train(make_recipe(), tmp_path, options=cpu, resume=True)


def test_a_folder_that_another_process_writes_is_refused(make_recipe, cpu, tmp_path):
    with writing(tmp_path / "run"), pytest.raises(LedgerError, match=r"run is being written by process \d+ on "):
        training.train(make_recipe(), tmp_path / "run", options=cpu)
    assert not (tmp_path / "run").exists()
