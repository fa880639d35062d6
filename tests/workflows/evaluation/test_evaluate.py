"""attack and certify on the real digits: what the ledgers hold, and how the numbers come out of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

from hydrabench.checkpoints import compact_size, export_checkpoint
from hydrabench.evaluators import (
    EVALUATORS,
    CleanSettings,
    PgdSettings,
    VerifiedSettings,
)
from hydrabench.files import sha256_of
from hydrabench.ledger import read_run
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.evaluation.running_totals import RunningTotals
from tests.helpers.evaluations import CASES, CROWN, read

IMAGES_OF_THEIR_OWN = {"corruptions"}  # a library that need not be there makes them; see its own tests


def test_every_kind_of_evaluation_is_tested():
    assert set(CASES) | IMAGES_OF_THEIR_OWN == set(EVALUATORS)


@pytest.mark.parametrize("kind", CASES)
def test_a_ledger_has_one_record_per_image_about_the_very_pixels_of_the_data_set(runs, comparable, kind):
    _, n, record, verdict = CASES[kind]
    records = comparable(runs / kind)
    assert [entry["index"] for entry in records] == list(range(n))
    assert all(set(entry) == {field.name for field in fields(record)} - {"seconds"} for entry in records)
    raw = sklearn_datasets.load_digits()
    grey = np.round(raw.images[1297 : 1297 + n] * 255 / 16).astype(np.float32) / np.float32(255)
    assert [entry["input_sha"] for entry in records] == [hashlib.sha256(image.tobytes()).hexdigest() for image in grey]
    assert [entry["label"] for entry in records] == raw.target[1297 : 1297 + n].tolist()
    if n > 100:
        assert 0 < sum(entry[verdict] for entry in records) < n  # some hold, some do not


@pytest.mark.parametrize("kind", CASES)
def test_lines_of_progress_are_short_and_the_last_says_what_the_records_say(
    kind, subject, cpu, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("hydrabench.workflows.progress.LOG_SECONDS", 0.0)
    settings = CASES[kind][0]
    evaluate(subject, settings, tmp_path / "run", options=cpu, n=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "/2, " in line]
    assert max(map(len, lines)) <= 120
    counted, note = lines[-1].split("  ", 1)
    assert ": 2/2, " in counted
    totals = str(RunningTotals(settings, read_run(tmp_path / "run").records()))
    assert note == totals or (note.endswith(" …") and totals.startswith(note.removesuffix(" …")))


@pytest.mark.parametrize("kind", ["clean", "pgd", "ibp", "crown-ibp"])
def test_the_summary_is_the_fraction_of_records_that_hold(runs, comparable, kind):
    _, n, _, verdict = CASES[kind]
    records, summary = comparable(runs / kind), read(runs / kind, "summary.json")
    metric = {"clean": "clean_accuracy", "pgd": "robust_accuracy"}.get(kind, "verified_accuracy")
    count = sum(entry[verdict] for entry in records)
    found = summary["metrics"][metric]
    assert (summary["n"], found["count"], found["value"]) == (n, count, count / n)
    right = sum(entry["prediction"] == entry["label"] for entry in records)
    assert summary["metrics"]["clean_accuracy"]["value"] == right / n
    assert found["low"] < found["value"] < found["high"]


def test_the_summary_of_smoothing_counts_right_predictions_certified_at_each_radius(runs, comparable):
    records, metrics = comparable(runs / "smoothing"), read(runs / "smoothing", "summary.json")["metrics"]
    right = [entry for entry in records if entry["prediction"] == entry["label"]]
    assert right
    for radius, name in ((0.0, "0"), (0.05, "0.05"), (9.0, "9")):
        certified = sum(entry["radius"] >= radius for entry in right)
        assert metrics[f"certified_accuracy@{name}"]["count"] == certified
    assert metrics["certified_accuracy@9"]["count"] == 0
    assert metrics["average_certified_radius"]["value"] == pytest.approx(sum(e["radius"] for e in right) / 6)


@pytest.mark.parametrize("kind", CASES)
def test_run_json_says_how_the_number_was_made(runs, line, comparable, kind):
    settings, n, _, _ = CASES[kind]
    run = read(runs / kind)
    assert (run["schema"], run["status"], run["world_size"]) == ("hydrabench.run/2", "complete", 1)
    assert run["command"] == ("certify" if EVALUATORS[kind].claims in ("lower", "smoothed") else "attack")
    assert (run["protocol"], run["settings"]) == (settings.protocol, settings.plain())
    lines = [f"{entry['input_sha']} {entry['label']}\n" for entry in comparable(runs / kind)]
    known = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert run["dataset"] == {"name": "digits", "split": "test", "n": n, "fingerprint": known}
    (made_with,) = run["environments"]
    assert (made_with["first_record"], made_with["torch"]) == (0, torch.__version__.split("+")[0])
    checkpoint = run["checkpoint"]
    assert checkpoint["sha256"] == sha256_of(line.train / "checkpoint.safetensors")
    assert (checkpoint["arch"], checkpoint["density"], checkpoint["phase"]) == ("cifar_model_bn", 1, "train")
    assert run["started"] <= run["ended"]
    assert run.get("noise") == ("cpu" if kind == "smoothing" else None)


def test_no_image_is_both_verified_and_broken_at_the_same_radius(runs, subject, cpu, comparable, tmp_path):
    evaluate(subject, PgdSettings(epsilon="1/255", steps=10), tmp_path / "pgd", options=cpu, n=230)
    verified = [entry["verified"] for entry in comparable(runs / "crown-ibp")]
    robust = [entry["robust"] for entry in comparable(tmp_path / "pgd")]
    assert any(verified)
    assert not all(robust)
    assert not any(holds and not survives for holds, survives in zip(verified, robust, strict=True))


def test_fewer_images_give_the_first_records_of_more(runs, subject, cpu, comparable, tmp_path):
    for kind, n in (("pgd", 100), ("smoothing", 2)):
        evaluate(subject, CASES[kind][0], tmp_path / kind, options=cpu, n=n)
        assert comparable(tmp_path / kind) == comparable(runs / kind)[:n]


def test_a_pruned_network_is_evaluated_with_its_masks_baked_in(line, cpu, comparable, tmp_path):
    """26 + 820 + 1280 + 100 weights, 16 + 32 + 100 + 10 biases, 2 · (16 + 32) of batch norm."""
    subject = open_subject(str(line.prune), options=cpu)
    evaluate(subject, CleanSettings(), tmp_path / "run", options=cpu, n=5)
    described = read(tmp_path / "run")["checkpoint"]
    assert described["parameters"] == 22248 + 158 + 96
    assert 2226 + 96 < described["nonzero_parameters"] <= 2226 + 158 + 96
    assert described["prunable_layers"] == 4


def test_run_json_says_where_a_network_comes_from_and_how_small_it_can_be_kept(runs, cpu, tmp_path):
    """A compact file of 5 % of 22,248 weights: 4 bytes of each kept one, and less than a byte to say where it is."""
    subject = open_subject("digits-trades-95", options=cpu)
    evaluate(subject, CleanSettings(), tmp_path / "run", options=cpu, n=5)
    run = read(tmp_path / "run")
    header = subject.checkpoint.header
    assert run["origin"] == {
        "recipe": "digits-trades",
        "seed": 0,
        "selection": "validation",
        "parent": header.parent,
        "additional_data": False,
        "compact_bytes": compact_size(subject.network),
    }
    path = tmp_path / "compact.safetensors"
    export_checkpoint(subject.checkpoint, path, "compact")
    assert run["origin"]["compact_bytes"] < path.stat().st_size < run["checkpoint"]["bytes"] / 8
    assert run["peak_memory"] > 1e7
    unpruned = read(runs / "clean")["origin"]
    assert "compact_bytes" not in unpruned
    assert unpruned["additional_data"] is False  # as the recipe of its training run says


def test_float64_is_recorded_and_computed(runs, line, cpu, comparable, tmp_path):
    subject = open_subject(str(line.train), options=cpu, precision="float64")
    evaluate(subject, CROWN, tmp_path / "run", options=cpu, n=50)
    assert read(tmp_path / "run")["precision"] == "float64"
    exact, rounded = comparable(tmp_path / "run"), comparable(runs / "crown-ibp")[:50]
    assert [e["input_sha"] for e in exact] == [e["input_sha"] for e in rounded]
    differences = [abs(a["lower"] - b["lower"]) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(differences) < 1e-3


def test_slow_bounds_tell_the_layer_while_an_image_is_bounded(subject, cpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("hydrabench.workflows.progress.LOG_SECONDS", 0.0)
    monkeypatch.setattr("hydrabench.evaluators.blocks.MINUTE", 0.0)  # then every image takes too long
    monkeypatch.setattr("hydrabench.evaluators.blocks.BLOCK_OPERATIONS", 1.0)
    settings = VerifiedSettings(kind="cascade", methods=("ibp", "symbolic", "crown"), epsilon="8/255")
    evaluate(subject, settings, tmp_path / "run", options=cpu, n=2)
    lines = capsys.readouterr().err.splitlines()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["block_size"] == 1
    assert lines[0].startswith("cascade may take up to")
    for part in ("symbolic · image 0", "symbolic · image 1", "crown · "):
        assert any(f"layer 2/3 100% · {part}" in line for line in lines), (part, lines)
    assert ": 0/2, " in lines[1]
    assert "s left" not in lines[1]
